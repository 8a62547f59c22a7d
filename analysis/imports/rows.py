"""A row for each run of a tracker: its settings, its state and one value of one metric."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.imports.logged import At, LoggedRun, Logs
from hyperp.analysis.table.spellings import is_spelling
from hyperp.analysis.table.statuses import UNKNOWN, own_words
from hyperp.near_names import close_names, listed_names

OWN = ("run_id", "status", "loss")


@dataclass(frozen=True)
class Rows:
    """The table, the metric that its column loss holds, and what was left out by reason."""

    frame: pd.DataFrame
    metric: str
    left_out: Mapping[str, int]


def rows_of_logs(logs: Logs, metric: str | None, at: At, keys: Collection[str]) -> Rows:
    """A row for each run. A finished run whose last value is not finite is diverged.

    Args:
        logs: the runs.
        metric: the metric that is the loss; the source's own objective, or the one that is called so, unless
            given.
        at: which value of it.
        keys: the settings to keep; all unless given.

    Raises:
        ValueError: no runs, no such metric or several, or a key that no run has.
    """
    if not logs.runs:
        left = "; ".join(f"{reason}: {count}" for reason, count in logs.left_out.items())
        raise ValueError(
            f"{argument('source', option='SOURCE')} holds no runs" + (f"; left out: {left}" if left else "")
        )
    _require_keys(logs.runs, keys)
    chosen = _metric(logs, metric)
    rows, left_out = [], Counter(logs.left_out)
    for run in logs.runs:
        row = _row(run, chosen, at, keys)
        if row["status"] == "finished" and row["loss"] is None:
            place = "" if at.kind == "last" else f" at {at}"
            left_out[f"finished runs without a value of {chosen}{place}"] += 1
        else:
            rows.append(row)
    if others := {name for run in logs.runs for name in run.metrics} - {chosen}:
        named = f"{', '.join(sorted(others)[:4])}{', ...' if len(others) > 4 else ''}"
        left_out[f"other metrics ({named})"] = len(others)
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)))
    return Rows(_with_numbers(frame), chosen, left_out)


def _row(run: LoggedRun, metric: str, at: At, keys: Collection[str]) -> dict[str, Any]:
    value = run.value(metric, at)
    status = "finished" if run.status is None else own_words(pd.Series([run.status])).iloc[0]
    if status == "finished" and (run.blew_up(metric) or (value is not None and not math.isfinite(value))):
        status = "diverged"
    elif status == "finished" and run.ended_early:
        status = UNKNOWN
    kept = {name: v for name, v in run.settings.items() if not keys or name in keys}
    settings = {f"config.{name}" if name in OWN else name: v for name, v in kept.items()}
    return {"run_id": run.name, **settings, "status": status, "loss": value}


def _require_keys(runs: Sequence[LoggedRun], keys: Collection[str]) -> None:
    there = list(dict.fromkeys(name for run in runs for name in run.settings))
    for key in keys:
        if key not in there:
            near = close_names(key, there)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed_names(there)}"
            asked = argument("config_keys", key, option="--config-key")
            raise ValueError(f"{asked}: no run has this setting; {hint}")


def _metric(logs: Logs, given: str | None) -> str:
    there = list(dict.fromkeys(name for run in logs.runs for name in run.metrics))
    if given is not None:
        if given not in there:
            raise ValueError(
                f"{argument('metric', given)}: no run logged it; there are {listed_names(there)}"
            )
        return given
    if logs.metric is not None:
        return logs.metric
    found = [name for name in there if is_spelling(name, "loss")]
    if len(found) == 1:
        return found[0]
    ways = " or ".join(argument("metric", name) for name in found)
    if found:
        raise ValueError(f"the loss may be {' or '.join(found)}; say {ways}")
    asked = argument("metric", "NAME")
    raise ValueError(f"no metric is called a loss; name it with {asked}; there are {listed_names(there)}")


def _with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of text that hold nothing but numbers, as MLflow keeps all settings, as numbers."""
    found = {}
    for name in frame.columns.difference(["run_id", "status"]):
        column = frame[name]
        if column.dtype == bool or pd.api.types.is_numeric_dtype(column):
            continue
        plain = column[column.notna()]
        if len(plain) and not plain.map(lambda one: isinstance(one, bool)).any():
            number = pd.to_numeric(plain, errors="coerce")
            if number.notna().all():
                found[name] = pd.to_numeric(column, errors="coerce")
    return frame.assign(**found)
