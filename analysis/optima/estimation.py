"""The input and the output of a method that finds the optima of slices, and what the methods share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.optima.parabola import mean_loss_by_rate
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import LEVEL, WINDOW

if TYPE_CHECKING:
    from hyperp.analysis.optima.likelihood.optima import ContextLikelihood


@dataclass(frozen=True)
class MethodOptions:
    """Options of a method.

    Attributes:
        over: the tuned quantities, the rate first.
        by: the covariates of the law. A method that fits all slices together lets the optima depend on their
            logs.
        window: half-width, in octaves, of the window of `two-stage`.
        level: coverage of the intervals.
    """

    over: tuple[str, ...] = ("lr",)
    by: tuple[str, ...] = ()
    window: float = WINDOW
    level: float = LEVEL


@dataclass(frozen=True)
class BasinEstimate:
    """The basin that a method estimates: relative excess loss, sum over s of coef[s] * prod(v ** powers[s]).

    Attributes:
        powers: for each term the power of each tuned quantity.
        coef: for each term its coefficient, for displacements v from the optimum in natural logs.
        bend: covariates on which the curvature depends: its exponent, and the size at which `coef` holds.
        skew, tail: of the basin of `likelihood.basin`, per natural log and per its square; None for a
            polynomial.
        errors: standard errors of "curvature", "tail" and "noise" (of their natural logs) and of "skew".
        bend_errors: standard errors of the exponents in `bend`, by covariate.
        noise: relative standard deviation of the loss of one run about the basin.
    """

    powers: list[list[int]]
    coef: list[float]
    bend: dict[str, tuple[float, float]] = field(default_factory=dict)
    skew: float | None = None
    tail: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    bend_errors: dict[str, float] = field(default_factory=dict)
    noise: float | None = None


@dataclass(frozen=True)
class MethodResult:
    """What a method found.

    Attributes:
        optima: one for each slice.
        basins: the basin about each optimum; slices of one context share it. None where the method has none.
        by_runs: whether the law weights an optimum by the number of runs that it averages.
        notes: remarks for the reader of the law.
        likelihoods: of the optima, for each context; empty for a method that has points and errors alone.
        slices: the slices without the runs that the method leaves out and counts; None if it leaves none out.
    """

    optima: list[Optimum]
    basins: list[BasinEstimate | None]
    by_runs: bool = False
    notes: list[str] = field(default_factory=list)
    likelihoods: "list[ContextLikelihood]" = field(default_factory=list)
    slices: list[Slice] | None = None


Method = Callable[[Sequence[Slice], MethodOptions], MethodResult]


def mean_loss_by_setting(one: Slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the loss of a slice over seeds.

    With the rate alone tuned, the seeds' main effects are removed first; see `mean_loss_by_rate`.

    Returns:
        (settings, loss, runs): the n distinct settings (n, p), sorted; the mean loss (n,) and the number of
        runs (n,) at each.
    """
    settings = np.column_stack([one.lr, *one.tuned.values()])
    distinct, index, count = np.unique(settings, axis=0, return_inverse=True, return_counts=True)
    if not one.tuned:
        return distinct, mean_loss_by_rate(one.lr, one.seed, one.loss)[1], count
    return distinct, np.bincount(index.ravel(), weights=one.loss) / count, count


def group_by_context(slices: Sequence[Slice]) -> list[list[int]]:
    """Indices of the slices of each context (optimizer, parametrization, ...), in order of appearance."""
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        groups.setdefault(tuple(one.context.values()), []).append(index)
    return list(groups.values())
