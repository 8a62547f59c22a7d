"""What a run logs while it trains, as JSON lines with the step: metrics.jsonl and coordinates.jsonl."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperp.files import replacing

METRICS = "metrics.jsonl"
COORDINATES = "coordinates.jsonl"  # activations, see `hyperp.training.coordinates`


def read_json_lines(path: Path) -> Iterator[Any]:
    """The values in a file of JSON lines, without one that was cut off when a process was killed."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


class MetricsLog:
    """A file of JSON lines, each with its step; a run that resumes at `step` drops the lines after it.

    A line that was cut off when a process was killed is dropped too. `also` is called with the step and the
    values of every line.
    """

    def __init__(self, path: Path, step: int, also: Callable[[int, dict[str, Any]], None] | None = None):
        self.also = also
        rows = list(read_json_lines(path)) if path.exists() else []
        with replacing(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        self.file = path.open("a")

    def write(self, step: int, **values: Any) -> None:
        """Append one line; numbers that are not finite are written as strings, since JSON has no NaN."""
        self.file.write(json.dumps(_as_strict_json({"step": step, **values}), allow_nan=False) + "\n")
        self.file.flush()
        if self.also:
            self.also(step, values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class NoLog:
    """Takes the place of a MetricsLog on ranks that write no files."""

    def write(self, step: int, **values: Any) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def _as_strict_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_strict_json(inner) for inner in value]
    return repr(value) if isinstance(value, float) and value - value != 0 else value
