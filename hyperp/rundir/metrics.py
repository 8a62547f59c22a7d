"""`metrics.jsonl`: what a run logs while it trains, one line for each logged step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperp.files import replacing


class MetricsLog:
    """A file of JSON lines, each with its step; a run that resumes at `step` drops the lines after it.

    A line that was cut off when a process was killed is dropped too. `also` is called with the step and the
    values of every line.
    """

    def __init__(self, path: Path, step: int, also: Callable[[int, dict[str, Any]], None] | None = None):
        self.also = also
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the process was killed while it wrote this line
                    continue
                if row["step"] <= step:
                    kept.append(line + "\n")
        with replacing(path) as file:
            file.write("".join(kept))
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
