"""The posterior of a law as law.json holds it."""

import functools
import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from hyperp.analysis.law.hierarchy.posterior import LawTerms, Posterior
from hyperp.validation import Strict

if TYPE_CHECKING:  # imports pandas, which a recommendation does without
    from hyperp.analysis.law.hierarchy.estimate import Hierarchy

UNKNOWN_BEND = 0.3  # standard error per natural log squared at which the data say nothing of a bend
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


CLEAR_BEND = 2.0  # standard errors from zero at which the data's own bend is told


class BendRecord(Strict):
    """The coefficient of a quadratic term of the law, per natural log squared, with its interval.

    `covariates` names one covariate, for its square, or the two of a product. `data_value` and `data_se` are
    what the data alone say; None where they say nothing.
    """

    covariates: list[str]
    prior_sd: Positive
    value: float
    se: NotNegative
    low: float
    high: float
    data_value: float | None
    data_se: NotNegative | None

    @property
    def is_clear(self) -> bool:
        """Whether the data by themselves put it farther from zero than they and the prior allow."""
        if self.data_value is None or self.data_se is None:
            return False
        return abs(self.data_value) >= CLEAR_BEND * math.hypot(self.data_se, self.prior_sd)

    @property
    def name(self) -> str:
        """Such as tokens^2, or width x tokens."""
        return f"{self.covariates[0]}^2" if len(self.covariates) == 1 else " x ".join(self.covariates)


class PosteriorRecord(Strict):
    """A mixture of H normal distributions of the law's coefficients, see `hierarchy.posterior`.

    Attributes:
        centre: mean natural log of each covariate, in the order of the law's exponents.
        bends: index pairs of the covariates whose products are the quadratic terms.
        project: for each of them the straight law nearest to it at the slices.
        weight, tau: (H,) weights and scatter, natural log.
        mean: (H, P) coefficients: intercept at `centre`, exponents, bends.
        cov: (H, P(P+1)/2) lower triangles of their covariances, row by row.
    """

    centre: list[float]
    bends: list[tuple[int, int]]
    project: list[list[float]]
    weight: list[NotNegative]
    tau: list[NotNegative]
    mean: list[list[float]]
    cov: list[list[float]]

    @classmethod
    def of(cls, terms: LawTerms, posterior: Posterior) -> "PosteriorRecord":
        """The record of a posterior, to ten digits."""
        lower = np.tril_indices(posterior.mean.shape[1])
        return cls(
            centre=terms.centre.tolist(),
            bends=list(terms.bends),
            project=terms.project.tolist(),
            weight=_ten_digits(posterior.weight),
            tau=_ten_digits(posterior.tau),
            mean=[_ten_digits(row) for row in posterior.mean],
            cov=[_ten_digits(matrix[lower]) for matrix in posterior.cov],
        )

    @functools.cached_property
    def terms(self) -> LawTerms:
        """The columns of the law."""
        project = np.array(self.project).reshape(len(self.bends), 1 + len(self.centre))
        return LawTerms(np.array(self.centre), tuple(self.bends), project)

    @functools.cached_property
    def posterior(self) -> Posterior:
        """The mixture."""
        size = 1 + len(self.centre) + len(self.bends)
        lower = np.tril_indices(size)
        cov = np.zeros((len(self.weight), size, size))
        cov[:, lower[0], lower[1]] = self.cov
        cov[:, lower[1], lower[0]] = self.cov
        weight = np.array(self.weight)
        return Posterior(weight / weight.sum(), np.array(self.tau), np.array(self.mean), cov)


class PriorRecord(Strict):
    """A prior on an exponent, and what the exponent is without it."""

    mean: float
    sd: Positive
    flat_part: NotNegative
    without: float
    without_low: float
    without_high: float


def bend_records(
    found: "Hierarchy", free: "Hierarchy | None", prior_sd: float, level: float
) -> dict[str, BendRecord]:
    """The bends of a fitted law by name; `free` is the same law with bends that the data alone decide."""
    mean, cov = found.posterior.moments
    straight = 1 + len(found.by)
    records = {}
    for index, (i, j) in enumerate(found.terms.bends):
        names = [found.by[i]] if i == j else [found.by[i], found.by[j]]
        place = straight + index
        unit = np.zeros(len(mean))
        unit[place] = 1.0
        low, high = found.posterior.quantiles(unit, ((1 - level) / 2, (1 + level) / 2), scatter=False)
        value = se = None
        if free is not None:
            value, se = (
                float(free.posterior.moments[0][place]),
                float(free.posterior.moments[1][place, place]),
            )
            se = se**0.5
        known = se is not None and se < UNKNOWN_BEND
        record = BendRecord(
            covariates=names,
            prior_sd=prior_sd * (1.0 if i == j else 2.0**0.5),
            value=float(mean[place]),
            se=float(np.sqrt(cov[place, place])),
            low=low,
            high=high,
            data_value=value if known else None,
            data_se=se if known else None,
        )
        records[record.name] = record
    return records


def _ten_digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.10g}") for value in values.tolist()]
