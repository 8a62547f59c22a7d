"""`metrics.jsonl`: what a run logs while it trains, one line a logged step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperp.files import replacing


class MetricsLog:
    """`metrics.jsonl`, one line a logged step. Opening it at step s drops later lines and any half line.

    `also` is called with the step and the values of every line.
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

    def write(self, step: int, **values: float | str | list[float]) -> None:
        """Append one line; a value that is not finite is written as a string, since JSON has no NaN."""
        row: dict[str, Any] = {"step": step}
        row |= {key: repr(v) if isinstance(v, float) and v - v != 0 else v for key, v in values.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.also:
            self.also(step, values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class NoLog:
    """In the place of a MetricsLog in a process that writes none."""

    def write(self, step: int, **values: float | str | list[float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
