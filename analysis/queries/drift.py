"""The drift of an optimum along one axis: how many octaves it moves per doubling, and where it lies beyond.

With the method hierarchical, the drift is the exponent of the hierarchical law of the curves along the axis:
their likelihoods, the scatter between curves and the bend with the priors of `fit_law`. For the other methods
it is the random-effects regression of their optima, as their law is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.law.hierarchy.estimate import Hierarchy, LawPriors, fit_hierarchy
from hyperp.analysis.law.records import BySeed, OptimumRecord
from hyperp.analysis.optima.likelihood.tables import LikelihoodTables, tables_of_optima
from hyperp.analysis.random_effects import meta_regression, t_quantile
from hyperp.analysis.vocabulary import LN2
from hyperp.validation import Strict


class Drift(Strict):
    """The change of log2(optimum) per doubling of the axis; `basis` says where the interval comes from.

    `scatter` is the standard deviation of the curves about the drift, in octaves; None where it was not
    estimated. `one_sided` counts the curves that end at their best rate and bound the drift all the same.
    `df` is None for a posterior. `by_seed` is the drift of each seed's runs alone; None below two seeds.
    """

    octaves_per_doubling: float
    se: float | None
    low: float | None
    high: float | None
    df: int | None
    basis: str
    scatter: float | None = None
    one_sided: int = 0
    by_seed: BySeed | None = None


@dataclass(frozen=True)
class FittedDrift:
    """A drift, and with the method hierarchical the law that it is the exponent of.

    Attributes:
        drift: the drift.
        law: the hierarchical law; None for a regression.
        level: coverage of the intervals.
    """

    drift: Drift
    law: Hierarchy | None
    level: float

    def moved(self, first: float, end: float, rate: float) -> tuple[float, float | None, float | None]:
        """Octaves from `rate` to the optimum at the size `end`, and the ends of its interval.

        By the hierarchical law it is the prediction of one more curve there, with scatter and bend. By a
        regression, the drift goes on from the size `first`, whose optimum is `rate`.
        """
        if self.law is None:
            doublings, d = math.log2(end / first), self.drift
            low, high = (None if v is None else v * doublings for v in (d.low, d.high))
            return d.octaves_per_doubling * doublings, low, high
        tail = (1 - self.level) / 2
        row = self.law.terms.rows(np.log([float(end)]))
        low, middle, high = self.law.posterior.quantiles(row, (tail, 0.5, 1 - tail))
        start = math.log(rate)
        return (middle - start) / LN2, (low - start) / LN2, (high - start) / LN2


def hierarchical_drift(
    tables: LikelihoodTables,
    sizes: Sequence[float],
    tau_sd: float,
    bend_sd: float,
    level: float,
    one_sided: int = 0,
    noise_known: bool = True,
) -> FittedDrift:
    """The drift of curves with these likelihoods at these sizes of the axis.

    Args:
        tables: likelihoods of K optima.
        sizes: K sizes.
        tau_sd: scale of the half-Student t prior of the scatter, in octaves.
        bend_sd: SD of the bend, per natural log squared.
        level: coverage of the intervals.
        one_sided: how many of the curves have a likelihood with one end alone.
        noise_known: whether the runs leave a degree of freedom for their noise; without one it has its prior.
    """
    law = fit_hierarchy(tables, np.log(np.asarray(sizes, dtype=float)), ["size"], LawPriors(tau_sd, bend_sd))
    mean, cov = law.posterior.moments
    slope = np.eye(len(mean))[1]
    low, high = law.posterior.quantiles(slope, ((1 - level) / 2, (1 + level) / 2), scatter=False)
    curves = f"{len(sizes)} curves" + (f", {one_sided} of them one-sided" if one_sided else "")
    unseen = ", which two curves cannot show" if len(sizes) == 2 else ""
    unseen += "" if noise_known else "; the noise of the runs is known from its prior alone"
    drift = Drift(
        octaves_per_doubling=float(mean[1]),
        se=float(np.sqrt(cov[1, 1])),
        low=low,
        high=high,
        df=None,
        basis=f"likelihoods of {curves}; a prior of scale {tau_sd:g} octaves for the scatter between them"
        f"{unseen}",
        scatter=float(law.posterior.weight @ law.posterior.tau) / LN2,
        one_sided=one_sided,
    )
    return FittedDrift(drift, law, level)


def optima_tables(optima: Sequence[OptimumRecord]) -> LikelihoodTables | None:
    """Normal likelihoods of recorded optima by their standard errors; None if one has no error."""
    errors = [o.se for o in optima if o.se is not None]
    if len(errors) < len(optima):
        return None
    nothing = np.zeros(len(optima))
    return tables_of_optima(np.log([o.lr for o in optima]), np.array(errors) * LN2, nothing)


def regressed_drift(sizes: Sequence[float], optima: Sequence[OptimumRecord], level: float) -> FittedDrift:
    """The drift by random-effects regression; of two curves, by their own errors."""
    x, y = np.log2(sizes), np.log2([o.lr for o in optima])
    if len(optima) == 2:
        return FittedDrift(_drift_between_two(x, y, optima, level), None, level)
    known = [o.se for o in optima if o.se is not None]
    se = np.array(known) if len(known) == len(optima) else None
    fit = meta_regression(y, se, np.column_stack([np.ones(len(x)), x]))
    low, high = fit.interval(level)
    drift = Drift(
        octaves_per_doubling=float(fit.beta[1]),
        se=float(fit.se[1]),
        low=float(low[1]),
        high=float(high[1]),
        df=fit.df,
        basis="random-effects regression over the curves",
        scatter=math.sqrt(fit.tau2),
    )
    return FittedDrift(drift, None, level)


def _drift_between_two(x: np.ndarray, y: np.ndarray, optima: Sequence[OptimumRecord], level: float) -> Drift:
    doublings = float(x[1] - x[0])
    drift = float(y[1] - y[0]) / doublings
    errors = [o.se for o in optima if o.se is not None]
    df = min(o.df for o in optima)  # their variances are pooled, so their degrees of freedom are the same
    if len(errors) < 2 or df < 1:
        basis = "unknown: no residual degrees of freedom"
        return Drift(octaves_per_doubling=drift, se=None, low=None, high=None, df=None, basis=basis)
    se = math.hypot(*errors) / doublings
    half = t_quantile(df, level) * se
    basis = "the two curves' own errors; scatter between curves cannot be seen with two"
    return Drift(octaves_per_doubling=drift, se=se, low=drift - half, high=drift + half, df=df, basis=basis)
