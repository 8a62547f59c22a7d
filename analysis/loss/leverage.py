"""Compute-efficiency leverage (CEL): the baseline's compute over that of another curve at equal loss.

CEL(L) = C_baseline(L) / C_other(L), from a law L(C) fitted to each curve (arXiv 2603.28743; arXiv 2507.17702
defines the same for experts). The ratio of two laws exists at any loss, but it comes from data only where
both curves were measured. So it is given where their losses overlap, and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.loss.bootstrap import Draws, ResamplingKind, bootstrap_loss
from hyperp.analysis.loss.fit import LossFit, fit_loss_law, predict_loss, published_parameters
from hyperp.analysis.loss.points import loss_points, suggested_run
from hyperp.analysis.vocabulary import LEVEL
from hyperp.validation import Strict

STEPS = 25  # number of losses at which the leverage is given, evenly spaced in the baseline's log compute


class LeverageRow(Strict):
    """The compute in FLOPs that each curve needs for one loss, and their ratio with its interval.

    `low` or `high` is None where the interval is unbounded.
    """

    loss: float
    baseline_flops: float
    other_flops: float
    leverage: float
    low: float | None
    high: float | None


class CurveRecord(Strict):
    """The law of one curve: its parameters E, A and b, the range that was measured, and how well it fits.

    `runs` is the number of its runs where the column `cluster` tells them apart, `clusters` that of groups
    of them that share points.
    """

    name: str
    parameters: dict[str, float]
    flops: tuple[float, float]
    losses: tuple[float, float]
    scatter: float
    points: int
    edges: int
    dropped: dict[str, int]
    cluster: str | None = None
    runs: int | None = None
    clusters: int | None = None
    at_bounds: list[str]
    converged: bool
    resampling: ResamplingKind


class Comparison(Strict):
    """The leverage of one curve over the baseline, from the highest common loss to the lowest.

    `at_largest` is the last row, at the largest compute at which both curves were measured. Without rows,
    `problem` says why.
    """

    other: CurveRecord
    overlap: tuple[float, float] | None
    rows: list[LeverageRow]
    at_largest: LeverageRow | None
    problem: str | None


class Leverage(Strict):
    """The baseline, its comparison with every other curve, and in `unfitted` why some curves have no law.

    `warnings` are about the table.
    """

    over: str
    baseline: CurveRecord
    metric: str
    resamples: int
    seed: int
    level: float
    comparisons: list[Comparison]
    unfitted: list[str]
    warnings: list[str] = Field(default_factory=list)
    records: str = ""
    records_sha256: str = ""


class FittedSeries:
    """A fitted curve with its resamples; `flops` and `losses` are the ends of its range, lowest first."""

    def __init__(self, name: str, fit: LossFit, draws: Draws):
        self.name, self.fit, self.draws = name, fit, draws
        flops = fit.points.x_Kn[0]
        self.flops = float(flops.min()), float(flops.max())
        ends = predict_loss(fit, fit.z_P[None], np.array([self.flops]))[0]
        self.losses = float(ends[1]), float(ends[0])

    def record(self) -> CurveRecord:
        """The record of the curve for the answer."""
        fit = self.fit
        values = published_parameters(fit, fit.z_P[None])[0].tolist()
        return CurveRecord(
            name=self.name,
            parameters=dict(zip(fit.names, values, strict=True)),
            flops=self.flops,
            losses=self.losses,
            scatter=fit.scatter,
            points=len(fit.points.loss_n),
            edges=fit.points.edges,
            dropped=fit.points.dropped,
            cluster=fit.points.cluster,
            runs=fit.points.runs,
            clusters=fit.points.clusters,
            at_bounds=list(fit.at_bounds),
            converged=fit.converged,
            resampling=self.draws.kind,
        )


def log_compute_at_loss(fit: LossFit, z_RP: np.ndarray, loss_m: np.ndarray) -> np.ndarray:
    """ln of the FLOPs (R, m) at which each law reaches each loss; infinite at or below its floor."""
    above = loss_m - z_RP[:, :1]
    with np.errstate(divide="ignore"):
        excess = np.where(above > 0, np.log(np.maximum(above, 0.0)), -np.inf)
    return np.log(fit.centre_K[0]) + (z_RP[:, 1:2] - excess) / z_RP[:, 2:3]


def compare_series(baseline: FittedSeries, other: FittedSeries, level: float = LEVEL) -> Comparison:
    """The leverage of one curve over the baseline where their fitted losses overlap."""
    low, high = max(baseline.losses[0], other.losses[0]), min(baseline.losses[1], other.losses[1])
    if low >= high:
        return Comparison(
            other=other.record(),
            overlap=None,
            rows=[],
            at_largest=None,
            problem=_no_overlap_reason(baseline, other),
        )
    ends = log_compute_at_loss(baseline.fit, baseline.fit.z_P[None], np.array([high, low]))[0]
    flops = np.exp(np.linspace(ends[0], ends[1], STEPS))
    losses = predict_loss(baseline.fit, baseline.fit.z_P[None], flops[None])[0]
    theirs = log_compute_at_loss(other.fit, other.fit.z_P[None], losses)[0]
    bounds = _interval(baseline, other, losses, level)
    rows = [
        LeverageRow(
            loss=float(losses[i]),
            baseline_flops=float(flops[i]),
            other_flops=float(np.exp(theirs[i])),
            leverage=float(flops[i] / np.exp(theirs[i])),
            low=_finite(bounds[0][i]),
            high=_finite(bounds[1][i]),
        )
        for i in range(STEPS)
    ]
    return Comparison(other=other.record(), overlap=(low, high), rows=rows, at_largest=rows[-1], problem=None)


def _interval(
    baseline: FittedSeries, other: FittedSeries, losses: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper percentile of the ratio at each loss.

    A law never reaches a loss below its floor. Where neither law reaches it, the ratio counts as zero in
    the even resamples and as infinite in the odd ones, which widens the interval.
    """
    ours = log_compute_at_loss(baseline.fit, baseline.draws.z_RP, losses)
    theirs = log_compute_at_loss(other.fit, other.draws.z_RP, losses)
    neither = np.isinf(ours) & np.isinf(theirs)
    either = np.where(np.arange(len(ours)) % 2, np.inf, -np.inf)[:, None]
    ratio = np.sort(np.where(neither, either, ours - np.where(neither, 0.0, theirs)), axis=0)
    tail = (1 - level) / 2 * (len(ratio) - 1)
    with np.errstate(over="ignore"):
        return np.exp(ratio[int(np.floor(tail))]), np.exp(ratio[int(np.ceil(len(ratio) - 1 - tail))])


def _finite(value: float) -> float | None:
    """The end of an interval, or None if it is unbounded."""
    return float(value) if 0 < value < np.inf else None


def _no_overlap_reason(baseline: FittedSeries, other: FittedSeries) -> str:
    """Why two curves cannot be compared, and what to run."""
    worse, better = sorted((baseline, other), key=lambda s: -s.losses[0])
    return (
        f"the losses of {baseline.name} ({baseline.losses[0]:.4g} to {baseline.losses[1]:.4g}) and of "
        f"{other.name} ({other.losses[0]:.4g} to {other.losses[1]:.4g}) do not overlap; run {worse.name} "
        f"beyond {worse.flops[1]:.3g} FLOPs or {better.name} below {better.flops[0]:.3g}"
    )


def _run_towards_overlap(baseline: FittedSeries, other: FittedSeries) -> dict[str, Any]:
    """A run at four times the compute of the worse curve, towards the losses of the better one."""
    worse = max((baseline, other), key=lambda s: s.losses[0])
    return suggested_run(worse.fit.points, flops=4 * worse.flops[1])


def compute_leverage(
    frame: pd.DataFrame,
    baseline: str,
    over: str = "optimizer",
    pins: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    cluster: str | None = None,
    level: float = LEVEL,
) -> tuple[Leverage, list[FittedSeries]]:
    """Compare the curves of all values of a column with that of one value.

    Args:
        frame: one row for each run, with `flops`, `loss` and the column `over`.
        baseline: the value that the others are compared with.
        over: the column whose values tell the curves apart.
        pins: a floor or an exponent to hold in the law of every curve, by name.
        resamples: number of resamples of each curve, for the intervals.
        seed: of the random numbers.
        cluster: the column that tells runs apart, see `loss_points`.
        level: coverage of the intervals.

    Returns:
        The answer, and the fitted curves, the baseline first.

    Raises:
        ValueError: the column or value is missing, the column has only one value, or the curves measure
            different losses.
        Refusal: the baseline cannot be fitted, or no other curve can be compared with it.
    """
    names = _series_names(frame, over, baseline)
    fitted: dict[str, Any] = {"pins": pins, "resamples": resamples, "seed": seed, "level": level}
    ordered = [baseline, *(n for n in names if n != baseline)]
    series, problems, points = _fit_series(frame, over, ordered, cluster, **fitted)
    found = [compare_series(series[0], one, level) for one in series[1:]]
    problems += [one.problem for one in found if one.problem]
    if not any(one.rows for one in found):
        apart = [_run_towards_overlap(series[0], one) for one in series[1:]]
        raise Refusal("; ".join(problems), [*points, *apart])
    answer = Leverage(
        over=over,
        baseline=series[0].record(),
        metric=series[0].fit.points.metric,
        resamples=resamples,
        seed=seed,
        level=level,
        comparisons=found,
        unfitted=problems[: len(names) - len(series)],
        warnings=[f"{one.name}: {line}" for one in series for line in one.fit.points.warnings],
    )
    return answer, series


def _fit_series(
    frame: pd.DataFrame,
    over: str,
    names: list[str],
    cluster: str | None,
    pins: Mapping[str, float] | None,
    resamples: int,
    seed: int,
    level: float,
) -> tuple[list[FittedSeries], list[str], list[dict[str, Any]]]:
    """The curves that can be fitted, baseline first; why the others cannot; the runs that would help."""
    series, problems, points = [], [], []
    text = frame[over].astype("string")
    for index, name in enumerate(names):
        try:
            fit = fit_loss_law(loss_points(frame.loc[text == name], "power", cluster=cluster), pins)
            draws = bootstrap_loss(fit, resamples, seed + index, level=level)
        except Refusal as refusal:
            problems.append(f"{over}={name}: {refusal.reason}")
            points += refusal.points
            if index == 0:
                raise Refusal(problems[0], refusal.points) from None
            continue
        series.append(FittedSeries(name, fit, draws))
    return series, problems, points


def _series_names(frame: pd.DataFrame, over: str, baseline: str) -> list[str]:
    """The sorted values of the column; ValueError where the curves cannot be compared."""
    if over not in frame.columns:
        raise ValueError(
            f"{argument('baseline')}: no column {over!r}; there are {', '.join(map(str, frame.columns))}"
        )
    names = sorted(str(v) for v in frame[over].dropna().unique())
    if baseline not in names:
        asked = argument("baseline", {over: baseline})
        raise ValueError(f"{asked} matches no row; {over} holds {', '.join(names[:20])}")
    if len(names) < 2:
        raise ValueError(f"{over} must have a value besides the baseline's, got {baseline} alone")
    for column in (c for c in ("metric", "data") if c in frame.columns and c != over):
        values = sorted(str(v) for v in frame[column].dropna().unique())
        if len(values) > 1:
            raise ValueError(
                f"{column} must be the same for every curve, got {', '.join(values[:6])}; "
                f"use {argument('where')}"
            )
    return names
