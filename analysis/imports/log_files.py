"""Logs of one run each, JSON lines or CSV, with the run's configuration in a file beside each."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperp.analysis.imports.configurations import configuration_beside, read_configuration
from hyperp.analysis.imports.endings import with_early_ends
from hyperp.analysis.imports.logged import LoggedRun, Logs, history_of, number_or_none, step_key
from hyperp.analysis.table.comma_separated import read_csv
from hyperp.analysis.table.json_lines import flattened, parse_object
from hyperp.analysis.table.statuses import UNKNOWN
from hyperp.analysis.table.stored import Stored, decoded, load_stored

NO_CONFIGURATION = "logs without a configuration beside"
EMPTY = "logs without a line"
STATUS = "the logs keep no status: a run whose log is whole, as far as can be told, counts as finished"
CUT = "such a run was cut and counts as not finished"


@dataclass(frozen=True)
class LogLines:
    """The lines of a log as rows, and whether it ends within one, as that of a killed run may."""

    rows: Sequence[Mapping[str, Any]]
    cut: bool = False


def read_log_files(paths: Sequence[Path], config: str | None = None) -> Logs:
    """A run for each log.

    Args:
        paths: the logs.
        config: the name of the configuration beside each, else one of the usual names.

    Raises:
        ValueError: a malformed line, except a last one that was cut.
    """
    runs, courses, beside, steps = [], [], Counter[str](), Counter[str]()
    left_out, cut = Counter[str](), 0
    for path in paths:
        found, log = configuration_beside(path, config), read_log(path)
        if found is None or not log.rows:
            left_out[NO_CONFIGURATION if found is None else EMPTY] += 1
            continue
        beside[found.name] += 1
        cut += log.cut
        run = run_of_rows(str(path), read_configuration(found), log.rows, UNKNOWN if log.cut else None)
        steps[step_key(log.rows[0]) or "the number of the line"] += 1
        courses.append(steps_of(log.rows))
        runs.append(run)
    remarks = [f"configurations from {name} (logs: {count})" for name, count in sorted(beside.items())]
    remarks += [f"steps from {name} (logs: {count})" for name, count in sorted(steps.items())]
    remarks += [STATUS, *([f"logs that end within a line: {cut}; {CUT}"] if cut else [])]
    ended, early = with_early_ends(runs, courses)
    return Logs(ended, remarks=(*remarks, *early), left_out=left_out)


def steps_of(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The steps at which a run logged something; none where its log has no steps."""
    step = step_key(key for row in rows for key in row)
    found = [] if step is None else [number_or_none(row.get(step)) for row in rows]
    return [one for one in found if one is not None]


def run_of_rows(
    name: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], status: str | None
) -> LoggedRun:
    """A run from what it logged, a row each time."""
    step = step_key(key for row in rows for key in row)
    keys = dict.fromkeys(key for row in rows for key, v in row.items() if number_or_none(v) is not None)
    metrics = [key for key in keys if key != step]
    return LoggedRun(name, settings, metrics, lambda metric: history_of(rows, metric, step), status)


def read_log(path: Path) -> LogLines:
    """The lines of one log."""
    stored = load_stored(path)
    if stored.kind == "csv":
        records = read_csv(stored).to_dict("records")
        return LogLines([{str(name): value for name, value in row.items()} for row in records])
    if stored.kind == "jsonl":
        return log_lines(stored)
    raise ValueError(f"{path} must be a log in JSON lines or CSV, got {stored.kind}")


def log_lines(stored: Stored) -> LogLines:
    """The objects of JSON lines; ValueError for a malformed line that is not the last one."""
    lines = [(n, line) for n, line in enumerate(decoded(stored).split("\n"), start=1) if line.strip()]
    rows = []
    for number, line in lines:
        if number == lines[-1][0] and not stored.content.endswith(b"\n") and not _is_json(line):
            return LogLines(rows, cut=True)
        rows.append(flattened(parse_object(line, f"{stored.name}: line {number}")))
    return LogLines(rows)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True
