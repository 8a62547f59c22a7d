"""Claiming a run's folder: one process at a time does the run, and a run that is done is not repeated."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from hyperp.files import lock, remove_leftovers, replacing
from hyperp.rundir import failure, heartbeat, record
from hyperp.rundir.record import Record

LOCK = ".lock"


class Stopped(BaseException):
    """The run was asked to stop and has saved `step` to resume from. Not an Exception: nothing has failed.

    `saved` tells one saved state from another: a run that stops again and again with the same one gets
    nowhere.
    """

    def __init__(self, step: int, saved: int | None = None):
        super().__init__(f"stopped at step {step}, which is saved")
        self.step, self.saved = step, step if saved is None else saved


def completed_record(run_id: str, run_dir: Path) -> Record | None:
    """The record of a run that need not be done again. Raises ValueError if the folder is another run's."""
    try:
        ended = record.load(run_dir)
    except record.OtherSchemaError:
        raise
    except ValueError:  # damaged: it is set aside once this process holds the run
        return None
    if ended is not None and ended.run_id != run_id:
        raise ValueError(
            f"run_dir must be the folder of run {run_id}, got {run_dir}, which holds {ended.run_id}"
        )
    return None if ended is None or ended.status == "failed" else ended


def claim_run(run_id: str, values: dict[str, Any], run_dir: Path, held: ExitStack) -> Record | IO[str]:
    """Lock the run until `held` closes, clear its folder and write config.yaml; returns the open lock file.

    Returns its record instead if another process has done the run meanwhile. `values` are the configuration.

    Raises:
        HeldError: another process holds the run.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = held.enter_context(lock(run_dir / LOCK, f"run {run_id}"))
    record.load_or_set_aside(run_dir)
    ended = completed_record(run_id, run_dir)
    if ended is not None:
        return ended
    heartbeat.wait_for_silence(run_dir, f"run {run_id}")
    remove_leftovers(run_dir)
    failure.remove_errors(run_dir)
    with replacing(run_dir / "config.yaml") as config:
        OmegaConf.save(OmegaConf.create(values), config)
    return file
