"""Expectation propagation for K optima about a law, each with a likelihood on a grid.

The optimum m_k of slice k is normal about o_k + x_k g with the scatter tau, and the coefficients g are normal
with independent priors. The likelihood of m_k is any function of it: one-sided where the best rate is the
last one. A Gaussian factor that leaves mean and variance of m_k right takes its place (Minka, UAI 2001); for
a likelihood that is Gaussian already, that is exact. All points of a grid over basin and tau are done at
once. With the factor of one slice taken out, the rest is the law of the others, without a further fit.
"""

from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.likelihood.tables import interpolate

# H: points of the grid over basin and tau   K: slices   G: grid of the optimum   P: coefficients   N: nodes

NODES = np.linspace(-6.0, 6.0, 19)
SWEEPS = 60
CLOSE = 3e-3  # standard deviations
SETTLED = 0.03  # standard deviations, by which what has not settled moves an interval visibly
LEAST = 1e-6  # precision of a factor, at least
DAMPING = 0.9


@dataclass(frozen=True)
class Propagated:
    """The Gaussian approximation at every point of the grid.

    Attributes:
        mean, cov: (H, P) and (H, P, P) of the coefficients.
        log_evidence: (H,) ln of the probability of the runs.
        precision: (H, K) of the factor of each slice, about m_k.
        others_mean, others_variance: (H, K) of m_k given the other slices.
        own: (H, K) ln of the probability of the slice's runs given the other slices.
        converged: (H,) whether no mean moved by more than SETTLED in the last sweep.
    """

    mean: np.ndarray
    cov: np.ndarray
    log_evidence: np.ndarray
    precision: np.ndarray
    others_mean: np.ndarray
    others_variance: np.ndarray
    own: np.ndarray
    converged: np.ndarray


def propagate(
    loglik: np.ndarray,
    start: np.ndarray,
    step: np.ndarray,
    which: np.ndarray,
    tau: np.ndarray,
    X: np.ndarray,
    offset: np.ndarray,
    prior_mean: np.ndarray,
    prior_sd: np.ndarray,
) -> Propagated:
    """Approximate the posterior of the coefficients at each of H points.

    Args:
        loglik: (C, K, G) log likelihoods on the grids.
        start, step: (K,) of the grids.
        which: (H,) the place in `loglik` of each point.
        tau: (H,) scatter, positive.
        X: (K, P) design.
        offset: (K,) known part of the optima.
        prior_mean, prior_sd: (P,) of the coefficients.
    """
    _, K, G = loglik.shape
    loglik = np.ascontiguousarray(loglik)
    base = (which[:, None] * K + np.arange(K)) * G  # (H, K)
    site_mean, precision = _grid_moments(loglik, start, step)
    site_mean, precision = site_mean[which], precision[which]
    shift = precision * site_mean
    tau2 = tau[:, None] ** 2
    prior = np.diag(prior_sd**-2.0)
    moved = np.full(len(tau), np.inf)
    last = None
    for sweep in range(SWEEPS):
        damping = DAMPING if sweep < SWEEPS // 3 else DAMPING / 2
        found = _coefficients(precision, shift, tau2, X, offset, prior, prior_mean)
        c_mean, c_var = _cavities(found, X, offset)
        if last is not None:
            moved = (np.abs(c_mean - last) / np.sqrt(c_var)).max(axis=1)
            if moved.max() < CLOSE:
                break
        last = c_mean
        log_z, mean, var = _tilted(loglik, base, start, step, c_mean, c_var, precision, shift)
        new = np.maximum(1 / var - 1 / c_var, LEAST)
        new_shift = mean * (new + 1 / c_var) - c_mean / c_var
        precision = damping * new + (1 - damping) * precision
        shift = damping * new_shift + (1 - damping) * shift
    found = _coefficients(precision, shift, tau2, X, offset, prior, prior_mean)
    c_mean, c_var = _cavities(found, X, offset)
    log_z, _, _ = _tilted(loglik, base, start, step, c_mean, c_var, precision, shift)
    spread = c_var + 1 / precision
    site = -0.5 * np.log(spread) - 0.5 * (shift / precision - c_mean) ** 2 / spread
    evidence = (log_z - site).sum(axis=1) + found.log_normal
    return Propagated(found.mean, found.cov, evidence, precision, c_mean, c_var, log_z, moved < SETTLED)


@dataclass(frozen=True)
class _Coefficients:
    mean: np.ndarray
    cov: np.ndarray
    weight: np.ndarray  # (H, K) precision of x'g from each slice
    target: np.ndarray  # (H, K) the value of x'g that each slice says
    tau2: np.ndarray
    log_normal: np.ndarray  # (H,) ln density of the factors' means under the prior, up to a constant


def _coefficients(
    precision: np.ndarray,
    shift: np.ndarray,
    tau2: np.ndarray,
    X: np.ndarray,
    offset: np.ndarray,
    prior: np.ndarray,
    prior_mean: np.ndarray,
) -> _Coefficients:
    weight = precision / (1 + precision * tau2)
    target = shift / precision - offset
    normal = np.einsum("hk,kp,kq->hpq", weight, X, X) + prior
    right = (weight * target) @ X + prior @ prior_mean
    cov = np.linalg.inv(normal)
    mean = (cov @ right[..., None])[..., 0]
    squares = (weight * target**2).sum(axis=1) + prior_mean @ prior @ prior_mean - (right * mean).sum(axis=1)
    log_normal = 0.5 * (np.log(weight).sum(axis=1) - np.linalg.slogdet(normal)[1] - squares)
    return _Coefficients(mean, cov, weight, target, tau2, log_normal)


def _cavities(found: _Coefficients, X: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (H, K) of each optimum given the other slices."""
    variance = np.einsum("kp,hpq,kq->hk", X, found.cov, X)
    mean = found.mean @ X.T
    left = np.maximum(1 / variance - found.weight, 1e-9)
    away = (mean / variance - found.weight * found.target) / left
    return away + offset, 1 / left + found.tau2


def _tilted(
    loglik: np.ndarray,
    base: np.ndarray,
    start: np.ndarray,
    step: np.ndarray,
    c_mean: np.ndarray,
    c_var: np.ndarray,
    precision: np.ndarray,
    shift: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln of the mass, mean and variance (H, K) of likelihood times what the other slices say."""
    centre_var = 1 / (1 / c_var + precision)
    centre = centre_var * (c_mean / c_var + shift)
    width = np.sqrt(centre_var)
    m = centre[..., None] + width[..., None] * NODES
    place = (m - start[:, None]) / step[:, None]
    value = interpolate(loglik, base[..., None], place)
    value = value - 0.5 * (m - c_mean[..., None]) ** 2 / c_var[..., None]
    top = value.max(axis=-1, keepdims=True)
    mass = np.exp(value - top)
    total = mass.sum(axis=-1)
    mean = (mass * m).sum(axis=-1) / total
    var = (mass * (m - mean[..., None]) ** 2).sum(axis=-1) / total
    log_z = top[..., 0] + np.log(total * width * (NODES[1] - NODES[0])) - 0.5 * np.log(2 * np.pi * c_var)
    return log_z, mean, np.minimum(np.maximum(var, 1e-12), c_var * (1 - 1e-9))


def _grid_moments(loglik: np.ndarray, start: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision (C, K) of each likelihood, as a density over its grid."""
    mass = np.exp(loglik - loglik.max(axis=-1, keepdims=True))
    total = mass.sum(axis=-1)
    place = np.arange(loglik.shape[2])
    mean = (mass @ place) / total
    var = (mass @ place**2) / total - mean**2
    return start + step * mean, 1 / (step**2 * np.maximum(var, 0.01))
