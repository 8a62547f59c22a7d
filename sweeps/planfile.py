"""`plan.json`: every run that was ever planned below a root, so that none is lost to the table."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperp.record import write_json
from hyperp.sweeps.plan import Plan, Point

SCHEMA = 1
NAME = "plan.json"


@dataclass(frozen=True)
class Planned:
    """One point of `plan.json`: a `Point` as plain values, and the time that it was first planned."""

    run_id: str
    blocks: list[str]
    words: list[str]
    planned: str
    lr: float
    flops: float
    config: dict[str, Any]


def read(root: Path) -> list[Planned]:
    """The planned points, in order; none without a `plan.json`. Raises ValueError if it is damaged."""
    path = root / NAME
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(
            f"{path} is not a plan ({error}); remove it and plan again, records are kept"
        ) from None
    found = value.get("schema") if isinstance(value, dict) else value
    if found != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {found!r}")
    try:
        return [Planned(**point) for point in value["points"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a plan ({error}); remove it and plan again, records are kept"
        ) from None


def write(plan: Plan) -> None:
    """Join the plan with what was planned below its root before; a point keeps the time of its first plan.

    Points of this plan come first, with its blocks; earlier points that it no longer has are kept after them.
    The file is written only if that changes it.
    """
    earlier = {point.run_id: point for point in read(plan.root)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    points = []
    for point in plan.points:
        before = earlier.get(point.run_id)
        points.append(entry(point, before.planned if before else now))
    ids = {point.run_id for point in points}
    points += [point for run_id, point in earlier.items() if run_id not in ids]
    if points != list(earlier.values()):
        header = {"schema": SCHEMA, "version": version("hyperp-scaling"), "words": list(plan.words)}
        write_json(plan.root / NAME, header | {"points": [asdict(point) for point in points]})


def entry(point: Point, time: str) -> Planned:
    """A point as it stands in the file."""
    return Planned(
        run_id=point.run_id,
        blocks=list(point.blocks),
        words=list(point.words),
        planned=time,
        lr=point.lr,
        flops=point.flops,
        config=asdict(point.config),
    )


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold `root` for one sweep on this machine; the lock goes with the process, however it ends.

    Raises ValueError if another process holds it: two that train the same run would overwrite each other.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{root} is held by another sweep; wait for it or stop it") from None
        yield
