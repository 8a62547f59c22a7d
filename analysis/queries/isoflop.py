"""Compute-optimal sizes: the parameters N* and tokens D* with the lowest loss at a budget C = 6 N D.

Two estimates of the same law N* = k C^b stand side by side, as in arXiv 2203.15556. Profiles: at every budget
the size with the lowest loss (its second approach), found like the best learning rate of a slice. The loss
surface: the law L(N, D) fitted to all runs (its third), which gives N* exactly.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.fit import fit_request
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.law.schema import Law
from hyperp.analysis.loss.allocation import FLOPS_PER_TOKEN, best_parameters, lowest_loss, parameter_exponent
from hyperp.analysis.loss.bootstrap import Draws, bootstrap_loss, percentiles
from hyperp.analysis.loss.fit import LossFit, fit_loss_law, published_parameters
from hyperp.analysis.loss.points import loss_points
from hyperp.analysis.loss.profiles import BUDGET, TOLERANCE, Profiles, isoflop_profiles, mixed_columns
from hyperp.analysis.queries.check import describe_table, find_optima
from hyperp.analysis.queries.isoflop_refusals import (
    in_sizes,
    require_narrow,
    require_near,
    unbracketed_refusal,
)
from hyperp.analysis.table.validate import Runs
from hyperp.analysis.vocabulary import DEFAULT_METHOD, LEVEL, MethodName
from hyperp.analysis.wording import format_interval
from hyperp.run_table import CONTEXT
from hyperp.validation import Strict

OFF = 0.05  # a 6 N D that misses the column of budgets by more is worth a warning


class Interval(Strict):
    """A value with its interval; `low` and `high` are None where nothing was resampled."""

    value: float
    low: float | None
    high: float | None


class ProfileOptimum(Strict):
    """One budget: how many sizes and runs it has, and its best size, or in `reason` why it has none.

    `low` and `high` are the interval of `parameters`; `tokens` is C / (6 N*).
    """

    budget: float
    sizes: int
    runs: int
    used: bool
    state: str
    reason: str | None
    parameters: float | None
    low: float | None
    high: float | None
    tokens: float | None
    loss: float | None


class Allocation(Strict):
    """N* and D* at the budget, and their exponents in compute, by one of the two ways."""

    parameters: Interval
    tokens: Interval
    exponent: Interval
    tokens_exponent: Interval


class SurfaceAllocation(Allocation):
    """By the loss surface: also its parameters, the loss at N* and D*, its points and its resamples."""

    law: dict[str, float]
    loss: Interval
    points: int
    runs: int | None
    resamples: int
    converged: bool
    at_bounds: list[str]


class ComputeOptimal(Strict):
    """The compute-optimal sizes at a budget.

    `by_profiles` has the prediction interval of one more profile at `budget`, with Student's t on `df`;
    `by_surface` percentiles over resamples, None where `surface_problem` says why. `budgets` is the range of
    the profiles that the law uses, and `outside` how many times the budget lies outside it. `agree` tells
    whether the intervals of the two overlap. `others` has the exponent by each other method, None where it
    gives none.
    """

    budget: float
    level: float
    by_profiles: Allocation
    df: int
    method: str
    others: dict[str, float | None]
    by_surface: SurfaceAllocation | None
    surface_problem: str | None
    agree: bool | None
    budgets: tuple[float, float]
    outside: float
    profiles: list[ProfileOptimum]
    grouped: str
    flops_ratio: tuple[float, float]
    rows: int
    dropped: dict[str, int]
    edges: int
    context: dict[str, str]
    warnings: list[str]
    mapping: dict[str, str]
    where: dict[str, str]
    records: str
    records_sha256: str


Fitted = tuple[ComputeOptimal, Law, LossFit | None, Draws | None]


def compute_optimal(
    frame: pd.DataFrame,
    budget: float,
    source: Mapping[str, Any],
    method: MethodName = DEFAULT_METHOD,
    level: float = LEVEL,
    extrapolate: bool = False,
    tolerance: float = TOLERANCE,
    resamples: int = 1000,
    seed: int = 0,
) -> Fitted:
    """The compute-optimal sizes at a budget, the law of the profiles, and the surface with its resamples.

    Args:
        frame: one row for each run; see `isoflop_profiles`.
        budget: the compute C in FLOPs.
        source: mapping, where, records and records_sha256 of the table.
        method: how the optima of the profiles are found.
        level: coverage of every interval.
        extrapolate: answer beyond `REACH` times the fitted budgets, and with a very wide interval.
        tolerance: budgets that differ by less than this fraction are one.
        resamples, seed: for the intervals of the surface; 0 leaves them out.

    Raises:
        ValueError: bad input; see `isoflop_profiles`.
        Refusal: the profiles do not identify N*, or not at so large a budget; names the runs that would help.
    """
    if not 0 < budget < np.inf:
        raise ValueError(f"{argument('budget')} must be a positive number of FLOPs, got {budget}")
    if not 0 < level < 1:
        raise ValueError(f"{argument('level')} must lie between 0 and 1, got {level}")
    profiles = isoflop_profiles(frame, tolerance)
    runs = _runs_of_sizes(profiles, source)
    law = _fit_profiles(profiles, runs, method, level)
    low, high = (float(end) for end in law.ranges[BUDGET])
    outside = max(1.0, budget / high, low / budget)
    by_profiles = _by_profiles(law, budget)
    if not extrapolate:
        require_near(profiles, law, budget, outside)
        require_narrow(profiles, law, budget)
    fit, draws, problem = _fit_surface(profiles, level, resamples, seed)
    by_surface = None if fit is None else _by_surface(fit, draws, budget)
    optima = [_profile_optimum(one) for one in law.slices]
    disagreement = [] if by_surface is None else _disagreement(by_profiles, by_surface)
    answer = ComputeOptimal(
        budget=budget,
        level=level,
        by_profiles=by_profiles,
        df=law.df,
        method=law.method,
        others={other.method: other.exponents.get(BUDGET) for other in law.beside},
        by_surface=by_surface,
        surface_problem=problem,
        agree=None if by_surface is None or by_surface.exponent.low is None else not disagreement,
        budgets=(low, high),
        outside=outside,
        profiles=optima,
        grouped=profiles.grouped,
        flops_ratio=profiles.ratio,
        rows=profiles.rows,
        dropped=profiles.dropped,
        edges=profiles.edges,
        context=profiles.context,
        warnings=[*_warnings(frame, profiles, law, outside, source), *_related(fit), *disagreement],
        **source,
    )
    return answer, law, fit, draws


def _runs_of_sizes(profiles: Profiles, source: Mapping[str, Any]) -> Runs:
    """The profiles as a table in which the number of parameters is what was tuned."""
    frame = profiles.frame
    columns = {"lr": frame["parameters"], BUDGET: frame[BUDGET], "loss": frame["loss"], "seed": frame["seed"]}
    columns |= {name: frame[name] for name in CONTEXT if name in profiles.context}
    table = pd.DataFrame(columns).reset_index(drop=True)
    return Runs(table, source["records"], source["records_sha256"], (BUDGET,), source["mapping"])


def _fit_profiles(profiles: Profiles, runs: Runs, method: MethodName, level: float) -> Law:
    """The law N* = k C^b of the profiles; a refusal of it in terms of sizes."""
    request = FitRequest((BUDGET,), {}, {}, method=method, level=level)
    try:
        return fit_request(runs, request)
    except Refusal as refusal:
        slices = describe_table(find_optima(runs, by=(BUDGET,), method=method)).slices
        raise unbracketed_refusal(profiles, slices, in_sizes(refusal.reason)) from None


def _by_profiles(law: Law, budget: float) -> Allocation:
    value, low, high = law.interval_at({BUDGET: budget})
    b = law.exponents[BUDGET]
    return _allocation(
        budget,
        Interval(value=value, low=low, high=high),
        Interval(value=b.value, low=b.low, high=b.high),
    )


def _allocation(budget: float, parameters: Interval, exponent: Interval) -> Allocation:
    """With D* = C / (6 N*): its interval is that of N* turned round."""
    per = budget / FLOPS_PER_TOKEN
    return Allocation(
        parameters=parameters,
        tokens=_turned(parameters, lambda n: per / n),
        exponent=exponent,
        tokens_exponent=_turned(exponent, lambda b: 1 - b),
    )


def _turned(one: Interval, falling: Any) -> Interval:
    """The interval of a falling function of a value."""
    low, high = (None if end is None else falling(end) for end in (one.high, one.low))
    return Interval(value=falling(one.value), low=low, high=high)


def _fit_surface(
    profiles: Profiles, level: float, resamples: int, seed: int
) -> tuple[LossFit | None, Draws | None, str | None]:
    """The loss surface of all runs with its resamples; without it, why there is none."""
    try:
        fit = fit_loss_law(loss_points(profiles.every, "chinchilla"))
        draws = bootstrap_loss(fit, resamples, seed, level=level) if resamples else None
    except Refusal as refusal:
        return None, None, refusal.reason
    return fit, draws, None


def _by_surface(fit: LossFit, draws: Draws | None, budget: float) -> SurfaceAllocation:
    at, best = np.array([budget]), fit.z_P[None]

    def interval(values_of: Any) -> Interval:
        value = float(values_of(best).ravel()[0])
        if draws is None:
            return Interval(value=value, low=None, high=None)
        low, high = percentiles(values_of(draws.z_RP).ravel(), draws.level)
        return Interval(value=value, low=float(low), high=float(high))

    found = _allocation(
        budget,
        interval(lambda z: best_parameters(fit, z, at)),
        interval(lambda z: parameter_exponent(fit, z)),
    )
    return SurfaceAllocation(
        **dict(found),
        law=dict(zip(fit.names, published_parameters(fit, best)[0].tolist(), strict=True)),
        loss=interval(lambda z: lowest_loss(fit, z, at)),
        points=len(fit.points.loss_n),
        runs=fit.points.runs,
        resamples=0 if draws is None else len(draws.z_RP),
        converged=fit.converged,
        at_bounds=list(fit.at_bounds),
    )


def _profile_optimum(one: SliceRecord) -> ProfileOptimum:
    best, budget = one.optimum, float(one.covariates[BUDGET])
    return ProfileOptimum(
        budget=budget,
        sizes=len({p.lr for p in one.points}),
        runs=sum(p.seeds for p in one.points),
        used=one.used,
        state=one.state,
        reason=None if one.reason is None else in_sizes(one.reason),
        parameters=None if best is None else best.lr,
        low=None if best is None else best.low,
        high=None if best is None else best.high,
        tokens=None if best is None else budget / FLOPS_PER_TOKEN / best.lr,
        loss=None if best is None else best.loss,
    )


def _disagreement(profiles: Allocation, surface: SurfaceAllocation) -> list[str]:
    """Where the intervals of profiles and surface do not overlap."""
    names = {"exponent": "the exponent of N*", "parameters": "N*"}
    lines = []
    for field, name in names.items():
        one, two = getattr(profiles, field), getattr(surface, field)
        if None in (one.low, one.high, two.low, two.high):
            continue
        if one.low > two.high or two.low > one.high:
            lines.append(
                f"profiles and surface disagree about {name}: {one.value:.4g} "
                f"({format_interval(one.low, one.high, 4)}) and {two.value:.4g} "
                f"({format_interval(two.low, two.high, 4)})"
            )
    return lines


def _related(fit: LossFit | None) -> list[str]:
    """A warning where several rows are of one run, which the intervals of the profiles do not know."""
    if fit is None or fit.points.cluster is None:
        return []
    return [
        f"the rows are of {fit.points.runs} runs ({fit.points.cluster}); the intervals of the surface "
        "resample whole runs, those of the profiles take every row for a run of its own"
    ]


def _warnings(
    frame: pd.DataFrame,
    profiles: Profiles,
    law: Law,
    outside: float,
    source: Mapping[str, Any],
) -> list[str]:
    lines = []
    mixed = mixed_columns(profiles.frame, [*profiles.context, *source["where"]])
    mixed = [name for name in mixed if name in frame.columns]
    if mixed:
        lines.append(
            f"one law is fitted to rows that differ in {', '.join(mixed)}; select with "
            f"{argument('where', {mixed[0]: str(profiles.frame[mixed[0]].mode().iloc[0])})}"
        )
    if outside > 1:
        low, high = law.ranges[BUDGET]
        lines.append(f"the budget lies {outside:.3g} times outside the fitted ones, {low:.4g} to {high:.4g}")
    least, most = profiles.ratio
    if most > 1 + OFF or least < 1 - OFF:
        lines.append(
            f"6 N D is {least:.3g} to {most:.3g} times the column budget, {_ratio_text(profiles, law)} at "
            "the best sizes; D* is C / (6 N*), which is off by as much"
        )
    if profiles.edges:
        lines.append(
            f"{profiles.edges} runs have the best learning rate at the edge of those tried, so their losses "
            "are too high"
        )
    return [*lines, *(in_sizes(line) for line in law.warnings)]


def _ratio_text(profiles: Profiles, law: Law) -> str:
    """The range of 6 N D over the budget at the best size of every profile that the law uses."""
    found = []
    for one in (one for one in law.slices if one.used and one.optimum is not None):
        assert one.optimum is not None
        own = profiles.frame[profiles.frame[BUDGET] == one.covariates[BUDGET]].sort_values("parameters")
        ratio = FLOPS_PER_TOKEN * own["parameters"] * own["tokens"] / own[BUDGET]
        found.append(float(np.interp(np.log(one.optimum.lr), np.log(own["parameters"]), ratio)))
    return f"{min(found):.3g} to {max(found):.3g}"
