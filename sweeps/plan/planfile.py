"""`plan.json`: every run that was ever planned in a folder, so that the table misses none."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, TypeAdapter, ValidationError

from hyperp import __version__, files
from hyperp.scale import Scale
from hyperp.sweeps.plan.plan import Plan, Point
from hyperp.sweeps.plan.run_config import run_of, trainer_name, values_of
from hyperp.validation import invalid_field

SCHEMA = 1
NAME = "plan.json"


class NamedSection(BaseModel, extra="allow"):
    """A section with a `name`."""

    name: str


class ScheduleSection(BaseModel, extra="allow"):
    """The section `schedule`."""

    shape: str


class DataSection(BaseModel, extra="allow"):
    """The section `data`."""

    source: str


def _make_scale(value: Any) -> Scale:
    try:
        return Scale(**value)
    except TypeError as error:  # no mapping, or other keys
        raise ValueError(str(error)) from None


class PlannedConfig(BaseModel, extra="allow", allow_inf_nan=False):
    """The fields of a planned configuration that are read; the others are kept as they are."""

    scale: Annotated[Scale, BeforeValidator(_make_scale)]
    base_lr: float
    seed: int
    optim: NamedSection
    parametrization: NamedSection
    schedule: ScheduleSection
    data: DataSection


def _check_readable(config: dict[str, Any]) -> dict[str, Any]:
    if trainer_name(config) == "command":
        run_of(config)
    else:
        PlannedConfig.model_validate(config, strict=True)
    return config


@dataclass(frozen=True)
class Planned:
    """A `Point` in plan.json: `words` are its overrides, `planned` the time when it was first planned."""

    run_id: str
    blocks: list[str]
    words: list[str]
    planned: str
    lr: float
    flops: float
    config: Annotated[dict[str, Any], AfterValidator(_check_readable)]


POINTS = TypeAdapter(list[Planned])


def read_plan(root: Path) -> list[Planned]:
    """The planned points, in order; none without a plan.json. Raises ValueError if the file is damaged."""
    path = root / NAME
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:  # of JSON or of UTF-8
        raise _damaged_error(path, str(error)) from None
    found = value.get("schema") if isinstance(value, dict) else value
    if found != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {found!r}")
    try:
        return POINTS.validate_python(value.get("points"))
    except ValidationError as error:
        raise _damaged_error(path, invalid_field(error, "points")) from None


def _damaged_error(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not a plan ({reason}); remove it and plan again, records are kept")


def write_plan(plan: Plan) -> None:
    """Write a plan, and keep what was planned in its folder before.

    Points of this plan come first, with its blocks and the time when each was first planned; earlier points
    that it no longer has come after them. The file is written only if its points change.
    """
    earlier = {point.run_id: point for point in read_plan(plan.root)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    points = []
    for point in plan.points:
        before = earlier.get(point.run_id)
        points.append(planned_point(point, before.planned if before else now))
    ids = {point.run_id for point in points}
    points += [point for run_id, point in earlier.items() if run_id not in ids]
    if points != list(earlier.values()):
        header = {"schema": SCHEMA, "version": __version__, "words": list(plan.overrides)}
        files.write_json(plan.root / NAME, header | {"points": [asdict(point) for point in points]})


def planned_point(point: Point, time: str) -> Planned:
    """A point as plan.json has it, first planned at `time`."""
    return Planned(
        run_id=point.run_id,
        blocks=list(point.blocks),
        words=list(point.overrides),
        planned=time,
        lr=point.lr,
        flops=point.flops,
        config=values_of(point.config),
    )


@contextmanager
def lock_sweep(root: Path) -> Iterator[IO[str]]:
    """Hold the lock of the sweep at `root` until the block or the process ends; yields the open lock file.

    Raises ValueError if another process holds it, since two would do the same runs.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / ".lock"
    with ExitStack() as stack:
        try:
            file = stack.enter_context(files.lock(path, str(path)))
        except files.HeldError as error:
            raise ValueError(f"{error}; wait for it or stop it") from None
        files.remove_leftovers(root)
        yield file
