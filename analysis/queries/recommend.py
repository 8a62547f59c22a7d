"""From a law and a target scale to a rate, its prediction interval and its factors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hyperp.analysis.errors import Refusal
from hyperp.analysis.files import Strict
from hyperp.analysis.law.schema import BasinRecord, Law, finite_exp
from hyperp.analysis.vocabulary import PUBLISHED_EXPONENTS, option_overrides, unknown_options
from hyperp.run_table import COVARIATES


class Factor(Strict):
    """One factor of the law: contribution = value^exponent; the coefficient exp(a) has neither."""

    name: str
    value: float | int | None
    exponent: float | None
    low: float | None
    high: float | None
    fixed: bool
    contribution: float
    published: list[str]


class Extrapolation(Strict):
    """How far a covariate of the target lies outside the range it was fitted in; factor 1 is inside."""

    covariate: str
    value: int | float
    low: int | float
    high: int | float
    factor: float


class TunedWithLr(Strict):
    """What was tuned beside the rate, with its prediction interval."""

    value: float
    low: float
    high: float


class Recommendation(Strict):
    """A rate with its prediction interval.

    The interval is for the optimum that a slice like the fitted ones, with as many rates and seeds, would
    show at the target, if the law holds there. `penalty_low` and `penalty_high` are the relative loss
    that the recommended rate would cost if the optimum lay at that end, and that of anything tuned beside it
    wherever in its own interval this costs most. `base_lr` is None where the
    parametrization's factor differs between slices. `also` is what was tuned beside the rate.
    """

    lr: float
    low: float
    high: float
    level: float
    df: int
    penalty_low: float | None
    penalty_high: float | None
    also: dict[str, TunedWithLr]
    target: dict[str, int | float]
    context: dict[str, str]
    factors: list[Factor]
    extrapolation: list[Extrapolation]
    warnings: list[str]
    rate_factor: float | None
    base_lr: float | None


WIDE = 30.0  # an interval with ends farther apart than this factor says little more than that rates exist


def recommend_rate(
    law: Law,
    target: Mapping[str, float],
    context: Mapping[str, str] | None = None,
    extrapolate: bool = False,
) -> Recommendation:
    """The rate for a target scale.

    Args:
        law: the fitted law.
        target: sizes by covariate; those that the law holds constant may be left out.
        context: optimizer, parametrization, schedule, data or metric that the rate is for, to be held against
            the law's.
        extrapolate: answer beyond the law's reach too.

    Raises:
        ValueError: an unknown covariate, a size that is not positive, or a covariate of the law left out.
        Refusal: another context than the law's, a covariate at another value than the one the law holds it
            at, or a target beyond the law's reach.
    """
    _same_context(law, context or {})
    scale = _complete(law, target)
    lr, low, high = law.interval_at(scale)
    extrapolation = [_extrapolation(law, name, scale[name]) for name in law.ranges]
    if not extrapolate:
        _within_reach(law, scale, extrapolation)
    also = {name: _beyond(law, scale, name) for name in law.also}
    intervals = {"lr": (low, high)} | {name: (b.low, b.high) for name, b in also.items()}
    basin = None if law.basin is None else law.basin.at(scale)
    return Recommendation(
        lr=lr,
        low=low,
        high=high,
        level=law.level,
        df=law.df,
        # The optimum at the low end leaves the recommended rate too high by that much; the high end, too low.
        penalty_low=None if basin is None else _worst(basin, math.log(lr / low), also),
        penalty_high=None if basin is None else _worst(basin, math.log(lr / high), also),
        also=also,
        target=scale,
        context=law.context,
        factors=_factors(law, scale),
        extrapolation=extrapolation,
        warnings=[*_outside(extrapolation), *_wide(intervals)],
        rate_factor=law.rate_factor,
        base_lr=None if law.rate_factor is None else lr / law.rate_factor,
    )


def _outside(extrapolation: Sequence[Extrapolation]) -> list[str]:
    return [
        f"{e.covariate}={e.value} lies {e.factor:.3g} times outside the fitted range {e.low} to {e.high}"
        for e in extrapolation
        if e.factor > 1
    ]


def _wide(intervals: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"the prediction interval of {name} spans a factor of {high / low:.2g}: the data hardly identify it; "
        "`hyperp-law next` says which runs would"
        for name, (low, high) in intervals.items()
        if high > WIDE * low
    ]


def refuse_wide_interval(law: Law, found: Recommendation) -> None:
    """Raise a Refusal, with the runs that would tell, where an interval spans more than a factor of WIDE."""
    from hyperp.analysis.queries.next_runs import next_runs  # which needs this module

    ends = {"lr": (found.low, found.high), **{n: (b.low, b.high) for n, b in found.also.items()}}
    if lines := _wide(ends):
        target = {name: found.target[name] for name in law.ranges}
        reason = f"{'; '.join(lines)}; --extrapolate prints it all the same"
        raise Refusal(reason, next_runs(law, target).points)


def _worst(basin: BasinRecord, end: float, also: Mapping[str, TunedWithLr]) -> float:
    """The cost of a displaced rate at whichever end of the other intervals makes it dearest."""
    others = [(0.0, math.log(b.value / b.low), math.log(b.value / b.high)) for b in also.values()]
    return max(basin.penalty((end, *rest)) for rest in itertools.product(*others))


def _beyond(law: Law, scale: Mapping[str, float], name: str) -> TunedWithLr:
    value, low, high = law.interval_at(scale, name)
    return TunedWithLr(value=value, low=low, high=high)


def _same_context(law: Law, asked: Mapping[str, str]) -> None:
    for name, value in asked.items():
        own = law.context.get(name, "")
        if value != own:
            has = f"was fitted for {name} {own!r}" if own else f"does not say its {name}"
            raise Refusal(
                f"the law {has} and cannot speak for {value!r}; fit one to runs of {value!r}",
                _same_slices(law, asked),
            )


def _same_slices(law: Law, asked: Mapping[str, str]) -> list[dict[str, Any]]:
    """The slices of the law again, for another optimizer or parametrization."""
    context = {n: v for n, v in {**law.context, **asked}.items() if v}
    return [
        {**context, **s.covariates, "lr": sorted({p.lr for p in s.points} or {s.optimum.lr})}
        for s in law.slices
        if s.used and s.optimum is not None
    ]


def _point(law: Law, sizes: Mapping[str, float]) -> dict[str, Any]:
    """A slice about the rate that the law gives, two octaves each side."""
    rate = law.interval_at(sizes)[0]
    rates = [float(f"{rate * 2.0**step:.4g}") for step in (-2, -1, 0, 1, 2)]
    point = {**{n: v for n, v in law.context.items() if v}, **law.held, **sizes, "lr": rates}
    return point if law.rate_factor is None else {**point, "factor": law.rate_factor}


def _within_reach(law: Law, scale: Mapping[str, float], extrapolation: list[Extrapolation]) -> None:
    far = [e for e in extrapolation if e.factor > law.reach]
    if not far:
        return
    worst = max(far, key=lambda e: e.factor)
    above = worst.value > worst.high
    edge = worst.high if above else worst.low
    middle = math.sqrt(edge * worst.value)  # or as far towards it as the law itself reaches
    size = min(middle, edge * law.reach) if above else max(middle, edge / law.reach)
    enough = worst.value / law.reach if above else worst.value * law.reach
    nearer = {**scale, worst.covariate: size}
    if isinstance(edge, int):
        nearer[worst.covariate] = round(nearer[worst.covariate])
    raise Refusal(
        f"{worst.covariate}={worst.value} lies {worst.factor:.3g} times outside the fitted range "
        f"{worst.low} to {worst.high}, and the law reaches {law.reach:g} times, "
        f"from a slice at {enough:.3g} {'or more' if above else 'or less'}: run one on the way there, "
        "or give --extrapolate",
        [_point(law, nearer)],
    )


def _complete(law: Law, target: Mapping[str, float]) -> dict[str, int | float]:
    known = [*dict.fromkeys((*COVARIATES, *law.ranges, *law.held))]
    for name, value in target.items():
        if name not in known:
            raise ValueError(f"covariate must be one of {', '.join(known)}, got {name!r}")
        if not 0 < value < math.inf or (name in COVARIATES and value < 1):
            raise ValueError(f"{name} must be at least 1, got {value}")
        if name in law.also:
            raise ValueError(f"{name} is what the law recommends, it must not be given, got {value}")
        if name not in law.ranges and value != law.held.get(name):
            has = f"holds {name} at {law.held[name]} in every slice" if name in law.held else f"has no {name}"
            raise Refusal(
                f"the law {has} and cannot say what {value} does; "
                f"fit again with --fix {name}=EXPONENT, or over runs where {name} varies",
                [_point(law, {**_whole_middle(law), **target})],
            )
    needed = [name for name in law.ranges if name not in target]
    if needed:
        words = [f"--{n.replace('_', '-')}" if n in COVARIATES else f"--at {n}=SIZE" for n in needed]
        raise ValueError(f"the law needs {', '.join(words)}: it varies with it")
    scale = {**law.held, **target}
    return {name: scale[name] for name in known if name in scale}


def _whole_middle(law: Law) -> dict[str, int | float]:
    """The middle of the law's slices, whole where its sizes are."""
    whole = {n: isinstance(low, int) for n, (low, _) in law.ranges.items()}
    return {n: round(v) if whole[n] else v for n, v in law.middle.items()}


def _extrapolation(law: Law, name: str, value: float) -> Extrapolation:
    low, high = law.ranges[name]
    return Extrapolation(
        covariate=name, value=value, low=low, high=high, factor=max(1.0, value / high, low / value)
    )


def published_exponents(name: str) -> list[str]:
    """The published exponents of a covariate, as text with domain and source."""
    return [f"{p.exponent:g} ({p.domain}; {p.source})" for p in PUBLISHED_EXPONENTS.get(name, ())]


def _factors(law: Law, scale: Mapping[str, float]) -> list[Factor]:
    plain: dict[str, Any] = {"value": None, "exponent": None, "published": []}
    coefficient = {
        "name": "exp(a)",
        "low": finite_exp(law.a.low),
        "high": finite_exp(law.a.high),
        "contribution": finite_exp(law.a.value),
    }
    factors = [Factor(fixed=False, **plain, **coefficient)]
    for name in law.ranges:
        estimate = law.exponents.get(name)
        exponent = law.fixed[name] if estimate is None else estimate.value
        factors.append(
            Factor(
                name=name,
                value=scale[name],
                exponent=exponent,
                low=None if estimate is None else estimate.low,
                high=None if estimate is None else estimate.high,
                fixed=estimate is None,
                contribution=scale[name] ** exponent,
                published=published_exponents(name),
            )
        )
    return factors


def hydra_overrides(law: Law, recommendation: Recommendation) -> str:
    """Override words for hyperp-train and hyperp-sweep: what the law is for, the base rate, and every size.

    The sizes that the law holds fixed too: of others, such as the defaults of hyperp-train, it knows nothing.

    Raises:
        ValueError: the law is for an optimizer that hyperp-train does not have, or there was no base_lr.
        Refusal: lr/base_lr differs between the law's slices, so no base rate stands for the recommended one.
    """
    if unknown := unknown_options(law.context):
        raise ValueError(
            f"--hydra: the law was fitted for {', '.join(unknown)}, which is no option of hyperp-train; "
            f"use the plain rate, lr={recommendation.lr:.6g}"
        )
    if recommendation.base_lr is None and all(s.factor is None for s in law.slices if s.used):
        raise ValueError(
            "--hydra: the law's table had no base_lr, or none in proportion to lr; "
            f"use the plain rate, lr={recommendation.lr:.6g}"
        )
    if recommendation.base_lr is None:
        raise Refusal(
            "lr/base_lr differs between the law's slices, so the base rate at the target is not known; "
            "sweep raw rates, every exponent of the parametrization zero",
            [_point(law, recommendation.target)],
        )
    words = option_overrides(law.context)
    words += [f"base_lr={recommendation.base_lr:.6g}"]
    words += [
        f"scale.{name}={recommendation.target[name]}" for name in COVARIATES if name in recommendation.target
    ]
    words += [f"scale.{n}={round(b.value)}" for n, b in recommendation.also.items() if n in COVARIATES]
    return " ".join(words)
