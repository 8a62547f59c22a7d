"""Atomic checkpoints of one process."""

import logging
from pathlib import Path
from typing import Any

import torch

from hyperp.files import replacing

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary name, flush, rename: a kill at any moment leaves the old one or the new one."""
    with replacing(path, "wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any] | None:
    """The saved state, on the CPU, or None if there is none. A damaged one is set aside, with a warning."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):  # says nothing about the file's content
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("%s cannot be read (%s); set aside as %s, starting over", path, error, aside.name)
        return None
