"""The target of a recommendation: whether a law applies there, and if not the runs that would help."""

import math
from collections.abc import Mapping
from typing import Any

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.points_file import sweep_point
from hyperp.run_table import COVARIATES
from hyperp.validation import Strict


class Extrapolation(Strict):
    """How many times a covariate of the target lies outside its fitted range; factor 1 is inside."""

    covariate: str
    value: int | float
    low: int | float
    high: int | float
    factor: float


def require_context(law: Law, asked: Mapping[str, str]) -> None:
    """Refuse an optimizer, parametrization, schedule, data or metric other than the law's."""
    for name, value in asked.items():
        own = law.context.get(name, "")
        if value != own:
            has = f"was fitted for {name} {own!r}" if own else f"does not say its {name}"
            raise Refusal(
                f"the law {has} and says nothing about {value!r}; fit a law to runs of {value!r}",
                [
                    sweep_point(
                        {**law.context, **asked},
                        s.covariates,
                        sorted({p.lr for p in s.points} or {s.optimum.lr}),
                    )
                    for s in law.slices
                    if s.used and s.optimum is not None
                ],
            )


def complete_target(law: Law, target: Mapping[str, float]) -> dict[str, int | float]:
    """The target with the sizes that every slice of the law has in common.

    Raises:
        ValueError: an unknown covariate, a size that is not positive, or a covariate of the law left out.
        Refusal: a covariate at another value than the one at which every slice of the law has it.
    """
    known = [*dict.fromkeys((*COVARIATES, *law.ranges, *law.held))]
    for name, value in target.items():
        if name not in known:
            raise ValueError(f"covariate must be one of {', '.join(known)}, got {name!r}")
        same = value == law.held.get(name)  # which may be 0, as a weight decay
        if not same and (not 0 < value < math.inf or (name in COVARIATES and value < 1)):
            raise ValueError(f"{name} must be at least 1, got {value}")
        if name in law.also:
            raise ValueError(f"{name} must be left out, since the law recommends it, got {value}")
        if name not in law.ranges and value != law.held.get(name):
            has = f"holds {name} at {law.held[name]} in every slice" if name in law.held else f"has no {name}"
            raise Refusal(
                f"the law {has} and cannot say what {value} does; "
                f"fit again with {argument('fix', {name: 'EXPONENT'})}, or with runs where {name} varies",
                [point_about_law(law, {**_middle_sizes(law), **target})],
            )
    needed = [name for name in law.ranges if name not in target]
    if needed:
        options = [argument(n, option=None if n in COVARIATES else f"--at {n}=SIZE") for n in needed]
        raise ValueError(f"the law needs {', '.join(options)}, since the rate varies with it")
    scale = {**law.held, **target}
    return {name: scale[name] for name in known if name in scale}


def extrapolations(law: Law, scale: Mapping[str, float]) -> list[Extrapolation]:
    """How far each covariate of the law lies outside its fitted range."""
    return [
        Extrapolation(
            covariate=name,
            value=scale[name],
            low=low,
            high=high,
            factor=max(1.0, scale[name] / high, low / scale[name]),
        )
        for name, (low, high) in law.ranges.items()
    ]


def require_reach(law: Law, scale: Mapping[str, float], found: list[Extrapolation]) -> None:
    """Refuse a target farther outside the fitted range than the law's largest extrapolation factor.

    The next point of the refusal lies halfway (in logs) between the range and the target, or as far towards
    it as the law reaches.
    """
    far = [e for e in found if e.factor > law.reach]
    if not far:
        return
    worst = max(far, key=lambda e: e.factor)
    above = worst.value > worst.high
    edge = worst.high if above else worst.low
    middle = math.sqrt(edge * worst.value)
    size = min(middle, edge * law.reach) if above else max(middle, edge / law.reach)
    enough = worst.value / law.reach if above else worst.value * law.reach
    point = max(1, round(size)) if isinstance(edge, int) else size
    bound = f"{enough:.3g} or {'more' if above else 'less'} is enough"
    step = f"{worst.covariate}={point:.7g}"
    if middle == size:
        advice = f"run a slice on the way there ({bound}), such as {step}"
    else:  # farther out the law cannot say at which rates
        advice = f"run a slice at {step}, as far as the law reaches, and go on from there ({bound})"
    raise Refusal(
        f"{worst.covariate}={worst.value} lies {worst.factor:.3g} times outside the fitted range "
        f"{worst.low} to {worst.high}, and the largest factor allowed is {law.reach:g}; {advice}, or give "
        f"{argument('extrapolate', True)}",
        [point_about_law(law, {**scale, worst.covariate: point})],
    )


def point_about_law(law: Law, sizes: Mapping[str, float]) -> dict[str, Any]:
    """A slice to run, with rates up to two octaves each side of the one that the law gives.

    What is tuned beside the rate is at its predicted optimum.
    """
    rate = law.interval_at(sizes)[0]
    rates = [float(f"{rate * 2.0**step:.4g}") for step in (-2, -1, 0, 1, 2)]
    return sweep_point(law.context, {**law.held, **sizes, **tuned_beside(law, sizes)}, rates, law.rate_factor)


def tuned_beside(law: Law, sizes: Mapping[str, float]) -> dict[str, float | int]:
    """The predicted optimum of everything that is tuned beside the rate, as a run can have it.

    Where all runs of the law have whole values, such as of batch_tokens, it is a multiple of what these have
    in common; otherwise it has four digits.
    """
    found: dict[str, float | int] = {}
    for name in law.also:
        value = law.interval_at(sizes, name)[0]
        run = [point.also[name] for s in law.slices for point in s.points if name in point.also]
        if name in COVARIATES or (run and all(v.is_integer() for v in run)):
            step = math.gcd(*(round(v) for v in run)) or 1
            found[name] = max(round(value / step), 1) * step
        else:
            found[name] = float(f"{value:.4g}")
    return found


def _middle_sizes(law: Law) -> dict[str, int | float]:
    """The middle of the law's slices, rounded where sizes are whole numbers."""
    whole = {n: isinstance(low, int) for n, (low, _) in law.ranges.items()}
    return {n: round(v) if whole[n] else v for n, v in law.middle.items()}
