"""Reading a number that a command has left: in a file, its output, event files, or an offline W&B run."""

import csv
import glob
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hyperp.sweeps.plan.command_section import ResultSource
from hyperp.sweeps.trainers.wandb_offline import read_history

SHOWN = 8  # names that an error lists
PICKS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
    "min": min,
    "max": max,
}


class NoResultError(Exception):
    """The number is not there; the text says what was missing, and what was there instead."""


def read_result(source: ResultSource, place: str, output: Path, output_from: int = 0) -> float:
    """The number that `source` describes; NaN if any of several is not finite and one must be chosen by size.

    Args:
        source: how to read it.
        place: `source.place` with its names filled in.
        output: the file with what the command printed; other processes of the run have files beside it.
        output_from: where in that file to begin.

    Raises:
        NoResultError: there is no such file, key or number.
    """
    if source.output is not None:
        values = _from_output(source.output, output, output_from)
    elif source.tensorboard is not None:
        values = _from_tensorboard(Path(place), str(source.tag))
    elif source.wandb is not None:
        values = _from_wandb(Path(place), str(source.key))
    else:
        values = _from_file(_one_file(place), str(source.key))
    if source.pick in ("min", "max") and not all(map(math.isfinite, values)):
        return math.nan
    return PICKS[source.pick](values)


def _one_file(place: str) -> Path:
    found = sorted(glob.glob(place))  # noqa: PTH207
    if not found:
        folder = Path(place).parent
        there = sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.is_dir() else []
        raise NoResultError(f"no file {place}; {folder} {_holds(there)}")
    return Path(found[-1])


def _holds(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"has {', '.join(names[:SHOWN])}{more}" if names else "is empty or no folder"


def _from_file(path: Path, key: str) -> list[float]:
    try:
        rows = list(_rows(path))
    except (OSError, ValueError) as error:
        raise NoResultError(f"{path} cannot be read: {error}") from None
    found = [value for row in rows if (value := _number(_at(row, key))) is not None]
    if not found:
        keys = dict.fromkeys(name for row in rows for name in _paths(row))
        raise NoResultError(f"{path} has no number {key} in {len(rows)} rows; it {_holds(list(keys))}")
    return found


def _rows(path: Path) -> Iterator[Any]:
    text = path.read_text()
    if path.suffix == ".json":
        yield json.loads(text)
    elif path.suffix == ".jsonl":
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # a line that was cut off, or one of text
                continue
    else:
        yield from csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")


def _at(row: Any, key: str) -> Any:
    """The value under a key, or under a path such as eval.loss."""
    if isinstance(row, dict) and key in row:
        return row[key]
    for part in key.split("."):
        if not isinstance(row, dict) or part not in row:
            return None
        row = row[part]
    return row


def _paths(row: Any, before: str = "") -> Iterator[str]:
    if isinstance(row, dict):
        for name, value in row.items():
            path = f"{before}{name}"
            yield from _paths(value, f"{path}.") if isinstance(value, dict) else [path]


def _number(value: Any) -> float | None:
    """A number, also one written as text such as NaN; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _from_output(pattern: str, output: Path, output_from: int) -> list[float]:
    """Matches in the output, or in that of another process of the run: Megatron's last one prints."""
    text = output.read_bytes()[output_from:].decode(errors="replace") if output.exists() else ""
    others = sorted(output.parent.glob(f"{output.stem}.*{output.suffix}"))
    for printed in (text, *(path.read_text(errors="replace") for path in others)):
        found = [_number(match["value"]) for match in re.finditer(pattern, printed, re.MULTILINE)]
        if values := [value for value in found if value is not None]:
            return values
    last = text.strip().splitlines()[-1:] or ["nothing"]
    raise NoResultError(f"nothing that it printed matches {pattern!r}; the last line is {last[0]!r}")


def _from_tensorboard(folder: Path, tag: str) -> list[float]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
            EventAccumulator,
        )
    except ImportError:
        raise NoResultError("reading event files needs the package tensorboard") from None
    if not folder.is_dir():
        raise NoResultError(f"no folder {folder}")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    if tag not in tags:
        raise NoResultError(f"{folder} has no scalar {tag}; it {_holds(tags)}")
    return [event.value for event in events.Scalars(tag)]


def _from_wandb(folder: Path, key: str) -> list[float]:
    """The history of the last offline run below a folder, from its .wandb file."""
    found = sorted(folder.glob("**/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NoResultError(f"no offline run of W&B below {folder}")
    try:
        rows = list(read_history(found[-1]))
    except ImportError:
        raise NoResultError("reading an offline run needs the package wandb") from None
    values = [value for row in rows if (value := _number(_at(row, key))) is not None]
    if not values:
        keys = dict.fromkeys(name for row in rows for name in row)
        raise NoResultError(f"{found[-1]} has no number {key}; it {_holds(list(keys))}")
    return values
