"""Runs of a project on Weights & Biases, through its public API."""

from typing import Any

from hyperp.analysis.imports.logged import History, LoggedRun, Logs, history_of, number_or_none
from hyperp.analysis.imports.packages import required
from hyperp.analysis.table.json_lines import flattened

STEP = "_step"


def read_wandb(project: str) -> Logs:
    """A run for each run of entity/project.

    Raises:
        ValueError: the package wandb is missing, or the project cannot be read, for lack of a key too.
    """
    library = required("wandb", "a project on Weights & Biases")
    try:
        return Logs([run_of_api(run) for run in library.Api().runs(project)])
    except (library.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the W&B project {project} cannot be read: {reason}") from None


def run_of_api(run: Any) -> LoggedRun:
    """A `wandb.apis.public.Run` as a run. Its summary has the last values, keys with _ are of W&B itself."""
    summary = flattened(_plain(run.summary))
    last = {
        key: number
        for key, value in summary.items()
        if not key.startswith("_") and (number := number_or_none(value)) is not None
    }

    def history(metric: str) -> History:
        return history_of(run.scan_history(keys=[STEP, metric]), metric, STEP)

    settings = flattened({key: value for key, value in run.config.items() if not key.startswith("_")})
    return LoggedRun(run.id, settings, list(last), history, run.state, last)


def _plain(value: Any) -> Any:
    """A summary as dictionaries; W&B's own classes for nested ones are no mappings."""
    return {key: _plain(one) for key, one in value.items()} if hasattr(value, "items") else value
