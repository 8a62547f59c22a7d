"""The table of a sweep, runs.parquet and runs.csv: one row for every run, whatever became of it."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hyperp import __version__
from hyperp.files import replacing
from hyperp.run_table import CONTEXT, COVARIATES
from hyperp.rundir.record import METRIC
from hyperp.scale import Scale
from hyperp.sweeps import console
from hyperp.sweeps.account import status
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_point
from hyperp.sweeps.plan.run_config import facts_of, run_of, setting_hash, trainer_name
from hyperp.sweeps.runs.status import Run
from hyperp.sweeps.table import monitors
from hyperp.sweeps.table.coordinates import write_coordinates
from hyperp.terminal import one_line

NULLABLE_STRINGS = ("reason", "cause", "block")
TABLE_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=name in NULLABLE_STRINGS)
        for name in ("run_id", "status", "reason", "cause", "block")
    ]
    + [pa.field(name, pa.string(), False) for name in CONTEXT]
    + [pa.field(name, pa.int64(), False) for name in (*COVARIATES, "seed")]
    + [pa.field(name, pa.float64(), False) for name in ("lr", "base_lr")]
    + [pa.field(name, pa.float64()) for name in ("loss", "bits_per_byte", "train_loss")]
    + [pa.field(name, pa.int64()) for name in ("steps", "parameters")]
    + [pa.field(name, pa.float64()) for name in ("flops", "seconds", "tokens_per_second")]
    + monitors.SUMMARY_FIELDS
    + [pa.field("version", pa.string(), False)]
)
ORDER = (
    "block",
    "optimizer",
    "parametrization",
    "schedule",
    "data",
    "setting",
    *COVARIATES,
    "seed",
    "base_lr",
    "run_id",
)


@dataclass(frozen=True)
class Collected:
    """What `collect` wrote: the table of `runs` (and the same as .csv), and the files beside it if any."""

    table: Path
    runs: list[Run]
    metrics: Path | None
    coordinates: Path | None


def collect(
    root: str | Path, output: str | Path | None = None, warn: Callable[[str], None] = console.warn
) -> Collected:
    """Write the table of every run below `root` as Parquet, and as CSV under the same name.

    `output` is ROOT/runs.parquet if not given. Values that stability monitors logged, by step, go beside it
    as .metrics.parquet, and measured activations as .coordinates.parquet, if any run has them. The same
    records give the same bytes. A run whose record cannot be read is a row with status `failed`, and `warn`
    is called with a line about it.

    Raises:
        ValueError: `output` does not end in .parquet, or `root` holds no runs.
    """
    root = Path(root)
    output = root / "runs.parquet" if output is None else Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"-o must end in .parquet, got {output}")
    runs, rows = status(root, warn=warn), []
    for run in runs:
        if run.damaged:
            warn(run.damaged)
        try:
            rows.append(table_row(root, run))
        except (ValueError, TypeError, OSError) as error:
            reason = one_line(error)
            warn(f"{run.run_id} has no row: neither its record nor its config.yaml can be read ({reason})")
    rows.sort(key=lambda values: [(values.get(name) is not None, values.get(name)) for name in ORDER])
    output.parent.mkdir(parents=True, exist_ok=True)
    schema = schema_of(rows)
    texts = [column.name for column in schema if column.type == pa.string()]
    rows = [{**row, **{n: str(row[n]) for n in texts if row.get(n) is not None}} for row in rows]
    with replacing(output, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    with replacing(output.with_suffix(".csv")) as file:
        writer = csv.DictWriter(file, schema.names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    run_ids = [values["run_id"] for values in rows]
    coordinates = write_coordinates(root, run_ids, output, warn)
    return Collected(output, runs, monitors.write_metrics(root, run_ids, output), coordinates)


def schema_of(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """TABLE_SCHEMA; with runs of commands, `trainer` and other columns too, and only sizes that some have."""
    if all(row.get("trainer", "hyperp") == "hyperp" for row in rows):
        return TABLE_SCHEMA
    fields = []
    for column in TABLE_SCHEMA:
        if column.name not in COVARIATES:
            fields.append(column)
        elif any(row.get(column.name) is not None for row in rows):
            fields.append(column.with_nullable(True))
    names = dict.fromkeys(name for row in rows for name in row if name not in TABLE_SCHEMA.names)
    for name in names:
        found = {type(row[name]) for row in rows if row.get(name) is not None}
        fields.append(pa.field(name, _column_type(found)))
    return pa.schema(fields)


def _column_type(found: set[type]) -> pa.DataType:
    if found <= {bool}:
        return pa.bool_()
    if found <= {int}:
        return pa.int64()
    return pa.float64() if found <= {int, float} else pa.string()


def table_row(root: Path, run: Run) -> dict[str, Any]:
    """The columns of one run. Raises ValueError, TypeError or OSError if no file says what the run is."""
    common = {name: getattr(run, name) for name in ("run_id", "status", "reason", "cause", "block")}
    if run.record is None:
        return common | _columns_of_plan(run.planned or _planned_by_folder(root / run.run_id))
    ended = run.record
    sizes = asdict(Scale(**ended.scale)) if ended.trainer == "hyperp" else ended.scale
    found = common | sizes | {"setting": setting_hash(ended.config)}
    found |= monitors.summary_columns(ended)
    found |= {
        name: getattr(ended, name)
        for name in TABLE_SCHEMA.names
        if name not in found and hasattr(ended, name)
    }
    if ended.trainer == "hyperp":
        return found
    return found | ended.others | {"trainer": ended.trainer}


def _columns_of_plan(planned: planfile.Planned) -> dict[str, Any]:
    config = planned.config
    if trainer_name(config) == "command":
        facts = facts_of(run_of(config))
        own = {"setting": setting_hash(config), "trainer": "command", "version": __version__}
        return facts.columns() | own
    return {
        "optimizer": config["optim"]["name"],
        "parametrization": config["parametrization"]["name"],
        "schedule": config["schedule"]["shape"],
        "data": config["data"]["source"],
        "metric": METRIC,
        "setting": setting_hash(config),
        **asdict(Scale(**config["scale"])),
        "seed": config["seed"],
        "lr": planned.lr,
        "base_lr": config["base_lr"],
        "version": __version__,
    }


def _planned_by_folder(run_dir: Path) -> planfile.Planned:
    """A run without a plan, as planned by the config.yaml that it wrote when it began."""
    path = run_dir / "config.yaml"
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping, got {values!r}")
    config = run_of({str(key): value for key, value in values.items()})
    return planfile.planned_point(make_point((), (), config), "")
