"""How far the optimum moves along one axis, and what it costs to keep the rate of the smallest size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperp.analysis.errors import argument
from hyperp.analysis.law.schema import OptimumRecord, SliceRecord
from hyperp.analysis.queries.points_file import sweep_point
from hyperp.analysis.random_effects import meta_regression, t_quantile
from hyperp.analysis.vocabulary import LEVEL, WINDOW, State
from hyperp.run_table import COVARIATES
from hyperp.validation import Strict


class TransferPoint(Strict):
    """The optimum at one value of the axis; its rates are None if there is none, and `reason` says why."""

    value: int | float
    state: State
    reason: str | None
    lr: float | None
    low: float | None
    high: float | None
    loss: float | None


class Drift(Strict):
    """The change of log2(optimum) per doubling of the axis; `basis` says where the interval comes from."""

    octaves_per_doubling: float
    se: float | None
    low: float | None
    high: float | None
    df: int | None
    basis: str


class TransferPenalty(Strict):
    """The excess loss at one value of the axis of training at the smallest value's optimal rate."""

    at: int | float
    rate_from: int | float
    lr: float
    nats: float
    percent: float
    method: str


class TransferAhead(Strict):
    """The drift extrapolated beyond the largest value of the axis.

    `octaves`, `low` and `high` say how far the optimum at `at` lies from the smallest value's, with the
    interval of the drift. `percent` is the relative excess loss there of the smallest value's optimal rate,
    by the basin of the largest value; `percent_low` and `percent_high` are its range over that interval. They
    are None without an interval or without a basin.
    """

    at: int | float
    octaves: float
    low: float | None
    high: float | None
    percent: float | None
    percent_low: float | None
    percent_high: float | None


class Transfer(Strict):
    """Transfer of one context (optimizer, parametrization, other sizes) along the axis.

    `excluded` are the values whose curves have no optimum; the drift is fitted without them, and `points`
    says why they have none. `penalties` are for every value above the smallest, `penalty` is that of the
    largest, and `ahead` extrapolates to larger values. All intervals cover `level`.
    """

    axis: str
    context: dict[str, str]
    held: dict[str, int | float]
    points: list[TransferPoint]
    drift: Drift | None
    penalty: TransferPenalty | None
    penalties: list[TransferPenalty]
    ahead: list[TransferAhead]
    excluded: list[int | float]
    problem: str | None
    level: float = LEVEL


EXTRAPOLATED_TO = (2.0, 4.0, 8.0)  # times the largest value of the axis


def measure_transfer(slices: Sequence[SliceRecord], over: str, level: float = LEVEL) -> list[Transfer]:
    """Measure the transfer along `over` in every group of slices that differ in nothing else.

    Raises:
        ValueError: `over` is not a covariate of the slices.
    """
    there = list(slices[0].covariates) if slices else list(COVARIATES)
    if over not in there:
        raise ValueError(f"{argument('over')} must be one of {', '.join(there)}, got {over!r}")
    groups: dict[tuple, list[SliceRecord]] = {}
    for one in slices:
        if one.covariates[over] == 0:  # no doubling leads there
            continue
        key = (*one.context.values(), *(v for n, v in one.covariates.items() if n != over))
        groups.setdefault(key, []).append(one)
    ordered = (sorted(group, key=lambda s: s.covariates[over]) for group in groups.values())
    return [
        _measure_group(group, over, level)
        for group in ordered
        if len({s.covariates[over] for s in group}) > 1
    ]


def points_further_along(slices: Sequence[SliceRecord], over: str) -> list[dict[str, Any]]:
    """The rates of the slice with the most of them, at twice and four times its value of the axis."""
    one = max(slices, key=lambda s: len(s.points))
    rates = sorted({p.lr for p in one.points})
    larger = [{**one.covariates, over: one.covariates[over] * times} for times in (2, 4)]
    return [sweep_point(one.context, sizes, rates, one.factor) for sizes in larger] if rates else []


def bracketing_points(slices: Sequence[SliceRecord], answers: Sequence[Transfer]) -> list[dict[str, Any]]:
    """The rates that would bracket the optima of curves without one."""
    over, held = answers[0].axis, [(a.context, a.held) for a in answers]
    return [
        sweep_point(s.context, s.covariates, s.next_rates, s.factor)
        for s in slices
        if s.next_rates and (s.context, {n: v for n, v in s.covariates.items() if n != over}) in held
    ]


def _measure_group(group: list[SliceRecord], over: str, level: float) -> Transfer:
    known = [(s, s.optimum) for s in group if s.optimum is not None and s.state == "bracketed"]
    drift = problem = None
    penalties: list[TransferPenalty] = []
    ahead: list[TransferAhead] = []
    if len(known) < 2:
        problem = f"{len(known)} of {len(group)} curves have an optimum, 2 are needed"
    else:
        drift = _fit_drift([s.covariates[over] for s, _ in known], [o for _, o in known], level)
        costs = [_penalty_at(known[0], later, over) for later in known[1:]]
        penalties = [cost for cost in costs if cost is not None]
        ahead = [_extrapolate(drift, known[0], known[-1], over, times) for times in EXTRAPOLATED_TO]
    return Transfer(
        axis=over,
        context=group[0].context,
        held={n: v for n, v in group[0].covariates.items() if n != over},
        points=[_transfer_point(s, over) for s in group],
        drift=drift,
        penalty=next((p for p in penalties if p.at == known[-1][0].covariates[over]), None),
        penalties=penalties,
        ahead=ahead,
        excluded=[s.covariates[over] for s in group if s.state != "bracketed"],
        problem=problem,
        level=level,
    )


Known = tuple[SliceRecord, OptimumRecord]


def _extrapolate(drift: Drift, first: Known, last: Known, over: str, times: float) -> TransferAhead:
    start, end = first[0].covariates[over], last[0].covariates[over] * times
    doublings = math.log2(end / start)
    moved = [
        None if d is None else d * doublings for d in (drift.octaves_per_doubling, drift.low, drift.high)
    ]
    octaves, low, high = moved
    assert octaves is not None
    cost = [None if m is None else _percent_of_loss(last[1], m) for m in moved]
    ends = [c for c in cost[1:] if c is not None]
    crosses = low is not None and high is not None and low < 0 < high
    return TransferAhead(
        at=end,
        octaves=octaves,
        low=low,
        high=high,
        percent=cost[0],
        percent_low=0.0 if crosses and ends else min(ends, default=None),
        percent_high=max(ends, default=None),
    )


def _percent_of_loss(best: OptimumRecord, octaves: float) -> float | None:
    """The excess loss, in percent, of a rate that many octaves from the optimum, by the basin's curvature."""
    if best.curvature is None or not best.loss:
        return None
    return 100 * best.curvature / best.loss * octaves**2


def _transfer_point(one: SliceRecord, over: str) -> TransferPoint:
    o = one.optimum if one.state == "bracketed" else None
    return TransferPoint(
        value=one.covariates[over],
        state=one.state,
        reason=one.reason if o is None else None,
        lr=None if o is None else o.lr,
        low=None if o is None else o.low,
        high=None if o is None else o.high,
        loss=None if o is None else o.loss,
    )


def _fit_drift(values: list[int | float], optima: list[OptimumRecord], level: float) -> Drift:
    x, y = np.log2(values), np.log2([o.lr for o in optima])
    errors = [o.se for o in optima]
    if len(optima) == 2:
        return _drift_between_two(x, y, optima, level)
    known = [s for s in errors if s is not None]
    se = np.array(known) if len(known) == len(errors) else None
    fit = meta_regression(y, se, np.column_stack([np.ones(len(x)), x]))
    low, high = fit.interval(level)
    return Drift(
        octaves_per_doubling=float(fit.beta[1]),
        se=float(fit.se[1]),
        low=float(low[1]),
        high=float(high[1]),
        df=fit.df,
        basis="random-effects regression over the curves",
    )


def _drift_between_two(x: np.ndarray, y: np.ndarray, optima: list[OptimumRecord], level: float) -> Drift:
    doublings = float(x[1] - x[0])
    drift = float(y[1] - y[0]) / doublings
    errors = [o.se for o in optima if o.se is not None]
    df = min(o.df for o in optima)  # their variances are pooled, so their degrees of freedom are the same
    if len(errors) < 2 or df < 1:
        basis = "unknown: no residual degrees of freedom"
        return Drift(octaves_per_doubling=drift, se=None, low=None, high=None, df=None, basis=basis)
    se = math.hypot(*errors) / doublings
    half = t_quantile(df, level) * se
    basis = "the two curves' own errors; scatter between curves cannot be seen with two"
    return Drift(octaves_per_doubling=drift, se=se, low=drift - half, high=drift + half, df=df, basis=basis)


def _penalty_at(first: Known, last: Known, over: str) -> TransferPenalty | None:
    rate, best = first[1].lr, last[1]
    if best.loss is None:
        return None
    if best.curvature is not None and abs(math.log2(rate / best.lr)) <= WINDOW:
        nats = best.curvature * math.log2(rate / best.lr) ** 2
        method = "the curvature of its basin"
    else:
        x = np.log2([p.lr for p in last[0].points])
        if not x[0] <= math.log2(rate) <= x[-1]:
            return None
        near = np.sort(np.argsort(np.abs(x - math.log2(rate)), kind="stable")[:3])
        # A chord would lie above the curve by a quarter of the cost of one octave.
        losses = np.array([last[0].points[i].loss for i in near])
        nats = max(_interpolate(x[near], losses, math.log2(rate)) - best.loss, 0.0)
        method = "interpolated between its measured rates"
    value = {"at": last[0].covariates[over], "rate_from": first[0].covariates[over]}
    return TransferPenalty(**value, lr=rate, nats=nats, percent=100 * nats / best.loss, method=method)


def _interpolate(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Lagrange's polynomial through up to three points."""
    others = [np.delete(x, i) for i in range(len(x))]
    return sum(float(y[i]) * float(np.prod((at - o) / (x[i] - o))) for i, o in enumerate(others))
