"""The table of a sweep, runs.parquet: its columns, the words of its status column, and the files beside it.

`hyperp.sweeps` writes the table and `hyperp.analysis` reads it; what both must know stands here, once.
"""

from dataclasses import fields
from pathlib import Path

from hyperp.scale import Scale

NAME = "runs.parquet"

# What a run was made with. `setting` is a hash of the rest of its configuration, less scale, rate and seed.
CONTEXT = ("optimizer", "parametrization", "schedule", "data", "metric", "setting")
# The sizes that a law may depend on, in the order of every table.
COVARIATES = tuple(field.name for field in fields(Scale))

ENDED = ("finished", "diverged", "failed")  # what a record says
DONE = ("finished", "diverged")  # running the sweep again leaves these alone
STATUSES = ("planned", "queued", "running", *ENDED, "lost")  # what a row of the table says
NOT_DONE = tuple(status for status in STATUSES if status not in DONE)

# Column of the table: which of a record's largest monitored values it holds; see `hyperp.monitoring`.
MONITOR_SUMMARIES = {
    "attention_z_max": "attention_z",
    "router_z_max": "router_z",
    "residual_rms_max": "residual_rms",
    "outlier_share": "outlier_share",
    "logit_max": "logit_max",
    "norm_over_radius_max": "norm_over_radius",
}
# What a run measured of its activations, in coordinates.jsonl and in the table of `coordinates_beside`.
COORDINATES = ("step", "quantity", "layer", "rms", "change_rms")


def coordinates_beside(table: Path) -> Path:
    """runs.coordinates.parquet for runs.parquet: activations, a row per run, step, quantity and layer."""
    return table.with_suffix(".coordinates.parquet")


def metrics_beside(table: Path) -> Path:
    """runs.metrics.parquet for runs.parquet: monitored values, a row per run, step, quantity and layer."""
    return table.with_suffix(".metrics.parquet")
