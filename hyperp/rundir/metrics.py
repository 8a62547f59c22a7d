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

    def write(self, step: int, **values: Any) -> None:
        """Append one line; a value that is not finite is written as a string, since JSON has no NaN."""
        self.file.write(json.dumps(_finite({"step": step, **values}), allow_nan=False) + "\n")
        self.file.flush()
        if self.also:
            self.also(step, values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class NoLog:
    """In the place of a MetricsLog in a process that writes none."""

    def write(self, step: int, **values: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return repr(value) if isinstance(value, float) and value - value != 0 else value
