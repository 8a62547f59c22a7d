"""The runs that would shrink a law's prediction interval most, and the rates that would bracket an optimum.

One more slice at x adds x x'/v to the information about the coefficients, where v is the variance of a slice
about the law; see `knowledge`. The criterion is the width of the interval at the target
(I-optimality for one point). Slices are chosen one after the other, by how much each shrinks that width for
its cost. The cost is tokens times parameters, where both are known, plus that of a typical slice of the law.
Without the typical slice, many tiny slices would always win, and those test the form of the law least.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.answers import Answer
from hyperp.analysis.errors import Refusal, argument, points_frame
from hyperp.analysis.law.schema import Law, SliceRecord
from hyperp.analysis.queries.knowledge import Knowledge, law_knowledge
from hyperp.analysis.queries.points_file import sweep_point
from hyperp.analysis.table.slices import Number
from hyperp.validation import Strict

OCTAVES_ABOVE_RANGE = 2  # of the largest candidate size
DEFAULT_TARGET = 8.0  # times the largest fitted size
OCTAVES_OF_RATES = 1.5  # each side of the predicted optimum


class NextSlice(Strict):
    """A slice to run: its sizes, rates, seeds, and cost relative to the law's most expensive slice.

    `width` is the ratio of the interval's ends at the target after this slice and those before it have run.
    """

    covariates: dict[str, int | float]
    rates: list[float]
    seeds: int
    cost: float | None
    width: float


class NextRuns(Answer, Strict):
    """What to run.

    `width` is the present ratio of the interval's ends at the target. `choices` are the new slices, `bracket`
    the points that add rates to slices of the law without an optimum, and `points` all of them.
    """

    target: dict[str, int | float]
    width: float
    choices: list[NextSlice]
    bracket: list[dict[str, Any]]
    points: list[dict[str, Any]]

    def headline(self) -> str:
        """The width of the interval at the target, now and after the new slices."""
        target = ", ".join(f"{name} {value:.6g}" for name, value in self.target.items())
        then = f", {self.choices[-1].width:.3g} after these runs" if self.choices else ""
        return f"The ends of the interval at {target} are a factor of {self.width:.3g} apart{then}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each slice and rate to run."""
        return points_frame(self.points)


def next_runs(
    law: Law,
    target: Mapping[str, Number] | None = None,
    count: int = 2,
    among: Sequence[Mapping[str, Number]] = (),
) -> NextRuns:
    """Choose the `count` slices that shrink the prediction interval at `target` most for their cost.

    Args:
        law: the fitted law.
        target: a size for every covariate of the law; 8 times its largest fitted one by default.
        count: how many slices.
        among: the sizes to choose from, such as those of a plan; a grid of octaves by default. Sizes that
            the law already has, or that differ in what all its slices share, are skipped.

    Raises:
        ValueError: a covariate that the law does not have, or a size or count out of range.
        Refusal: the slices lie exactly on the law, so no slice would shrink the interval.
    """
    if count < 1:
        raise ValueError(f"{argument('count')} must be at least 1, got {count}")
    goal = _complete_target(law, target or {})
    knowledge = law_knowledge(law)
    if knowledge.exact:
        reason = "the slices lie exactly on the law, so no new slice would shrink its interval"
        raise Refusal(f"{reason}; run one at the target to test it", [_point_at_target(law, goal)])
    used = [s for s in law.slices if s.used]
    candidates = _new_slices(law, used, among) if among else _grid_of_slices(law, used)
    choices = _choose_slices(law, candidates, knowledge, goal, count)
    bracket = [_point(law, s.covariates, s.next_rates, 1) for s in law.slices if _needs_rates(law, s)]
    return NextRuns(
        target=goal,
        width=knowledge.width(goal),
        choices=choices,
        bracket=bracket,
        points=[*bracket, *(_point(law, c.covariates, c.rates, c.seeds) for c in choices)],
    )


def _choose_slices(
    law: Law,
    candidates: list[dict[str, Number]],
    knowledge: Knowledge,
    goal: Mapping[str, Number],
    count: int,
) -> list[NextSlice]:
    """Choose greedily the slices that shrink the interval at `goal` most for their cost."""
    used = [s for s in law.slices if s.used]
    costs = [c for c in (_cost(s.covariates) for s in used) if c is not None]
    largest, typical = (max(costs), float(np.median(costs))) if costs else (1.0, 1.0)
    choices: list[NextSlice] = []
    for _ in range(min(count, len(candidates))):
        now = knowledge.width(goal)
        scored = []
        for sizes in candidates:
            new = knowledge.with_slice(sizes)
            cost = _cost(sizes) if costs else None
            gain = math.log(now / new.width(goal))
            scored.append((gain / ((cost or 0.0) + typical), sizes, new, cost))
        _, sizes, knowledge, cost = max(scored, key=lambda s: s[0])
        candidates = [one for one in candidates if one is not sizes]
        choices.append(
            NextSlice(
                covariates=sizes,
                rates=_rates_about_optimum(law, used, sizes),
                seeds=max(1, *(s.optimum.seeds for s in used if s.optimum)),
                cost=None if cost is None else cost / largest,
                width=knowledge.width(goal),
            )
        )
    return choices


def _complete_target(law: Law, given: Mapping[str, Number]) -> dict[str, Number]:
    for name, value in given.items():
        if name not in law.ranges:
            raise ValueError(f"target must be of the law's {', '.join(law.ranges)}, got {name!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    return {
        n: given.get(n, high * (DEFAULT_TARGET if n in law.exponents else 1))
        for n, (_, high) in law.ranges.items()
    }


def _point_at_target(law: Law, goal: Mapping[str, Number]) -> dict[str, Any]:
    used = [s for s in law.slices if s.used]
    return _point(law, {**used[-1].covariates, **goal}, _rates_about_optimum(law, used, goal), 1)


def _grid_of_slices(law: Law, used: Sequence[SliceRecord]) -> list[dict[str, Number]]:
    """New sizes on a grid of octaves, from the smallest fitted size to a little above the largest.

    None lie below the range: such slices are cheap, but far from every target that matters.
    """
    base = used[-1].covariates
    axes = []
    for name in law.covariates:
        low, high = law.ranges[name]
        span = range(math.floor(math.log2(high / low)) + OCTAVES_ABOVE_RANGE + 1)
        axes.append([_round_like(low, low * 2.0**k) for k in span])
    run = {tuple(s.covariates[n] for n in law.covariates) for s in used}
    return [
        {**base, **dict(zip(law.covariates, values, strict=True))}
        for values in itertools.product(*axes)
        if values not in run
    ]


def _new_slices(
    law: Law, used: Sequence[SliceRecord], among: Sequence[Mapping[str, Number]]
) -> list[dict[str, Number]]:
    """Those of `among` that the law could hold and does not have yet."""
    known = used[-1].covariates
    run = {tuple(s.covariates[n] for n in law.covariates) for s in used}
    found = []
    for sizes in among:
        if unknown := sizes.keys() - known.keys():
            names = ", ".join(sorted(unknown))
            raise ValueError(
                f"{argument('among')} must give sizes of the law's {', '.join(known)}, got {names}"
            )
        whole = {**known, **sizes}
        fits = all(whole[n] == known[n] for n in known if n not in (*law.covariates, *law.fixed))
        if fits and tuple(whole[n] for n in law.covariates) not in run:
            found.append(whole)
    return found


def _round_like(model: Number, value: float) -> Number:
    return max(1, round(value)) if isinstance(model, int) else value


def _cost(sizes: Mapping[str, Number]) -> float | None:
    """Tokens times parameters, which are a column or 12 width^2 depth; None without tokens."""
    tokens = sizes.get("tokens", sizes.get("D"))
    parameters = sizes.get("parameters", sizes.get("N"))
    if parameters is None and "width" in sizes:
        parameters = 12 * sizes["width"] ** 2 * sizes.get("depth", 1)
    return None if tokens is None else float(tokens) * float(parameters or 1)


def _rates_about_optimum(law: Law, used: Sequence[SliceRecord], sizes: Mapping[str, Number]) -> list[float]:
    """Rates about the predicted optimum, spaced like those of the law's slices."""
    steps = np.concatenate([np.diff(sorted({math.log2(p.lr) for p in s.points})) for s in used])
    step = float(np.clip(np.median(steps), 0.25, 1.0)) if len(steps) else 1.0
    half = math.ceil(OCTAVES_OF_RATES / step)
    centre = law.interval_at(sizes)[0]
    return [float(f"{centre * 2.0 ** (step * k):.4g}") for k in range(-half, half + 1)]


def _needs_rates(law: Law, one: SliceRecord) -> bool:
    same = all(one.covariates.get(n) == v for n, v in law.held.items())
    open_ended = not one.used or one.one_sided
    return open_ended and bool(one.next_rates) and one.context == law.context and same


def _point(law: Law, sizes: Mapping[str, Number], rates: Sequence[float], seeds: int) -> dict[str, Any]:
    return sweep_point(law.context, sizes, rates, law.rate_factor, seeds)
