"""Coordinate check: how activations, and their change since initialisation, grow with the width.

A parametrization passes in muP's sense (arXiv 2203.03466) if neither grows at any of the first steps. The
size of an activation is its root mean square over a probe, as a run wrote it; its slope is
d log(size) / d log(width). If any seed diverged at a width, the verdict on every slope of that series is that
it diverged, whatever the other seeds did.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.read import read_table
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.vocabulary import FLAT_SLOPE, LEVEL
from hyperp.run_table import CONTEXT, COORDINATES, COVARIATES, coordinates_beside
from hyperp.validation import Strict

Measure = Literal["size", "change"]
Verdict = Literal["flat", "grows", "shrinks", "unclear", "diverged"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
ACTIVATIONS = {
    "attention": "attention output",
    "mlp": "MLP output",
    "residual": "residual stream",
    "logits": "logits",
}
REQUIRED_COLUMNS = ("run_id", *COORDINATES)


class SizeAtWidth(Strict):
    """Size at one width and step: geometric mean over seeds, with the smallest and the largest seed."""

    measure: Measure
    step: int
    width: int
    seeds: int
    mean: float
    low: float
    high: float


class Slope(Strict):
    """d log(size) / d log(width) at one step: the mean over the slopes of seeds, with its t interval.

    `value`, `low` and `high` are None where there are too few seeds; `seeds` counts those that have every
    width. `diverged` are the widths at which a run diverged or had a value that was not finite at this step.
    """

    measure: Measure
    step: int
    seeds: int
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    diverged: list[int]

    @property
    def text(self) -> str:
        """The verdict, or the widths that diverged."""
        return diverged_text(self.diverged) if self.diverged else self.verdict


class Activation(Strict):
    """One kind of activation of one series; `layer` is the block that it was taken from, the last one."""

    quantity: str
    layer: int | None
    sizes: list[SizeAtWidth]
    slopes: list[Slope]


class WidthSeries(Strict):
    """Runs that differ in width and seed only.

    `widths` are those of runs that finished, `diverged` those of runs that diverged; `left_out` counts the
    runs that cannot be used, by reason.
    """

    context: dict[str, str]
    held: dict[str, int | float]
    widths: list[int]
    kinds: list[Activation]
    left_out: dict[str, int]
    diverged: list[int]

    @property
    def name(self) -> str:
        """Parametrization and optimizer."""
        return ", ".join(filter(None, (self.context["parametrization"], self.context["optimizer"]))) or "runs"


def slope_verdict(low: float | None, high: float | None, tolerance: float) -> Verdict:
    """Flat if the whole interval lies within `tolerance` of 0, grows or shrinks if it lies wholly beyond."""
    if low is None or high is None:
        return "unclear"
    if low > tolerance:
        return "grows"
    if high < -tolerance:
        return "shrinks"
    return "flat" if -tolerance <= low and high <= tolerance else "unclear"


def diverged_text(widths: Sequence[int]) -> str:
    """Such as "diverged at width 256, 512"."""
    return f"diverged at width {', '.join(map(str, widths))}"


def read_coordinates(runs: Runs) -> pd.DataFrame:
    """Read the table of activations beside the table of runs, a row per run, step, quantity and layer.

    Raises:
        ValueError: the file does not exist, or one of the two tables lacks a column.
    """
    path = Path(runs.path)
    path = coordinates_beside(path / "runs.parquet" if path.is_dir() else path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; runs with runtime.coordinates=[1,2,4,8] measure activations, "
            "and `hyperp-sweep collect` writes them there"
        )
    frame = read_table(path).frame
    for name in REQUIRED_COLUMNS:
        if name not in frame.columns:
            raise ValueError(f"{path} lacks the column {name}; it has {', '.join(map(str, frame.columns))}")
    if "run_id" not in runs.frame.columns:
        raise ValueError(f"{runs.path} lacks the column run_id, which {path.name} names its runs by")
    return frame


def coordinate_check(
    runs: Runs,
    long: pd.DataFrame,
    where: Mapping[str, str] | None = None,
    tolerance: float = FLAT_SLOPE,
    level: float = LEVEL,
) -> list[WidthSeries]:
    """Sizes and slopes of every series of runs; a series whose runs all failed has no widths and no kinds.

    Args:
        runs: the table of runs.
        long: activations of the runs, from `read_coordinates`.
        where: only runs with these values in these columns.
        tolerance: a slope whose whole interval lies this close to 0 is flat.
        level: coverage of the intervals.

    Raises:
        ValueError: the tolerance is not positive and finite, or the table has no width.
        Refusal: no finished run has activations, or every series has one width.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"{argument('tolerance')} must be positive and finite, got {tolerance}")
    if "width" not in runs.frame.columns:
        name_it = argument("mapping", {"width": "COLUMN"})
        raise ValueError(f"{runs.path} lacks the column width; name it with {name_it}")
    frame = filter_runs(runs.frame, where or {})
    held = [n for n in (*COVARIATES, "base_lr") if n in frame.columns and n != "width"]
    keys = [*CONTEXT, *held]
    groups = [group for _, group in frame.groupby(keys, sort=True, dropna=False)]
    found = [_check_series(group, long, held, tolerance, level) for group in groups]
    found = [one for one in found if one is not None]
    most = max(found, key=lambda one: len(one.widths), default=None)
    if most is None or not most.widths:
        raise Refusal("no finished run has activations; run with runtime.coordinates=[1,2,4,8]")
    if len(most.widths) == 1:
        reason = f"width has one value, {most.widths[0]}, in every series; run the same sweep at others"
        raise Refusal(reason, [{**most.held, "width": most.widths[0] * k, "lr": []} for k in (2, 4)])
    return found


def _check_series(
    group: pd.DataFrame, long: pd.DataFrame, held: Sequence[str], tolerance: float, level: float
) -> WidthSeries | None:
    """None if no run of the group has activations."""
    measured = group["run_id"].isin(long["run_id"])
    if not measured.any():
        return None
    usable = measured & (group["status"] == "finished")
    left_out = group.loc[~usable, "status"].replace("finished", "no activations").value_counts()
    rows = long.merge(group.loc[usable, ["run_id", "width", "seed"]], on="run_id")
    last = rows.groupby(["run_id", "quantity"])["layer"].transform("max")
    rows = rows[(rows["layer"] == last) | last.isna()]
    first = group.iloc[0]
    diverged = sorted({int(width) for width in group.loc[group["status"] == "diverged", "width"]})
    return WidthSeries(
        context={name: str(first[name]) for name in CONTEXT},
        held={name: first[name].item() for name in held},
        widths=sorted(rows["width"].unique().tolist()),
        kinds=[
            _check_activation(quantity, rows[rows["quantity"] == quantity], diverged, tolerance, level)
            for quantity in ACTIVATIONS
            if (rows["quantity"] == quantity).any()
        ],
        left_out={str(name): int(count) for name, count in sorted(left_out.items())},
        diverged=diverged,
    )


def _check_activation(
    quantity: str, rows: pd.DataFrame, diverged: Sequence[int], tolerance: float, level: float
) -> Activation:
    layer = rows["layer"].max()
    sizes: list[SizeAtWidth] = []
    slopes: list[Slope] = []
    for measure, column in zip(MEASURES, ("rms", "change_rms"), strict=True):
        for step, at in rows.groupby("step"):
            if measure == "change" and step == 0:
                continue
            step = int(cast(Any, step))
            grid = at.pivot_table(index="seed", columns="width", values=column, aggfunc="mean", dropna=False)
            log = np.log(grid.where((grid > 0) & np.isfinite(grid)).to_numpy(dtype="float64"))
            widths = [int(width) for width in grid.columns]
            sizes += _sizes_over_seeds(measure, step, widths, log)
            lost = {int(width) for width in at.loc[~np.isfinite(at[column]), "width"]}
            slope = _fit_slope(measure, step, widths, log, tolerance, level)
            if gone := sorted(lost.union(diverged)):
                slope = slope.model_copy(update={"verdict": "diverged", "diverged": gone})
            slopes.append(slope)
    return Activation(
        quantity=quantity, layer=None if pd.isna(layer) else int(layer), sizes=sizes, slopes=slopes
    )


def _sizes_over_seeds(measure: Measure, step: int, widths: list[int], log: np.ndarray) -> list[SizeAtWidth]:
    """Sizes over seeds; `log` (seeds, widths) has logarithms, NaN where a run is missing or not finite."""
    found = []
    for width, column in zip(widths, log.T, strict=True):
        there = column[~np.isnan(column)]
        if len(there):
            ends = [float(np.exp(f(there))) for f in (np.mean, np.min, np.max)]
            found.append(
                SizeAtWidth(
                    measure=measure,
                    step=step,
                    width=width,
                    seeds=len(there),
                    mean=ends[0],
                    low=ends[1],
                    high=ends[2],
                )
            )
    return found


def _fit_slope(
    measure: Measure, step: int, widths: list[int], log: np.ndarray, tolerance: float, level: float
) -> Slope:
    """Fit a slope by least squares for each seed that has every width; their spread gives the interval."""
    complete = log[~np.isnan(log).any(axis=1)]
    seeds, value, low, high = len(complete), None, None, None
    if seeds and len(widths) > 1:
        x = np.log(widths) - np.mean(np.log(widths))
        slopes = complete @ x / (x @ x)
        value = float(slopes.mean())
        if seeds > 1:
            se = float(slopes.std(ddof=1)) / math.sqrt(seeds)
            half = t_quantile(seeds - 1, level) * se
            low, high = value - half, value + half
    return Slope(
        measure=measure,
        step=step,
        seeds=seeds,
        value=value,
        low=low,
        high=high,
        verdict=slope_verdict(low, high, tolerance),
        diverged=[],
    )
