"""The CSV that a chart of Weights & Biases exports: a column of steps, and "run - metric" for each run.

It has no settings; they come from the export of the run table, whose column Name has the same names.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hyperp.analysis.imports.logged import LoggedRun, Logs, Point, number_or_none
from hyperp.analysis.table.comma_separated import read_csv
from hyperp.analysis.table.read import read_table
from hyperp.analysis.table.statuses import holds_states, status_columns
from hyperp.analysis.table.stored import decoded, load_stored

BETWEEN = " - "
RANGES = ("__MIN", "__MAX")
NAME = "Name"
NOT_IN_TABLE = "runs of the chart that the run table does not have"
NOT_IN_CHART = "runs of the run table that the chart does not have"


def is_chart(header: Sequence[str]) -> bool:
    """Whether a CSV with this header is a chart: all columns but the first are a run's, with its range."""
    rest = set(header[1:])
    plain = [name for name in rest if not name.endswith(RANGES)]
    return bool(plain) and all(BETWEEN in n and {n + end for end in RANGES} <= rest for n in plain)


def chart_header(path: Path) -> list[str]:
    """The header of a CSV; empty if it has none."""
    text = decoded(load_stored(path))
    return next(csv.reader(io.StringIO(text, newline="")), [])


def read_chart(path: Path, run_table: Path | None) -> Logs:
    """A run for each run of the chart that the run table has, with the settings and the state of its row.

    Raises:
        ValueError: no run table, one without the column Name, or one that has a name twice.
    """
    if run_table is None:
        raise ValueError(
            f"{path} is a W&B chart, which has no settings; export the run table too, and give it as "
            "--config RUNS.csv"
        )
    table = read_table(run_table).frame
    if NAME not in table.columns:
        raise ValueError(f"{run_table} lacks the column {NAME}, by which the runs of a chart are found")
    repeated = table[NAME][table[NAME].duplicated()]
    if len(repeated):
        raise ValueError(f"{run_table} must have each {NAME} once, got {repeated.iloc[0]!r} twice")
    stored = load_stored(path)
    read_csv(stored)  # refuses what is malformed
    # An empty field is no value and NaN is one, which only the text tells apart.
    cells = pd.read_csv(io.StringIO(decoded(stored)), dtype=str, keep_default_na=False)
    return _runs(cells, table)


def _runs(cells: pd.DataFrame, table: pd.DataFrame) -> Logs:
    steps = [number_or_none(text) for text in cells.iloc[:, 0]]
    names = [str(name) for name in cells.columns[1:]]
    columns = [name for name in names if not name.endswith(RANGES)]
    states = [c for c in status_columns(list(map(str, table.columns))) if holds_states(table[c])]
    rows = {str(row[NAME]): row for row in table.to_dict("records")}
    runs, left_out, seen = [], Counter({"columns of ranges": len(names) - len(columns)}), set()
    for column in columns:
        run, _, metric = column.rpartition(BETWEEN)
        if run not in rows:
            left_out[NOT_IN_TABLE] += 1
            continue
        seen.add(run)
        values = zip(steps, map(number_or_none, cells[column]), strict=True)
        course = [Point(step, value) for step, value in values if step is not None and value is not None]
        settings = {str(k): v for k, v in rows[run].items() if k not in (metric, *states)}
        state = str(rows[run][states[0]]) if states else None
        runs.append(LoggedRun(run, settings, [metric], lambda _, course=course: course, state))
    left_out[NOT_IN_CHART] = len(rows) - len(seen)
    remarks = (f"steps from {cells.columns[0]}; settings and states by the column {NAME} of the run table",)
    return Logs(runs, remarks=remarks, left_out=+left_out)
