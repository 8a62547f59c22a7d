"""How far the optimum moves along one axis, and what it costs to keep the rate of the smallest size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperp.analysis.errors import argument
from hyperp.analysis.law.hierarchy.estimate import BEND_SD, TAU_SD
from hyperp.analysis.law.hierarchy.law import slice_tables
from hyperp.analysis.law.records import BasinRecord, OptimumRecord, SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.law.seeds import exponents_by_seed
from hyperp.analysis.law.slice_records import slice_record
from hyperp.analysis.optima.likelihood.mode import NOISE
from hyperp.analysis.queries.check import TableOptima
from hyperp.analysis.queries.drift import (
    Drift,
    FittedDrift,
    hierarchical_drift,
    optima_tables,
    regressed_drift,
)
from hyperp.analysis.queries.points_file import sweep_point
from hyperp.analysis.queries.price import BasinPrice, interpolated_percent, own_parabola
from hyperp.analysis.vocabulary import LEVEL, LN2, WINDOW, State
from hyperp.run_table import COVARIATES
from hyperp.validation import Strict


class TransferPoint(Strict):
    """The optimum at one value of the axis; its rate is None if it is not bracketed, and `reason` says why.

    A curve that ends at its best rate has one of `low` and `high`, if its likelihood is known.
    """

    value: int | float
    state: State
    reason: str | None
    lr: float | None
    low: float | None
    high: float | None
    loss: float | None


class TransferPenalty(Strict):
    """The excess loss at one value of the axis of training at the smallest value's optimal rate.

    `octaves`, `low` and `high` say how far the optimum there lies from that rate, with its own interval.
    `percent_low` and `percent_high` are the interval of the relative excess loss, which holds the basin's
    error too where the method knows it. They are None where the optimum has no interval.
    """

    at: int | float
    rate_from: int | float
    lr: float
    nats: float
    percent: float
    method: str
    octaves: float
    low: float | None
    high: float | None
    percent_low: float | None
    percent_high: float | None


class TransferAhead(Strict):
    """The optimum beyond the largest value of the axis, and what the smallest value's rate costs there.

    `octaves`, `low` and `high` say how far the optimum at `at` lies from that rate, see `FittedDrift.moved`.
    `percent` is the relative excess loss there of the smallest value's optimal rate, by the basin at that
    size; `percent_low` and `percent_high` are its interval, as of a `TransferPenalty`. They are None without
    an interval of the optimum or without a basin.
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

    `excluded` are the values whose curves say nothing of the drift; `points` says why. `penalties` are for
    every bracketed value above the smallest, `penalty` is that of the largest, and `ahead` extrapolates to
    larger values. `basin` is the context's, None where the method fits no shape. All intervals cover `level`.
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
    basin: BasinRecord | None = None
    level: float = LEVEL


EXTRAPOLATED_TO = (2.0, 4.0, 8.0)  # times the largest value of the axis


@dataclass(frozen=True)
class _Curve:
    """A slice on the axis: its place in the input, its record, and the basin that its method fits."""

    place: int
    record: SliceRecord
    basin: BasinPrice | None

    @property
    def best(self) -> OptimumRecord | None:
        """The optimum, if rates on both sides are worse."""
        return self.record.optimum if self.record.state == "bracketed" else None


@dataclass(frozen=True)
class _Model:
    """How the drift is fitted, to the curves that `counts` says have a part in it."""

    fit: Callable[[list[_Curve]], FittedDrift]
    counts: Callable[[_Curve], bool]
    level: float


def measure_transfer(table: TableOptima, over: str) -> list[Transfer]:
    """Measure the transfer along `over` in every group of slices of a table that differ in nothing else.

    Raises:
        ValueError: `over` is not a covariate of the slices.
    """
    slices, found = table.slices, table.found
    request = replace(table.request, by=(over,))
    curves = [
        _Curve(i, slice_record(one, best), BasinPrice.of_method(found, i))
        for i, (one, best) in enumerate(zip(slices, found.optima, strict=True))
    ]

    def fit(used: list[_Curve]) -> FittedDrift:
        places = [one.place for one in used]
        sizes = [one.record.covariates[over] for one in used]
        if request.hierarchical:
            one_sided = sum(one.best is None for one in used)
            context = next(c for c in found.likelihoods if places[0] in c.members)
            noise_known = context.mode.log_noise_sd < 0.99 * NOISE[1]
            asked = request.tau_sd, request.bend_sd, request.level
            fitted = hierarchical_drift(slice_tables(found, places), sizes, *asked, one_sided, noise_known)
        else:
            fitted = regressed_drift(sizes, [b for one in used if (b := one.best)], request.level)
        scatter = (fitted.drift.scatter or 0.0) * LN2
        by_seed = exponents_by_seed(request, slices, found, places, scatter).get(over)
        return replace(fitted, drift=fitted.drift.model_copy(update={"by_seed": by_seed}))

    def counts(one: _Curve) -> bool:
        return one.record.optimum is not None if request.hierarchical else one.best is not None

    return _measure(curves, over, _Model(fit, counts, request.level))


def transfer_of_law(law: Law, over: str) -> list[Transfer]:
    """Measure the transfer along `over` in the slices that a law keeps, its own and others.

    A law has no runs any more. So the likelihood of an optimum is the normal one of its standard error,
    one-sided curves are left out, and other contexts than the law's are priced with the curvature alone.

    Raises:
        ValueError: as `measure_transfer`.
    """
    tau_sd = TAU_SD if law.tau_sd is None else law.tau_sd
    bend_sd = BEND_SD if law.bend_sd is None else law.bend_sd
    own = None if law.basin is None or law.over != ["lr"] else BasinPrice.of_record(law.basin)
    curves = [_Curve(i, one, own if one.context == law.context else None) for i, one in enumerate(law.slices)]

    def fit(used: list[_Curve]) -> FittedDrift:
        sizes = [one.record.covariates[over] for one in used]
        optima = [b for one in used if (b := one.best)]
        tables = optima_tables(optima) if law.method == "hierarchical" else None
        if tables is None:
            return regressed_drift(sizes, optima, law.level)
        return hierarchical_drift(tables, sizes, tau_sd, bend_sd, law.level)

    return _measure(curves, over, _Model(fit, lambda one: one.best is not None, law.level))


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


def _measure(curves: Sequence[_Curve], over: str, model: _Model) -> list[Transfer]:
    there = list(curves[0].record.covariates) if curves else list(COVARIATES)
    if over not in there:
        raise ValueError(f"{argument('over')} must be one of {', '.join(there)}, got {over!r}")
    groups: dict[tuple, list[_Curve]] = {}
    for one in curves:
        sizes = one.record.covariates
        if sizes[over] == 0:  # no doubling leads there
            continue
        key = (*one.record.context.values(), *(v for n, v in sizes.items() if n != over))
        groups.setdefault(key, []).append(one)
    ordered = (sorted(group, key=lambda c: c.record.covariates[over]) for group in groups.values())
    return [
        _measure_group(group, over, model)
        for group in ordered
        if len({c.record.covariates[over] for c in group}) > 1
    ]


def _measure_group(group: list[_Curve], over: str, model: _Model) -> Transfer:
    known = [one for one in group if one.best is not None]
    used = [one for one in group if model.counts(one)]
    fitted = problem = None
    penalties: list[TransferPenalty] = []
    ahead: list[TransferAhead] = []
    if len(known) < 2:
        problem = f"{len(known)} of {len(group)} curves have an optimum, 2 are needed"
    else:
        fitted = model.fit(used)
        costs = [_penalty_at(known[0], later, over, model.level) for later in known[1:]]
        penalties = [cost for cost in costs if cost is not None]
        largest = used[-1].record.covariates[over]
        ahead = [_extrapolate(fitted, known, over, largest * times) for times in EXTRAPOLATED_TO]
    return Transfer(
        axis=over,
        context=group[0].record.context,
        held={n: v for n, v in group[0].record.covariates.items() if n != over},
        points=[_transfer_point(one, over, model.counts(one)) for one in group],
        drift=None if fitted is None else fitted.drift,
        penalty=next((p for p in penalties if p.at == known[-1].record.covariates[over]), None),
        penalties=penalties,
        ahead=ahead,
        excluded=[one.record.covariates[over] for one in group if not model.counts(one)],
        problem=problem,
        basin=next((one.basin.basin for one in group if one.basin is not None), None),
        level=model.level,
    )


def _transfer_point(one: _Curve, over: str, counts: bool) -> TransferPoint:
    o = one.record.optimum if counts else None
    best = one.best
    return TransferPoint(
        value=one.record.covariates[over],
        state=one.record.state,
        reason=one.record.reason if best is None else None,
        lr=None if best is None else best.lr,
        low=None if o is None else o.low,
        high=None if o is None else o.high,
        loss=None if best is None else best.loss,
    )


def _extrapolate(fitted: FittedDrift, known: list[_Curve], over: str, end: float) -> TransferAhead:
    first, last = known[0], known[-1]
    assert first.best is not None
    octaves, low, high = fitted.moved(first.record.covariates[over], end, first.best.lr)
    basin = last.basin or own_parabola(last.record)
    cost = least = most = None
    if basin is not None:
        sizes = {**last.record.covariates, over: end}
        cost = basin.percent(sizes, octaves)
        least, most = basin.percent_range(sizes, octaves, low, high, fitted.level)
    return TransferAhead(
        at=end,
        octaves=octaves,
        low=low,
        high=high,
        percent=cost,
        percent_low=least,
        percent_high=most,
    )


def _penalty_at(first: _Curve, last: _Curve, over: str, level: float) -> TransferPenalty | None:
    start, best = first.best, last.best
    assert start is not None
    assert best is not None
    if best.loss is None:
        return None
    moved, low, high = (
        None if r is None else math.log2(r / start.lr) for r in (best.lr, best.low, best.high)
    )
    assert moved is not None
    sizes = last.record.covariates
    basin, method = last.basin, "the basin at this size"
    if basin is None and abs(moved) <= WINDOW:
        basin, method = own_parabola(last.record), "the curvature at its optimum"
    least = most = None
    if basin is None:  # a parabola holds near its bottom alone; further out the rates themselves say more
        method = "interpolated between its measured rates"
        percent = interpolated_percent(last.record, best.loss, start.lr)
    else:
        percent = basin.percent(sizes, moved)
        least, most = basin.percent_range(sizes, moved, low, high, level)
    if percent is None:
        return None
    return TransferPenalty(
        at=sizes[over],
        rate_from=first.record.covariates[over],
        lr=start.lr,
        nats=percent / 100 * best.loss,
        percent=percent,
        method=method,
        octaves=moved,
        low=low,
        high=high,
        percent_low=least,
        percent_high=most,
    )
