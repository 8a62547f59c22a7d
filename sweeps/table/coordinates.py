"""runs.coordinates.parquet: the activations that runs measured, beside the table of the sweep."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hyperp.files import replacing
from hyperp.run_table import coordinates_beside
from hyperp.rundir.metrics import COORDINATES, read_json_lines
from hyperp.terminal import one_line

COORDINATES_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), False),
        pa.field("step", pa.int64(), False),
        pa.field("quantity", pa.string(), False),
        pa.field("layer", pa.int64()),  # null for the logits
        pa.field("rms", pa.float64(), False),
        pa.field("change_rms", pa.float64(), False),
    ]
)


def write_coordinates(
    root: Path, run_ids: Sequence[str], table: Path, warn: Callable[[str], None]
) -> Path | None:
    """Write the rows of every run that has some; return the path.

    If no run has any, returns None and removes an earlier file. A file that cannot be read is left out, and
    `warn` is called with a line about it.
    """
    rows: list[dict[str, Any]] = []
    for run_id in run_ids:
        path = root / run_id / COORDINATES
        try:
            rows += [{"run_id": run_id} | row for row in _read_rows(path)]
        except (FileNotFoundError, NotADirectoryError):  # `table_row` warns of the latter
            continue
        except (ValueError, TypeError, KeyError, OSError) as error:
            warn(f"{path} is left out: {one_line(error)}")
    output = coordinates_beside(table)
    if not rows:
        output.unlink(missing_ok=True)
        return None
    with replacing(output, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=COORDINATES_SCHEMA), file)
    return output


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for row in read_json_lines(path):
        sizes = {name: float(row[name]) for name in ("rms", "change_rms")}  # "nan" and "inf" are text in JSON
        rows.append({"step": row["step"], "quantity": row["quantity"], "layer": row.get("layer")} | sizes)
    return rows
