"""The parts of law.json: slices with their optima, the basin, coefficients, and what tests a law."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from hyperp.analysis.optima.basin.shape import BasinShape
from hyperp.analysis.optima.likelihood.basin import skewed_excess
from hyperp.analysis.vocabulary import CENSORED, State
from hyperp.validation import Strict

if TYPE_CHECKING:  # imports pandas, which a recommendation does without
    from hyperp.analysis.optima.estimation import BasinEstimate

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Covariate = Annotated[int | float, Field(gt=0)]  # whole where it was whole in the table
SliceSize = Annotated[int | float, Field(ge=0)]  # 0 only in a column that no law depends on
Level = Annotated[float, Field(gt=0, lt=1)]


def finite_exp(x: float) -> float:
    """exp(x), with x clipped to +-700 so that the result is finite and positive."""
    return math.exp(min(max(x, -700.0), 700.0))


class Estimate(Strict):
    """A coefficient of the law in log space, with its standard error and confidence interval."""

    value: float
    se: NotNegative
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"low <= value <= high must hold, got {self.low}, {self.value}, {self.high}")
        return self


class Point(Strict):
    """One learning rate of a slice: its mean loss, with the seeds' main effects removed, and how many seeds.

    `also` is what was tuned beside the rate.
    """

    lr: Positive
    loss: Positive
    seeds: Size
    also: dict[str, Positive] = Field(default_factory=dict)


class OptimumRecord(Strict):
    """The optimum of a slice, as a rate with its interval.

    `se` is in octaves. `loss` and `curvature` (per octave squared) are those at the optimum, None where the
    method fits no curve. `also` holds the optimum of what is tuned beside the rate.
    """

    lr: Positive
    se: NotNegative | None
    low: Positive | None
    high: Positive | None
    df: Count
    loss: Positive | None
    curvature: Positive | None
    seeds: Count
    window_rates: list[Positive]
    also: dict[str, Positive] = Field(default_factory=dict)


class SliceRecord(Strict):
    """One learning-rate curve: its points, its optimum, whether the law uses it, and why not.

    `share` is the part of the information about the law that the slice gives; None where the method has none.
    A slice that the law uses although its rates end at its best one is one-sided: `state` says on which side.
    """

    context: dict[str, str]
    covariates: dict[str, SliceSize]
    used: bool
    state: State
    reason: str | None
    points: list[Point]
    dropped: dict[str, Count]
    diverged: list[Positive]
    next_rates: list[Positive]
    factor: Positive | None
    optimum: OptimumRecord | None
    share: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def one_sided(self) -> bool:
        """Whether the law uses this slice and its optimum lies at or beyond the end of its rates."""
        return self.used and self.state in CENSORED

    def row(self) -> dict[str, Any]:
        """The slice as a row of a table: what defines it, its state, counts, and its optimum as rates."""
        best = self.optimum
        return {
            **{name: value for name, value in self.context.items() if value},
            **self.covariates,
            "state": self.state,
            "reason": self.reason,
            "rates": len({point.lr for point in self.points}),
            "seeds": max((point.seeds for point in self.points), default=0),
            "lr": None if best is None else best.lr,
            "low": None if best is None else best.low,
            "high": None if best is None else best.high,
            "loss": None if best is None else best.loss,
        }


class SeedSpread(Strict):
    """The spread over seeds inside the windows, pooled over the slices used; None where no rate was repeated.

    `loss_sd` is the standard deviation of the loss at one rate, `difference_sd` that of the loss difference
    between two rates that were run with the same seed, in which the seeds' main effects cancel.
    """

    loss_sd: NotNegative | None
    loss_df: Count
    difference_sd: NotNegative | None
    difference_df: Count


class BasinRecord(Strict):
    """Relative excess loss about an optimum, a polynomial in natural logs of what is tuned.

    `powers` has a row for each term and a column for each quantity of the law's `over`. `bend` has, for each
    covariate that the curvature follows, its exponent and the size at which `coef` holds. With a `skew` and
    a `tail`, the basin is the skewed one of `optima.likelihood.basin`, whose curvature is twice the
    coefficient. `errors` are standard errors of ln curvature, ln tail, ln noise and the skew, `bend_errors`
    those of the exponents in `bend`; `noise` is the relative standard deviation of the loss of one run. They
    are empty or None where the method has none.
    """

    powers: list[list[Count]]
    coef: list[float]
    bend: dict[str, tuple[float, Positive]] = Field(default_factory=dict)
    skew: float | None = None
    tail: Positive | None = None
    errors: dict[str, NotNegative] = Field(default_factory=dict)
    bend_errors: dict[str, NotNegative] = Field(default_factory=dict)
    noise: NotNegative | None = None

    @classmethod
    def of(cls, estimate: "BasinEstimate") -> Self:
        """The basin that a method estimated, as law.json holds it."""
        return cls(**vars(estimate))

    def at(self, sizes: Mapping[str, float]) -> Self:
        """The basin at these sizes; a size that is not given is taken where `coef` holds."""
        known = [
            (exponent, sizes.get(name, middle) / middle) for name, (exponent, middle) in self.bend.items()
        ]
        factor = math.prod(ratio**exponent for exponent, ratio in known)
        return self.model_copy(update={"coef": [c * factor for c in self.coef], "bend": {}})

    def penalty(self, displacement: float | Sequence[float]) -> float:
        """Relative excess loss where what is tuned lies `displacement` natural logs above its optimum.

        One displacement for each quantity of the law's `over`, the rate first; those left out are zero.
        """
        width = len(self.powers[0])
        given = np.atleast_1d(np.asarray(displacement, dtype=float))
        if self.skew is not None and self.tail is not None:
            return float(2 * self.coef[0] * skewed_excess(given[0], self.skew, self.tail))
        moved = np.concatenate([given, np.zeros(width - len(given))])
        return float(BasinShape(np.array(self.powers), np.array(self.coef)).penalty(moved))


class FixedTest(Strict):
    """A fixed exponent tested against the one that the same slices give; `problem` says why not."""

    fixed: float
    free: Estimate | None
    p_value: float | None
    problem: str | None


class CurvatureTest(Strict):
    """The coefficient of the squared log of a covariate, when added to the law, and the p-value of zero."""

    value: float
    se: NotNegative
    p_value: float
    df: Size


class LeftOut(Strict):
    """An optimum as the other slices predict it; `error` is ln(predicted/own), `loss_penalty` relative."""

    covariates: dict[str, SliceSize]
    predicted: Positive
    lr: Positive
    error: float
    loss_penalty: NotNegative | None


class OtherMethod(Strict):
    """The law of another method from the same slices; `lr` and `also` are its values at `Law.middle`.

    `intervals` are those of the exponents, at the law's level.
    """

    method: str
    slices: Count
    a: float | None
    exponents: dict[str, float]
    lr: Positive | None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    also: dict[str, Positive] = Field(default_factory=dict)
    problem: str | None


class BySeed(Strict):
    """An exponent from the runs of each seed alone; `low` and `high` are Student's t interval of the mean.

    `of` is the number of seeds. A seed without an optimum in every slice has no value.
    """

    values: dict[str, float]
    of: Count
    mean: float
    low: float
    high: float
