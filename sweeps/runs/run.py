"""One run as a function of plain values, which local workers and Slurm jobs call."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperp.rundir import heartbeat, record
from hyperp.rundir.record import Record
from hyperp.sweeps.trainers import trainer_of
from hyperp.sweeps.trainers.protocol import Report

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def execute_run(
    config: dict[str, Any],
    run_dir: str,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Do a run, or what is left of it, with its trainer, and return its record as plain values.

    A process of several that writes no record returns how its part ended.
    """
    ended = trainer_of(config).execute(config, Path(run_dir), report, stop)
    return asdict(ended) if ended else {"status": "finished", "reason": None, "cause": None}


def forget_rank() -> None:
    """Remove the variables that would make this process one of several, as torchrun sets them."""
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def load_record(run_dir: Path) -> Record | None:
    """The record of a run folder, None without one.

    Raises ValueError if it is damaged or another run's, OSError if it cannot be read.
    """
    ended = record.load(run_dir)
    if ended is not None and ended.run_id != run_dir.name:
        raise ValueError(f"{run_dir / 'record.json'}: run_id must be {run_dir.name}, got {ended.run_id!r}")
    return ended


def record_dead_run(
    config: dict[str, Any],
    run_dir: str,
    reason: str,
    environment: dict[str, str] | None = None,
    cause: str | None = None,
) -> dict[str, Any]:
    """Write a `failed` record for a run whose process died, unless the run had ended; return its record.

    `environment` is where the run ran; None means here. `cause` is one of `hyperp.rundir.record.CAUSES`.
    """
    try:
        ended = load_record(Path(run_dir))
    except ValueError:
        ended = None
    if ended is None or ended.status == "failed":
        ended = trainer_of(config).record_failure(config, Path(run_dir), reason, environment, cause)
    return asdict(ended)


def remove_heartbeat(run_dir: Path) -> None:
    """Remove the heartbeat of a process that has ended, so that its run does not look running."""
    (run_dir / heartbeat.FILE).unlink(missing_ok=True)


def output_file_name(rank: int) -> str:
    """The file in a run's folder that the process `rank` prints to."""
    return f"output.{rank}.log" if rank else "output.log"


def redirect_output(run_dir: Path, name: str = output_file_name(0)) -> None:
    """Send everything this process prints, from C too, to a file of `run_dir`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = os.open(run_dir / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
