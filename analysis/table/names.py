"""Column names: those close to what somebody typed, and known columns under another spelling."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperp.analysis.errors import argument
from hyperp.near_names import letters_of
from hyperp.run_table import CONTEXT, COVARIATES, STATUSES

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd

# How other tools call the state of a run: Weights & Biases, MLflow and Optuna.
STATUS_WORDS = {
    "crashed": "failed",
    "killed": "failed",
    "preempted": "failed",
    "preempting": "running",
    "pending": "planned",
    "scheduled": "planned",
    "complete": "finished",
    "fail": "failed",
    "pruned": "failed",  # its last loss is that of a run which was stopped early
    "waiting": "planned",
}
STATE_NAMES = ("state", "status", "runstate", "runstatus")


def status_column(frame: "pd.DataFrame") -> str | None:
    """The one column that is called State or the like and holds nothing but states of runs.

    None if the table has a column status.
    """
    columns = list(map(str, frame.columns))
    named = [c for c in columns if letters_of(c) in STATE_NAMES]
    if "status" in columns or len(named) != 1:
        return None
    return named[0] if known_status(frame[named[0]]).isin(STATUSES).all() else None


def known_status(column: "pd.Series") -> "pd.Series":
    """The states of runs in our own words; other words stay as they are."""
    text = column.astype("string").str.strip().str.lower()
    known = text.replace(STATUS_WORDS)
    return known.where(known.isin(STATUSES), column).astype(object)


def unread_columns(frame: "pd.DataFrame", mapping: Mapping[str, str]) -> list[str]:
    """A remark for each varying column that is not read because a known name is spelled differently."""
    remarks = []
    for column in map(str, frame.columns):
        if letters_of(column) not in STATE_NAMES or "status" in frame.columns or column in mapping.values():
            continue
        words = known_status(frame[column])
        unknown = sorted({str(word) for word in words[~words.isin(STATUSES)]})
        if unknown and words.isin(STATUSES).any():
            remarks.append(
                f"column {column} is not read as status, so every run counts as finished: it holds "
                f"{', '.join(unknown[:3])}, and a status is one of {', '.join(STATUSES)}"
            )
    for known in ("seed", "base_lr", *COVARIATES, *CONTEXT):
        for column in map(str, frame.columns):
            same = letters_of(column) == letters_of(known) and column not in mapping.values()
            if known not in frame.columns and same and frame[column].nunique(dropna=False) > 1:
                remarks.append(
                    f"column {column} is not read as {known}; {argument('mapping', {known: column})} reads it"
                )
    return remarks
