"""The runs that would shrink a law's prediction interval most, and the rates that would bracket an optimum.

One more slice at x adds x x'/v to the information about the coefficients, where v is the variance of a slice
about the law; see `knowledge`. The criterion is the width of the interval at the target
(I-optimality for one point). Slices are chosen one after the other, by how much each shrinks that width for
its cost. The cost is tokens times parameters, where both are known, of all its runs, plus that of a typical
slice of the law. Without the typical slice, many tiny slices would always win, and those test the form of the
law least. The rates of a slice are those of `slice_rates`, what it is worth is that of `slice_value`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from hyperp.analysis.answers import Answer
from hyperp.analysis.errors import Refusal, argument, points_frame
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.knowledge import Knowledge, law_knowledge
from hyperp.analysis.queries.points_file import sweep_point
from hyperp.analysis.queries.slice_rates import SliceRates, choose_rates, slice_error
from hyperp.analysis.queries.slice_value import (
    GAIN,
    SliceValue,
    TargetValue,
    Valuation,
    run_flops,
    value_slices,
)
from hyperp.analysis.queries.target import tuned_beside
from hyperp.analysis.table.slices import Number
from hyperp.validation import Strict

OCTAVES_ABOVE_RANGE = 2  # of the largest candidate size
DEFAULT_TARGET = 8  # times the largest fitted size


class NextSlice(Strict):
    """A slice to run: its sizes, rates, seeds, and cost relative to the law's most expensive slice.

    `also` is what is tuned beside the rate, at its predicted optimum. `low` and `high` are the ends of the
    prediction interval of the slice's best rate, `basin_known` is whether few rates suffice (see
    `slice_rates`), `width` the ratio of the interval's ends at the target after this slice and those before
    it have run, `value` what it saves there; None for a law without a basin.
    """

    covariates: dict[str, int | float]
    rates: list[float]
    low: float
    high: float
    basin_known: bool
    also: dict[str, int | float] = Field(default_factory=dict)
    seeds: int
    cost: float | None
    width: float
    value: SliceValue | None = None


class NextRuns(Answer, Strict):
    """What to run.

    `width` is the present ratio of the interval's ends at the target, `value` what is to be saved there; None
    for a law without a basin. `choices` are the new slices, `bracket`
    the points that add rates to slices of the law without an optimum, and `points` all of them.
    """

    target: dict[str, int | float]
    width: float
    value: TargetValue | None = None
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
    gain: float = GAIN,
) -> NextRuns:
    """Choose the `count` slices that shrink the prediction interval at `target` most for their cost.

    Args:
        law: the fitted law.
        target: a size for every covariate of the law; 8 times its largest fitted one by default.
        count: how many slices.
        among: the sizes to choose from, such as those of a plan; a grid of octaves by default. Sizes that
            the law already has, or that differ in what all its slices share, are skipped.
        gain: exponent of the loss in the compute of the run at the target, by which FLOPs are priced.

    Raises:
        ValueError: a covariate that the law does not have, or a size, count or gain out of range.
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
    valuation = value_slices(law, knowledge, goal, gain)
    choices = _choose_slices(law, candidates, knowledge, goal, count, valuation)
    bracket = [_point(law, s.covariates, s.next_rates, 1) for s in law.slices if _needs_rates(law, s)]
    return NextRuns(
        target=goal,
        width=knowledge.width(goal),
        value=None if valuation is None else valuation.target,
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
    valuation: Valuation | None,
) -> list[NextSlice]:
    """Choose greedily the slices that shrink the interval at `goal` most for their cost."""
    used = [s for s in law.slices if s.used]
    seeds = max(1, *(s.optimum.seeds for s in used if s.optimum))
    offers = [_Offer.of(law, sizes, seeds) for sizes in candidates]
    usual = max((len(one.found.rates) for one in offers), default=1) * seeds
    costs = [c for c in (_cost(s.covariates, _runs_of(s, usual)) for s in used) if c is not None]
    largest, typical = (max(costs), float(np.median(costs))) if costs else (1.0, 1.0)
    choices: list[NextSlice] = []
    for _ in range(min(count, len(offers))):
        now = knowledge.width(goal)
        scored = []
        for offer in offers:
            new = knowledge.with_slice(offer.sizes, offer.error)
            gained = math.log(now / new.width(goal))
            scored.append((gained / ((offer.cost or 0.0) + typical if costs else 1.0), offer, new))
        _, best, knowledge = max(scored, key=lambda s: s[0])
        offers = [one for one in offers if one is not best]
        runs = len(best.found.rates) * seeds
        choices.append(
            NextSlice(
                covariates=best.sizes,
                rates=best.found.rates,
                low=best.found.low,
                high=best.found.high,
                basin_known=best.found.basin_known,
                also=tuned_beside(law, best.sizes),
                seeds=seeds,
                cost=best.cost / largest if costs and best.cost is not None else None,
                width=knowledge.width(goal),
                value=None if valuation is None else valuation.after(knowledge, best.sizes, runs),
            )
        )
    return choices


@dataclass(frozen=True)
class _Offer:
    """A slice to choose: its sizes, rates, the error of its optimum in natural log, and its cost."""

    sizes: dict[str, Number]
    found: SliceRates
    error: float | None
    cost: float | None

    @classmethod
    def of(cls, law: Law, sizes: dict[str, Number], seeds: int) -> "_Offer":
        found = choose_rates(law, sizes)
        error = slice_error(law, sizes, found.rates, seeds)
        return cls(sizes, found, error, _cost(sizes, len(found.rates) * seeds))


def _runs_of(one: SliceRecord, usual: int) -> int:
    """How many runs a slice of the law has; `usual` where only its optimum is known."""
    return sum(point.seeds for point in one.points) if len(one.points) > 1 else usual


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
    return _point(law, {**used[-1].covariates, **goal}, choose_rates(law, goal).rates, 1)


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


def _cost(sizes: Mapping[str, Number], runs: int) -> float | None:
    """Tokens times parameters (one where they are not known) of all runs of a slice; None without tokens."""
    tokens = sizes.get("tokens", sizes.get("D"))
    return None if tokens is None else runs * (run_flops(sizes) or float(tokens))


def _needs_rates(law: Law, one: SliceRecord) -> bool:
    same = all(one.covariates.get(n) == v for n, v in law.held.items())
    open_ended = not one.used or one.one_sided
    return open_ended and bool(one.next_rates) and one.context == law.context and same


def _point(law: Law, sizes: Mapping[str, Number], rates: Sequence[float], seeds: int) -> dict[str, Any]:
    """Runs at these rates; what is tuned beside the rate is at its predicted optimum."""
    return sweep_point(law.context, {**sizes, **tuned_beside(law, sizes)}, rates, law.rate_factor, seeds)
