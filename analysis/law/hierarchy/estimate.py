"""The hierarchical law of optima: coefficients, bends and scatter, from the likelihoods of the slices.

The optimum of slice k, with the centred log covariates z, is normal about a + b z + bends with the scatter
tau. A bend is the coefficient of a square or a product of covariates, made orthogonal to the straight law. No
law is exactly a power law, and the prior has to say how far from one it may be, since data within the fitted
range hardly can. The prior of the quadratic form is the same in every direction, so a product of two
covariates has sqrt(2) times the SD of a square. The SD is per natural log squared of the covariate as it is
given: width and parameters, which grow as its square, are bent by the same SD to different extents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import logsumexp

from hyperp.analysis.law.hierarchy.posterior import LawTerms, Posterior
from hyperp.analysis.law.hierarchy.propagation import Propagated, propagate
from hyperp.analysis.optima.likelihood.tables import LikelihoodTables
from hyperp.analysis.vocabulary import LN2

# H: points of the grid, C * T   C: points of the design over basins   T: of the scatter   K: slices

TAU_SD = 0.12  # octaves; see reports/estimator for what other values cover
BEND_SD = 0.01  # per natural log squared
FLAT_SD = 10.0  # of an exponent without a prior
INTERCEPT_SD = 10.0  # natural log, about the middle of the grids
FLAT_PART = 0.2  # of a prior on an exponent; the rest is the normal that was asked for
FLAT_PART_SD = 1.0  # of that part: any exponent that a law could have
COARSE = np.array([0.02, 0.1, 0.25, 0.5, 0.9, 1.5, 2.5, 4.0, 7.0, 16.0])  # scatter over its prior scale
TAU_DF = 3.0  # of Student's t
POINTS = 4e5  # of the grid times slices, at once
SCATTERS = 7  # points of the scatter
UNSETTLED = 0.02  # weight of points where the approximation did not settle, from which that is told
NEGLIGIBLE = 6.0  # ln of the density under the largest, beyond which a scatter is not looked at


@dataclass(frozen=True)
class LawPriors:
    """What is assumed before the data are seen.

    Attributes:
        tau_sd: scale of the half-Student t prior of the scatter, in octaves; 95% lie below 3.2 times that.
        bend_sd: SD of a bend, per natural log squared; 0 for a pure power law.
        exponents: by covariate, mean and SD of its exponent; every other exponent is free.
    """

    tau_sd: float = TAU_SD
    bend_sd: float = BEND_SD
    exponents: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Hierarchy:
    """The fitted law of K slices.

    Attributes:
        by: the covariates.
        terms: the columns of the law.
        posterior: of their coefficients; with the priors on exponents.
        without_priors: the same without them; the same object where none was given.
        share: (K,) of the information about the line that each slice gives; they sum to one.
        others_mean, others_sd: (K,) the optimum of each slice by the other slices, natural log.
        converged: whether the approximation settled.
    """

    by: tuple[str, ...]
    terms: LawTerms
    posterior: Posterior
    without_priors: Posterior
    share: np.ndarray
    others_mean: np.ndarray
    others_sd: np.ndarray
    converged: bool


def fit_hierarchy(
    tables: LikelihoodTables,
    logs: np.ndarray,
    by: Sequence[str],
    priors: LawPriors,
    offset: np.ndarray | None = None,
    scatter: float | None = None,
) -> Hierarchy:
    """Fit the law.

    Args:
        tables: likelihoods of K optima.
        logs: (K, q) natural logs of the covariates `by`.
        by: their names.
        priors: see `LawPriors`.
        offset: (K,) what fixed exponents add to the optima, natural log.
        scatter: of the optima about the law, natural log, to be held; integrated over unless given.
    """
    logs = np.asarray(logs, dtype=float).reshape(len(tables.start), len(by))
    terms = LawTerms.of(logs, priors.bend_sd > 0)
    X, q = terms.rows(logs), len(by)
    known = np.zeros(len(X)) if offset is None else offset
    middle = (tables.grid.mean(axis=1) - known).mean()
    prior_mean = np.array([middle, *[0.0] * (X.shape[1] - 1)])
    bend_sd = [priors.bend_sd * (1.0 if i == j else math.sqrt(2.0)) for i, j in terms.bends]
    prior_sd = np.array([INTERCEPT_SD, *[FLAT_SD] * q, *bend_sd])
    problem = (X, known, prior_mean, prior_sd)
    unit = priors.tau_sd * LN2
    tau = _scatters(tables, problem, unit, SCATTERS) if scatter is None else np.array([scatter])
    C = len(tables.log_weight)
    which, at = np.repeat(np.arange(C), len(tau)), np.tile(tau, C)
    found = propagate_in_parts(tables, which, at, problem)
    log_weight = found.log_evidence + tables.log_weight[which] + _log_scatter_prior(at / unit)
    weight = np.exp(log_weight - logsumexp(log_weight))
    plain = Posterior(weight, at, found.mean, found.cov).pruned()
    informed = with_exponent_priors(plain, by, priors.exponents) if priors.exponents else plain
    # A slice's own runs tell basin and scatter apart too, so its weight is taken back out.
    others = log_weight[:, None] - found.own
    others = np.exp(others - logsumexp(others, axis=0))
    mean = (others * found.others_mean).sum(axis=0)
    variance = (others * (found.others_variance + (found.others_mean - mean) ** 2)).sum(axis=0)
    information = found.precision / (1 + found.precision * at[:, None] ** 2)
    share = weight @ (information / information.sum(axis=1, keepdims=True))
    return Hierarchy(
        tuple(by),
        terms,
        informed,
        plain,
        share,
        mean,
        np.sqrt(variance),
        bool(weight[~found.converged].sum() < UNSETTLED),
    )


def propagate_in_parts(
    tables: LikelihoodTables, which: np.ndarray, tau: np.ndarray, problem: tuple[np.ndarray, ...]
) -> Propagated:
    """`propagate`, a few points at a time where there are many slices."""
    size = max(int(POINTS / len(tables.start)), 1)
    parts = [
        propagate(tables.loglik, tables.start, tables.step, which[i : i + size], tau[i : i + size], *problem)
        for i in range(0, len(which), size)
    ]
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return Propagated(**joined)


def _scatters(
    tables: LikelihoodTables, problem: tuple[np.ndarray, ...], unit: float, count: int
) -> np.ndarray:
    """Equally spaced values of the scatter where it is probable, given the most probable basin."""
    coarse = COARSE * unit
    best = np.zeros(len(coarse), dtype=int)
    found = propagate(tables.loglik[:1], tables.start, tables.step, best, coarse, *problem)
    log_density = found.log_evidence + _log_scatter_prior(COARSE)
    fine = np.linspace(0.0, COARSE[-1] * unit, 4000)
    curve = np.interp(fine, coarse, log_density)
    likely = fine[curve > curve.max() - NEGLIGIBLE]
    low, high = likely[0], max(likely[-1], likely[0] + 0.01 * unit)
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _log_scatter_prior(ratio: np.ndarray) -> np.ndarray:
    """ln of the density of the scatter over its scale: half of Student's t.

    A half-normal prior would hold a scatter of three times its SD to be impossible, and the intervals of few
    slices that scatter so are then too narrow.
    """
    return -0.5 * (TAU_DF + 1) * np.log1p(ratio**2 / TAU_DF)


def with_exponent_priors(
    plain: Posterior, by: Sequence[str], exponents: Mapping[str, tuple[float, float]]
) -> Posterior:
    """The posterior with robust priors on exponents: each a normal, and a flat part of FLAT_PART.

    A prior multiplies every normal of the mixture, which stays one and changes its weight. Data that
    contradict the normal part move the weight to the flat one (Berger, J. Am. Stat. Assoc. 85, 1990).
    """
    found = plain
    for name, (mean, sd) in exponents.items():
        j = 1 + list(by).index(name)
        parts = [
            _times_normal(found, j, mean, sd, 1 - FLAT_PART),
            _times_normal(found, j, mean, FLAT_PART_SD, FLAT_PART),
        ]
        log_weight = np.concatenate([log for log, _ in parts])
        weight = np.exp(log_weight - logsumexp(log_weight))
        found = Posterior(
            weight,
            np.concatenate([p.tau for _, p in parts]),
            np.concatenate([p.mean for _, p in parts]),
            np.concatenate([p.cov for _, p in parts]),
        ).pruned()
    return found


def _times_normal(
    found: Posterior, j: int, mean: float, sd: float, part: float
) -> tuple[np.ndarray, Posterior]:
    """ln of the new weights, and the normals times a normal of coefficient `j`."""
    variance = found.cov[:, j, j] + sd**2
    gain = found.cov[:, :, j] / variance[:, None]
    away = mean - found.mean[:, j]
    log_weight = np.log(found.weight) + math.log(part) - 0.5 * (np.log(variance) + away**2 / variance)
    moved = found.mean + gain * away[:, None]
    cov = found.cov - gain[:, :, None] * found.cov[:, None, :, j]
    return log_weight, replace(found, mean=moved, cov=cov)
