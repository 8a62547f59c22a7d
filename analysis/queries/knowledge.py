"""What a law knows of the optimum at a target, and what it would know after one more slice.

A slice at x with the variance v about the law turns the covariance C of the coefficients into
C - C x x' C / (v + x' C x) (Sherman and Morrison). The hierarchical law is a mixture of normals, each of
which learns from the slice; a regressed one has a single covariance, and a degree of freedom more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hyperp.analysis.law.hierarchy.posterior import LawTerms, mixture_quantiles
from hyperp.analysis.law.schema import Law
from hyperp.analysis.random_effects import t_quantile

# H: parts of the mixture, one for a regression   P: coefficients


@dataclass(frozen=True)
class Knowledge:
    """The law's coefficients, as far as they are known.

    Attributes:
        names: the covariates.
        terms: the columns of a hierarchical law; None for a regressed one.
        weight: (H,) weights.
        mean: (H, P) coefficients.
        cov: (H, P, P) their covariances.
        scatter: (H,) variance of the optimum of a slice about the law.
        error: variance of the optimum that one more slice shows, about its own.
        df: degrees of freedom of Student's t; None for a mixture.
        level: coverage.
    """

    names: tuple[str, ...]
    terms: LawTerms | None
    weight: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    scatter: np.ndarray
    error: float
    df: int | None
    level: float

    @property
    def exact(self) -> bool:
        """Whether the slices lie exactly on the law."""
        return not (self.scatter.any() or self.error)

    def row(self, sizes: Mapping[str, float]) -> np.ndarray:
        """The design (P,) at these sizes."""
        logs = np.array([math.log(sizes[name]) for name in self.names])
        return np.append(1.0, logs) if self.terms is None else self.terms.rows(logs)

    def moments(self, sizes: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances (H,) of the law's own value at these sizes, without the scatter about it."""
        x = self.row(sizes)
        return self.mean @ x, np.maximum(np.einsum("p,hpq,q->h", x, self.cov, x), 0.0)

    def centre(self, sizes: Mapping[str, float]) -> float:
        """The middle of the optimum at these sizes, natural log, without fixed exponents."""
        mean, variance = self.moments(sizes)
        if self.df is not None:
            return float(mean[0])
        sd = np.sqrt(np.maximum(variance + self.scatter, 1e-30))
        return mixture_quantiles(self.weight, mean, sd, (0.5,))[0]

    def log_interval(self, sizes: Mapping[str, float]) -> tuple[float, float]:
        """The ends of the interval of the optimum at these sizes, natural log, without fixed exponents."""
        mean, variance = self.moments(sizes)
        variance = variance + self.scatter
        if self.df is not None:
            half = t_quantile(self.df, self.level) * math.sqrt(max(float(variance[0]) + self.error, 0.0))
            return float(mean[0]) - half, float(mean[0]) + half
        tails = ((1 - self.level) / 2, (1 + self.level) / 2)
        low, high = mixture_quantiles(self.weight, mean, np.sqrt(np.maximum(variance, 1e-30)), tails)
        return low, high

    def width(self, sizes: Mapping[str, float]) -> float:
        """The ratio of the ends of the interval at these sizes."""
        low, high = self.log_interval(sizes)
        return math.exp(min(high - low, 700.0))

    def with_slice(self, sizes: Mapping[str, float], error: float | None = None) -> "Knowledge":
        """What is known after one more slice at these sizes.

        `error` is the standard error of its optimum, natural log; by default that of the slices so far.
        """
        x = self.row(sizes)
        reach = self.cov @ x
        variance = reach @ x + self.scatter + (self.error if error is None else error**2)
        cov = self.cov - reach[:, :, None] * reach[:, None, :] / variance[:, None, None]
        return replace(self, cov=cov, df=None if self.df is None else self.df + 1)


def law_knowledge(law: Law) -> Knowledge:
    """What a law knows of its coefficients for the rate."""
    names = tuple(law.covariates)
    if law.posterior is not None:
        p = law.posterior.posterior
        return Knowledge(
            names, law.posterior.terms, p.weight, p.mean, p.cov, p.tau**2, law.slice_sd**2, None, law.level
        )
    beta = np.array([law.a.value, *(e.value for e in law.exponents.values())])
    scatter = law.tau**2 + law.slice_sd**2
    # Optima without errors of their own scatter by what is left.
    error = law.slice_sd**2 if scatter else law.residual_sd**2
    return Knowledge(
        names,
        None,
        np.ones(1),
        beta[None],
        np.array(law.covariance)[None],
        np.array([law.tau**2]),
        error,
        law.df,
        law.level,
    )
