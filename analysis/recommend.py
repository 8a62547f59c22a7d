"""From a law and a target scale to a rate, its prediction interval and its factors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.law import Law, Strict
from hyperp.analysis.meta import t_quantile
from hyperp.analysis.published import PUBLISHED
from hyperp.analysis.vocabulary import COVARIATES


class Factor(Strict):
    """One factor of the law: contribution = value^exponent; the coefficient exp(a) has neither."""

    name: str
    value: int | None
    exponent: float | None
    low: float | None
    high: float | None
    fixed: bool
    contribution: float
    published: list[str]


class Extrapolation(Strict):
    """How far a covariate of the target lies outside the range it was fitted in; factor 1 is inside."""

    covariate: str
    value: int
    low: int
    high: int
    factor: float


class Recommendation(Strict):
    """A rate with its prediction interval.

    The interval is for the optimum that a slice like the fitted ones, with as many rates and seeds, would
    show at the target, if the law holds there. `base_lr` is None where the parametrization's factor differs
    between slices.
    """

    lr: float
    low: float
    high: float
    level: float
    df: int
    target: dict[str, int]
    context: dict[str, str]
    factors: list[Factor]
    extrapolation: list[Extrapolation]
    warnings: list[str]
    rate_factor: float | None
    base_lr: float | None


def predict(law: Law, target: Mapping[str, float]) -> tuple[float, float, float]:
    """(rate, low, high) of the prediction interval; `target` gives every covariate, the fixed ones too."""
    x = np.array([1.0, *(math.log(target[name]) for name in law.covariates)])
    beta = np.array([law.a.value, *(law.exponents[name].value for name in law.covariates)])
    centre = float(x @ beta) + sum(b * math.log(target[name]) for name, b in law.fixed.items())
    variance = float(x @ np.array(law.covariance) @ x) + law.tau**2 + law.slice_sd**2
    half = t_quantile(law.df, law.level) * math.sqrt(max(variance, 0.0))
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def recommend(law: Law, target: Mapping[str, int]) -> Recommendation:
    """The rate for a target scale.

    Args:
        law: the fitted law.
        target: sizes by covariate; those that the law holds constant may be left out.

    Raises:
        ValueError: an unknown covariate, a size that is not positive, or a covariate of the law left out.
        Refusal: a covariate at another value than the one the law holds it at.
    """
    scale = _complete(law, target)
    lr, low, high = predict(law, scale)
    extrapolation = [_extrapolation(law, name, scale[name]) for name in law.ranges]
    warnings = [
        f"{e.covariate}={e.value} lies {e.factor:.3g} times outside the fitted range {e.low} to {e.high}"
        for e in extrapolation
        if e.factor > 1
    ]
    return Recommendation(
        lr=lr,
        low=low,
        high=high,
        level=law.level,
        df=law.df,
        target=scale,
        context=law.context,
        factors=_factors(law, scale),
        extrapolation=extrapolation,
        warnings=warnings,
        rate_factor=law.rate_factor,
        base_lr=None if law.rate_factor is None else lr / law.rate_factor,
    )


def _complete(law: Law, target: Mapping[str, int]) -> dict[str, int]:
    for name, value in target.items():
        if name not in COVARIATES:
            raise ValueError(f"covariate must be one of {', '.join(COVARIATES)}, got {name!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        if name in law.held and value != law.held[name]:
            raise Refusal(
                f"the law holds {name} at {law.held[name]} in every slice and cannot say what {value} does; "
                f"fit again with --fix {name}=EXPONENT, or over runs where {name} varies",
                [{**law.context, **law.held, **target, "lr": []}],
            )
    needed = [name for name in law.ranges if name not in target]
    if needed:
        raise ValueError(
            f"the law needs {', '.join('--' + n.replace('_', '-') for n in needed)}: it varies with it"
        )
    scale = {**law.held, **target}
    return {name: int(scale[name]) for name in COVARIATES}


def _extrapolation(law: Law, name: str, value: int) -> Extrapolation:
    low, high = law.ranges[name]
    return Extrapolation(
        covariate=name, value=value, low=low, high=high, factor=max(1.0, value / high, low / value)
    )


def published_lines(name: str) -> list[str]:
    """The published exponents of a covariate, as text with domain and source."""
    return [f"{p.exponent:g} ({p.domain}; {p.source})" for p in PUBLISHED.get(name, ())]


def _factors(law: Law, scale: Mapping[str, int]) -> list[Factor]:
    plain: dict[str, Any] = {"value": None, "exponent": None, "published": []}
    coefficient = {
        "name": "exp(a)",
        "low": math.exp(law.a.low),
        "high": math.exp(law.a.high),
        "contribution": math.exp(law.a.value),
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
                published=published_lines(name),
            )
        )
    return factors


def hydra_words(law: Law, recommendation: Recommendation, named: Mapping[str, int]) -> str:
    """Override words for hyperp-train and hyperp-sweep: the base rate, and the sizes that were asked for.

    Raises:
        Refusal: lr/base_lr differs between the law's slices, so no base rate stands for the recommended one.
    """
    if recommendation.base_lr is None:
        raise Refusal(
            "lr/base_lr differs between the law's slices, so the base rate at the target is not known; "
            "sweep raw rates, every exponent of the parametrization zero"
        )
    words = [f"base_lr={recommendation.base_lr:.6g}"]
    words += [
        f"scale.{name}={recommendation.target[name]}"
        for name in COVARIATES
        if name in named or name in law.ranges
    ]
    return " ".join(words)
