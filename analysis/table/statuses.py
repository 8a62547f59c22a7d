"""The states of runs in the words of other tools, and the column that holds them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hyperp.near_names import letters_of, listed_names
from hyperp.run_table import STATUSES

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd

# Only what finished has its last loss. A run that its scheduler, its user or a pruner ended did not, and what
# a run's own error ended failed: neither is a number.
WANDB = {"crashed": "failed", "killed": "failed", "preempted": "failed", "preempting": "running"}
MLFLOW = {"scheduled": "planned"}
OPTUNA = {"complete": "finished", "fail": "failed", "pruned": "failed", "waiting": "planned"}
RAY = {
    "pending": "planned",
    "paused": "queued",
    "restoring": "running",
    "terminated": "finished",  # so Ray Tune calls a trial that came to its end
    "error": "failed",
}
SLURM = {
    "boot_fail": "failed",
    "cancelled": "failed",
    "completed": "finished",
    "completing": "running",
    "configuring": "queued",
    "deadline": "failed",
    "node_fail": "failed",
    "out_of_memory": "failed",
    "requeued": "queued",
    "resizing": "running",
    "revoked": "failed",
    "stopped": "running",
    "suspended": "running",
    "timeout": "failed",
}
STATUS_WORDS: Mapping[str, str] = {**WANDB, **MLFLOW, **OPTUNA, **RAY, **SLURM}
UNKNOWN = "lost"  # what a word that nobody knows counts as: not finished, and no number
STATE_NAMES = ("state", "status", "runstate", "runstatus", "trialstate", "trialstatus", "jobstate")


def status_columns(columns: list[str]) -> list[str]:
    """The columns that are called State or the like, whatever path leads to them."""
    return [column for column in columns if letters_of(column.rpartition(".")[2]) in STATE_NAMES]


def holds_states(column: "pd.Series") -> bool:
    """Whether at least one word of the column is a known state of a run.

    A column State may as well hold those of a federation.
    """
    return bool(own_words(column).isin(STATUSES).any())


def own_words(column: "pd.Series") -> "pd.Series":
    """The states of runs in our own words; other words stay as they are.

    Enumerations may keep their class (`TrialState.COMPLETE`), and Slurm says who it was that cancelled a job
    (`CANCELLED by 1000`), and cuts a long word (`OUT_OF_ME+`).
    """
    text = column.astype("string").str.strip().str.lower()
    text = text.str.replace(r"^\w+\.", "", regex=True).str.replace(r" by \d+$", "", regex=True)
    text = text.str.replace(r"[ -]", "_", regex=True)
    text = text.map(_uncut, na_action="ignore")
    known = text.replace(dict(STATUS_WORDS))
    return known.where(known.isin(STATUSES), column).astype(object)


def _uncut(word: str) -> str:
    """The one word that begins like a word with a + at its end."""
    if not word.endswith("+"):
        return word
    whole = [one for one in (*STATUS_WORDS, *STATUSES) if one.startswith(word[:-1])]
    return whole[0] if len(whole) == 1 else word


def known_status(column: "pd.Series") -> tuple["pd.Series", str | None]:
    """The states of runs in our own words, and a line about those that nobody knows, which count as lost."""
    words = own_words(column)
    unknown = ~words.isin(STATUSES)
    if not unknown.any():
        return words, None
    missing = words[unknown].isna() | (words[unknown].astype("string").str.strip() == "")
    named = sorted({str(word) for word in words[unknown][~missing]})
    what = [f"no known status ({listed_names(named[:5])})"] if named else []
    what += ["no status"] if missing.any() else []
    count = int(unknown.sum())
    rows, verb = ("rows have", "count") if count > 1 else ("row has", "counts")
    line = f"{count} {rows} {' or '.join(what)}, and {verb} as not finished"
    return words.where(~unknown, UNKNOWN), line
