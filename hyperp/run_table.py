"""The table of a sweep, runs.parquet: its columns, its statuses, and the names of the files beside it.

`hyperp.sweeps` writes the table and `hyperp.analysis` reads it; both take these names from here.
"""

from dataclasses import fields
from pathlib import Path

from hyperp.scale import Scale

NAME = "runs.parquet"

# How a run was made. `setting` is a hash of the rest of its configuration, without scale, rate and seed.
CONTEXT = ("optimizer", "parametrization", "schedule", "data", "metric", "setting")
# The sizes that a law may depend on, in the order of every table.
COVARIATES = tuple(field.name for field in fields(Scale))

ENDED = ("finished", "diverged", "failed")  # statuses of a record
DONE = ("finished", "diverged")  # running the sweep again does not repeat these
STATUSES = ("planned", "queued", "running", *ENDED, "lost")  # statuses of a row of the table
NOT_DONE = tuple(status for status in STATUSES if status not in DONE)

# Column of the table -> the monitored quantity whose largest value it holds; see `hyperp.monitoring`.
MONITOR_SUMMARIES = {
    "attention_z_max": "attention_z",
    "router_z_max": "router_z",
    "residual_rms_max": "residual_rms",
    "outlier_share": "outlier_share",
    "logit_max": "logit_max",
    "norm_over_radius_max": "norm_over_radius",
}
# Columns that say how a run went.
RESULTS = (
    *("loss", "bits_per_byte", "train_loss", "seconds", "tokens_per_second"),
    *MONITOR_SUMMARIES,
    *("max_vio", "monitor_looks"),
)
# Columns that follow from sizes, each with the sizes that it follows from.
DERIVED = {
    "steps": ("tokens", "batch_tokens"),
    "parameters": ("width", "depth", "granularity", "sparsity"),
    "flops": ("width", "depth", "granularity", "sparsity", "tokens", "parameters"),
}
# Columns of measured activations, in a run's coordinates.jsonl and in the table of `coordinates_beside`.
COORDINATES = ("step", "quantity", "layer", "rms", "change_rms")


def coordinates_beside(table: Path) -> Path:
    """runs.coordinates.parquet for runs.parquet: activations, a row per run, step, quantity and layer."""
    return table.with_suffix(".coordinates.parquet")


def metrics_beside(table: Path) -> Path:
    """runs.metrics.parquet for runs.parquet: monitored values, a row per run, step, quantity and layer."""
    return table.with_suffix(".metrics.parquet")
