"""What a law says at a target, and what missing an optimum costs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hyperp.analysis.law.schema import BasinRecord, Law
from hyperp.analysis.random_effects import t_quantile


def _exp(x: float) -> float:
    """Far outside what could be a rate or a size it is finite still."""
    return math.exp(min(max(x, -700.0), 700.0))


def predict(law: Law, target: Mapping[str, float], response: str = "lr") -> tuple[float, float, float]:
    """(value, low, high) of the prediction interval; `target` gives every covariate, the fixed ones too.

    `response` is lr, or what was tuned beside it.
    """
    found = law if response == "lr" else law.also[response]
    fixed = law.fixed if response == "lr" else {}
    x = np.array([1.0, *(math.log(target[name]) for name in found.exponents)])
    beta = np.array([found.a.value, *(e.value for e in found.exponents.values())])
    centre = float(x @ beta) + sum(b * math.log(target[name]) for name, b in fixed.items())
    variance = float(x @ np.array(found.covariance) @ x) + found.tau**2 + found.slice_sd**2
    if response == "lr" and law.rate_sd is not None:
        # A scatter in rates is a relative one here; the interval stays positive.
        variance += (law.rate_sd / _exp(centre)) ** 2
    half = t_quantile(found.df, law.level) * math.sqrt(max(variance, 0.0))
    return _exp(centre), _exp(centre - half), _exp(centre + half)


def penalty(basin: BasinRecord, displacement: float | Sequence[float]) -> float:
    """Relative excess loss where what is tuned lies `displacement` natural logs above its optimum.

    A displacement for each quantity of the law's `over`, the rate first; one number is the rate's, the others
    at their optimum. A cubic turns over far out on its
    shallow side; from there its quadratic part alone is used.
    """
    width = len(basin.powers[0])
    given = [displacement] if isinstance(displacement, float | int) else list(displacement)
    moved = [*given, *[0.0] * (width - len(given))]
    parts = [
        (sum(power), c * math.prod(d**p for d, p in zip(moved, power, strict=True)))
        for power, c in zip(basin.powers, basin.coef, strict=True)
    ]
    turned = sum(degree * part for degree, part in parts) < 0
    return max(sum(part for degree, part in parts if degree == 2 or not turned), 0.0)
