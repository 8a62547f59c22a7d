"""What the stability monitors measured: columns of the table of runs, and a long table by step."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hyperp.files import replacing
from hyperp.run_table import MONITOR_SUMMARIES, metrics_beside
from hyperp.rundir.metrics import METRICS, read_json_lines
from hyperp.rundir.record import Record

SUMMARY_FIELDS = [pa.field(name, pa.float64()) for name in (*MONITOR_SUMMARIES, "max_vio")]
SUMMARY_FIELDS += [pa.field("monitor_looks", pa.int64())]
METRICS_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("layer", pa.int64()),
        pa.field("role", pa.string()),
        pa.field("value", pa.float64(), nullable=False),
    ]
)


def summary_columns(record: Record) -> dict[str, float | int | None]:
    """Each quantity's largest value over layers, roles and looks, and the number of looks.

    `max_vio` is the largest layer's mean over steps. None if the run was not monitored, does not have the
    quantity, or a value was not finite.
    """
    largest = record.stability.get("largest", {})
    found = {column: largest.get(name) for column, name in MONITOR_SUMMARIES.items()}
    vio = max(record.max_vio.get("mean", []), default=None)
    return {**found, "max_vio": vio, "monitor_looks": record.stability.get("looks")}


def write_metrics(root: Path, run_ids: Sequence[str], table: Path) -> Path | None:
    """Write NAME.metrics.parquet beside NAME.parquet and return its path.

    If no run was monitored, returns None and removes an earlier file. A row is one value: a quantity at a
    step, of a layer (from 0) or a role if it has one. Norms of single matrices stay in each run's
    metrics.jsonl.
    """
    path = metrics_beside(table)
    runs = ((run_id, rows) for run_id in run_ids if (rows := list(_read_rows(root / run_id))))
    first = next(runs, None)
    if first is None:
        path.unlink(missing_ok=True)
        return None
    with replacing(path, "wb") as file, pq.ParquetWriter(file, METRICS_SCHEMA) as writer:
        for run_id, rows in chain((first,), runs):
            # A row group for each run, so that reading few runs is cheap.
            writer.write_table(
                pa.table([[run_id] * len(rows), *zip(*rows, strict=True)], schema=METRICS_SCHEMA)
            )
    return path


def _read_rows(run_dir: Path) -> Iterator[tuple[int, str, int | None, str | None, float]]:
    """(step, quantity, layer, role, value) of everything that a run measured; nothing without monitors."""
    try:
        lines = list(read_json_lines(run_dir / METRICS))
    except (OSError, UnicodeDecodeError):
        return
    logged = [line for line in lines if isinstance(line, dict) and "step" in line]
    if any("stability" in line for line in logged):
        for line in logged:
            values = {**line.get("stability", {}), "max_vio": line.get("max_vio", [])}
            for quantity, layer, role, value in _flatten_values(values):
                yield line["step"], quantity, layer, role, float(value)


def _flatten_values(row: dict[str, Any]) -> Iterator[tuple[str, int | None, str | None, float | str]]:
    """(quantity, layer, role, value); a value that is not finite is text, as in the log."""
    for name, found in row.items():
        if name == "matrices":
            continue
        if isinstance(found, list):
            yield from ((name, layer, None, value) for layer, value in enumerate(found))
        elif not isinstance(found, dict):
            yield name, None, None, found
        else:
            for role, value in found.items():
                ends = value if isinstance(value, dict) else {"": value}
                yield from ((f"{name}_{end}".rstrip("_"), None, role, v) for end, v in ends.items())
