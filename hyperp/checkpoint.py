"""Atomic checkpoints of one process, and the log that goes with them."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary name, flush, rename: a kill at any moment leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None if there is none. One that cannot be read is set aside, with a warning."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("%s cannot be read (%s); set aside as %s, starting over", path, error, aside.name)
        return None


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
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self.file = path.open("a")

    def write(self, step: int, **values: float | str) -> None:
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
