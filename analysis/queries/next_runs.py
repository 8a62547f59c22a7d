"""The runs that would shrink a law's prediction interval most, and the rates that would bracket an optimum.

A further slice at x adds x x'/v to the information of the coefficients, v the variance of a slice about
the law, and one degree of freedom; what counts is the width of the interval at the target (I-optimality
for one point). Slices are chosen one after the other, by how much they shrink that width for what they
cost. The cost is tokens times parameters, where both are known, plus that of a typical slice of the law:
without that, a great many tiny slices would always win, and they test the form of the law least.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.files import Strict
from hyperp.analysis.law.schema import Law, SliceRecord
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Number

BEYOND = 2  # octaves above the fitted range that a candidate may lie
AHEAD = 8.0  # the target, in times the largest fitted size, where none is given
SPAN = 1.5  # octaves of rates each side of the predicted optimum


class Choice(Strict):
    """A slice to run: sizes, rates, seeds, cost in that of the law's dearest slice, and the width after it.

    `width` is the ratio of the interval's ends at the target, once this slice and those before it are run.
    """

    covariates: dict[str, int | float]
    rates: list[float]
    seeds: int
    cost: float | None
    width: float


class NextRuns(Strict):
    """What to run: `bracket` are more rates for slices of the law that have none, as points."""

    target: dict[str, int | float]
    width: float
    choices: list[Choice]
    bracket: list[dict[str, Any]]
    points: list[dict[str, Any]]


def next_runs(
    law: Law,
    target: Mapping[str, Number] | None = None,
    count: int = 2,
    among: Sequence[Mapping[str, Number]] = (),
) -> NextRuns:
    """The `count` slices that shrink the prediction interval at `target` most for their cost.

    Args:
        law: the fitted law.
        target: a size for every covariate of the law; 8 times its largest fitted one where left out.
        count: how many slices.
        among: the sizes to choose from, such as those of a plan; a grid of octaves where left out. Those
            that the law has already, or that differ in what it holds fixed, are passed over.

    Raises:
        ValueError: a covariate that the law does not have, a size or a count out of range.
        Refusal: the slices lie exactly on the law, so no slice would shrink anything.
    """
    if count < 1:
        raise ValueError(f"--slices must be at least 1, got {count}")
    goal = _target(law, target or {})
    variance = law.tau**2 + law.slice_sd**2 or law.residual_sd**2
    if variance == 0:
        reason = "the slices lie exactly on the law: no further slice would shrink its interval"
        raise Refusal(f"{reason}; run one at the target to test it", [_at(law, goal)])
    used = [s for s in law.slices if s.used]
    candidates = _offered(law, used, among) if among else _candidates(law, used)
    choices = _choose(law, candidates, _row(law, goal), variance, count)
    bracket = [_point(law, s.covariates, s.next_rates, 1) for s in law.slices if _wants_rates(law, s)]
    return NextRuns(
        target=goal,
        width=_width(law, np.array(law.covariance), law.df, _row(law, goal), variance),
        choices=choices,
        bracket=bracket,
        points=[*bracket, *(_point(law, c.covariates, c.rates, c.seeds) for c in choices)],
    )


def _choose(
    law: Law, candidates: list[dict[str, Number]], x_target: np.ndarray, variance: float, count: int
) -> list[Choice]:
    """The slices that shrink the interval at `x_target` most for their cost, one after the other."""
    used = [s for s in law.slices if s.used]
    costs = [c for c in (_cost(s.covariates) for s in used) if c is not None]
    dearest, typical = (max(costs), float(np.median(costs))) if costs else (1.0, 1.0)
    cov, df = np.array(law.covariance), law.df
    choices: list[Choice] = []
    for _ in range(min(count, len(candidates))):
        now = _width(law, cov, df, x_target, variance)
        scored = []
        for sizes in candidates:
            new = _updated(cov, _row(law, sizes), variance)
            cost = _cost(sizes) if costs else None
            gain = math.log(now / _width(law, new, df + 1, x_target, variance))
            scored.append((gain / ((cost or 0.0) + typical), sizes, new, cost))
        _, sizes, cov, cost = max(scored, key=lambda s: s[0])
        candidates = [one for one in candidates if one is not sizes]
        df += 1
        choices.append(
            Choice(
                covariates=sizes,
                rates=_rates(law, used, sizes),
                seeds=max(1, *(s.optimum.seeds for s in used if s.optimum)),
                cost=None if cost is None else cost / dearest,
                width=_width(law, cov, df, x_target, variance),
            )
        )
    return choices


def _target(law: Law, given: Mapping[str, Number]) -> dict[str, Number]:
    for name, value in given.items():
        if name not in law.ranges:
            raise ValueError(f"target must be of the law's {', '.join(law.ranges)}, got {name!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    return {
        n: given.get(n, high * (AHEAD if n in law.exponents else 1)) for n, (_, high) in law.ranges.items()
    }


def _at(law: Law, goal: Mapping[str, Number]) -> dict[str, Any]:
    used = [s for s in law.slices if s.used]
    return _point(law, {**used[-1].covariates, **goal}, _rates(law, used, goal), 1)


def _candidates(law: Law, used: Sequence[SliceRecord]) -> list[dict[str, Number]]:
    """Sizes on a grid of octaves from the smallest fitted one to a little beyond the largest, none run yet.

    Nothing below the range: such slices are cheap, and far from every target that matters.
    """
    base = used[-1].covariates
    axes = []
    for name in law.covariates:
        low, high = law.ranges[name]
        span = range(math.floor(math.log2(high / low)) + BEYOND + 1)
        axes.append([_like(low, low * 2.0**k) for k in span])
    run = {tuple(s.covariates[n] for n in law.covariates) for s in used}
    return [
        {**base, **dict(zip(law.covariates, values, strict=True))}
        for values in itertools.product(*axes)
        if values not in run
    ]


def _offered(
    law: Law, used: Sequence[SliceRecord], among: Sequence[Mapping[str, Number]]
) -> list[dict[str, Number]]:
    """Those of `among` that are another slice of the same law."""
    known = used[-1].covariates
    run = {tuple(s.covariates[n] for n in law.covariates) for s in used}
    found = []
    for sizes in among:
        if unknown := sizes.keys() - known.keys():
            names = ", ".join(sorted(unknown))
            raise ValueError(f"--among must give sizes of the law's {', '.join(known)}, got {names}")
        whole = {**known, **sizes}
        fits = all(whole[n] == known[n] for n in known if n not in (*law.covariates, *law.fixed))
        if fits and tuple(whole[n] for n in law.covariates) not in run:
            found.append(whole)
    return found


def _like(model: Number, value: float) -> Number:
    return max(1, round(value)) if isinstance(model, int) else value


def _row(law: Law, sizes: Mapping[str, Number]) -> np.ndarray:
    return np.array([1.0, *(math.log(sizes[n]) for n in law.covariates)])


def _updated(cov: np.ndarray, x: np.ndarray, variance: float) -> np.ndarray:
    reach = cov @ x
    return cov - np.outer(reach, reach) / (variance + x @ reach)


def _width(law: Law, cov: np.ndarray, df: int, x: np.ndarray, variance: float) -> float:
    return math.exp(2 * t_quantile(df, law.level) * math.sqrt(max(float(x @ cov @ x), 0.0) + variance))


def _cost(sizes: Mapping[str, Number]) -> float | None:
    """Tokens times parameters; parameters from their column, or 12 width^2 depth; None where not known."""
    tokens = sizes.get("tokens", sizes.get("D"))
    parameters = sizes.get("parameters", sizes.get("N"))
    if parameters is None and "width" in sizes:
        parameters = 12 * sizes["width"] ** 2 * sizes.get("depth", 1)
    return None if tokens is None else float(tokens) * float(parameters or 1)


def _rates(law: Law, used: Sequence[SliceRecord], sizes: Mapping[str, Number]) -> list[float]:
    """Rates about the predicted optimum, as far apart as those of the law's slices."""
    steps = np.concatenate([np.diff(sorted({math.log2(p.lr) for p in s.points})) for s in used])
    step = float(np.clip(np.median(steps), 0.25, 1.0)) if len(steps) else 1.0
    half = math.ceil(SPAN / step)
    centre = law.interval_at(sizes)[0]
    return [float(f"{centre * 2.0 ** (step * k):.4g}") for k in range(-half, half + 1)]


def _wants_rates(law: Law, one: SliceRecord) -> bool:
    same = all(one.covariates.get(n) == v for n, v in law.held.items())
    return not one.used and bool(one.next_rates) and one.context == law.context and same


def _point(law: Law, sizes: Mapping[str, Number], rates: Sequence[float], seeds: int) -> dict[str, Any]:
    context = {n: v for n, v in law.context.items() if v}
    point = {**context, **sizes, "lr": list(rates), "seeds": seeds}
    return point if law.rate_factor is None else {**point, "factor": law.rate_factor}
