"""Checkpoints of a run with a single rank: one file, written atomically."""

import logging
from pathlib import Path
from typing import Any

import torch

from hyperp.files import replacing

log = logging.getLogger(__name__)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; a kill at any moment leaves the old checkpoint or the new one."""
    with replacing(path, "wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any] | None:
    """The saved state, on the CPU, or None if there is none or it is damaged.

    A damaged file is renamed to checkpoint.damaged, with a warning.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):  # the file may be intact
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for a damaged file
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        log.warning("%s cannot be read (%s); set aside as %s, starting over", path, error, aside.name)
        return None
