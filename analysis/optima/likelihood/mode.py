"""The most probable basin, by Gauss-Newton: where to evaluate the likelihood, and how widely.

The model of the mean loss y at the log rate u in slice k with optimum m, floor L and covariates z is

    y / L - 1 = e^(ln curvature + g z) S(u - m; skew, tail) + noise

with the basin S of `basin.py`. The noise has the variance sigma^2 / runs + (MISFIT * model)^2: no curve of
three parameters is the loss far from the optimum, and a miss there is a fraction of how far the loss has
risen. The optima follow a law in the covariates to within SCATTER here; the law itself is estimated
elsewhere. Every parameter of the shape has a weak prior: too few rates are no failure, but a wide answer.
"""

import math
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.likelihood.basin import excess_slope, skewed_excess
from hyperp.analysis.optima.likelihood.curves import RateCurves
from hyperp.analysis.vocabulary import LN2

# K: slices   n: rates in the longest slice   q: covariates   D: shape parameters, 3 + q   P: 1 + q

CURVATURE = (math.log(0.01 / LN2**2), 1.5)  # mean and SD of ln curvature: 1% an octave squared, times 4.5
SKEW = (0.3 / LN2, 0.5 / LN2)  # mean and SD per natural log; public sweeps have -0.3 to 1.1 an octave
TAIL = (math.log(0.1 / LN2**2), 1.0)  # mean and SD of ln tail: 0.1 an octave squared, times 2.7
GROWTH = (0.0, 0.3)  # mean and SD of an exponent of the curvature
NOISE = (math.log(0.002), 1.2)  # mean and SD of ln sigma: 0.2% of the loss, times 3.3
MISFIT = 0.1  # SD of the relative error of the basin's height
FLOOR_SD = 1.0  # of the change of ln floor in one step; it only keeps the equations regular
SCATTER = 0.3 * LN2  # of the optima about the law, while the mode is sought
LEAST_NOISE = 1e-6  # relative, of one run while the mode is sought
SPIKES = 0.02  # share of runs whose loss is too high by chance, by SPIKE on average
SPIKE = 0.02
LARGEST_SKEW = 3.0 / LN2  # per natural log; public sweeps have at most 1.1 an octave
STEPS = 80
ROBUST_STEPS = 12  # in which the noise is that of the median run
CLOSE = 1e-4  # natural log; the search ends once no parameter moves by more


@dataclass(frozen=True)
class BasinMode:
    """The mode and what surrounds it.

    Attributes:
        shape: (D,) ln curvature at the mean of the covariates, skew, ln tail, and the curvature's exponents.
        cov: (D, D) their covariance.
        log_noise, log_noise_sd: ln sigma and its standard error.
        optimum, optimum_sd: (K,) natural logs, and their standard errors given the shape.
        floor: (K,) relative to the lowest mean loss.
        model: (K, n) relative excess loss.
        sound: (K, n) probability that a mean is no spike; 0 for padding.
        residual: (K, n) relative excess loss less the model.
        converged: whether the last step moved no parameter by more than CLOSE.
    """

    shape: np.ndarray
    cov: np.ndarray
    log_noise: float
    log_noise_sd: float
    optimum: np.ndarray
    optimum_sd: np.ndarray
    floor: np.ndarray
    model: np.ndarray
    sound: np.ndarray
    residual: np.ndarray
    converged: bool


def shape_prior(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD of ln curvature, skew, ln tail and `size` - 3 exponents of the curvature, each (size,)."""
    each = [CURVATURE, SKEW, TAIL, *[GROWTH] * (size - 3)]
    return np.array([mean for mean, _ in each]), np.array([sd for _, sd in each])


def find_mode(
    curves: RateCurves, Z: np.ndarray, scatter: float = SCATTER, highest: float = np.inf
) -> BasinMode:
    """The most probable basin, optima and floors.

    Args:
        curves: the runs.
        Z: (K, q) natural logs of the covariates, centred.
        scatter: of the optima about a law in Z while the mode is sought, natural log.
        highest: relative excess loss of a mean, above which it is left out; the three lowest never are.
    """
    real = curves.count > 0
    third = np.sort(np.where(real, curves.y, np.inf), axis=1)[:, :3].max(axis=1)
    real &= curves.y <= np.maximum(1 + highest, third)[:, None]
    count = np.where(real, curves.count, 1.0)
    K, q = Z.shape
    X = np.column_stack([np.ones(K), Z])
    prior_mean, prior_sd = shape_prior(3 + q)
    limit = np.array([1.0, 0.7, 1.0, *[0.3] * q])
    shape, log_noise = prior_mean.copy(), NOISE[0]
    m = curves.u[np.arange(K), curves.best]
    beta = np.linalg.lstsq(X, m, rcond=None)[0]
    floor, sound = np.ones(K), real * 1.0
    model = residual = np.zeros_like(curves.u)
    converged, freedom, solved = False, 0.0, None
    for step in range(STEPS):
        v = curves.u - m[:, None]
        S, slope, by_skew, by_tail = _basin_derivatives(v, float(shape[1]), float(shape[2]))
        height = np.exp(np.clip(shape[0] + Z @ shape[3:], -20, 10))[:, None]
        model = height * S
        residual = curves.y / floor[:, None] - 1 - model
        own = np.exp(2 * log_noise) / count
        variance = own + (MISFIT * model) ** 2
        if step >= 3:
            sound = _sound(residual, variance, real)
        w = sound / variance
        J = np.stack(
            [model, height * by_skew, height * by_tail, *(model * Z[:, j, None] for j in range(q))], axis=-1
        )
        local = np.stack([-height * slope, curves.y / floor[:, None]], axis=-1)
        solved = _solve_step(
            residual,
            w,
            J,
            local,
            (prior_mean - shape) / prior_sd**2,
            prior_sd,
            m - X @ beta,
            X,
            scatter,
            step,
        )
        d_shape = np.clip(solved.shape, -limit, limit)
        d_m = np.clip(solved.local[:, 0], -0.7, 0.7)
        shape, m, beta = shape + d_shape, m + d_m, beta + solved.law
        shape[1] = np.clip(shape[1], -LARGEST_SKEW, LARGEST_SKEW)
        shape[2] = np.clip(shape[2], TAIL[0] - 5 * TAIL[1], TAIL[0] + 3 * TAIL[1])
        floor = floor * np.exp(np.clip(solved.local[:, 1], -0.1, 0.1))
        # The share of noise in the variance: far runs say little about it.
        share = own / variance
        freedom = max(float((sound * share).sum()) - 2 * K - 3 - q, 0.0) + curves.seed_df
        squares = float((sound * count * (share * residual) ** 2).sum()) + curves.seed_squares
        # Half of the way: spikes and the noise that they are judged by would go back and forth.
        log_noise = 0.5 * (log_noise + _noise_mode(log_noise, squares, freedom))
        if step < ROBUST_STEPS:  # spikes would hide in the noise that they make
            rough = np.median(np.abs((residual * np.sqrt(count) * share)[real])) / 0.6745
            spent = max(1 - (2 * K + 3 + q) / max(real.sum(), 1), 0.2)
            log_noise = min(log_noise, math.log(max(rough / math.sqrt(spent), LEAST_NOISE)))
        moved = max(np.abs(d_m).max(), np.abs(d_shape).max())
        if moved < CLOSE and step > ROBUST_STEPS + 3:
            converged = True
            break
    assert solved is not None
    optimum_sd, cov = solved.optimum_sd, solved.cov
    log_noise_sd = (2 * freedom + NOISE[1] ** -2) ** -0.5
    return BasinMode(
        shape, cov, log_noise, log_noise_sd, m, optimum_sd, floor, model, sound, residual, converged
    )


@dataclass(frozen=True)
class _Step:
    """A Gauss-Newton step, and the errors that its normal equations leave."""

    shape: np.ndarray  # (D,)
    law: np.ndarray  # (P,)
    local: np.ndarray  # (K, 2): optimum, ln floor
    cov: np.ndarray  # (D, D) of the shape
    optimum_sd: np.ndarray  # (K,) given the shape


def _solve_step(
    residual: np.ndarray,
    w: np.ndarray,
    J: np.ndarray,
    local: np.ndarray,
    pull: np.ndarray,
    prior_sd: np.ndarray,
    away: np.ndarray,
    X: np.ndarray,
    scatter: float,
    step: int,
) -> _Step:
    """Solve the normal equations with the optimum and floor of each slice eliminated.

    Args:
        residual, w: (K, n) and its weights.
        J: (K, n, D) derivatives of the model with respect to the shape.
        local: (K, n, 2) those with respect to the slice's own optimum and ln floor.
        pull, prior_sd: (D,) gradient of the shape's prior, and its SD.
        away: (K,) optima less the law.
        X: (K, P) design of the law.
        scatter: SD of the optima about the law.
        step: how many there were; the damping shrinks with it.
    """
    (K, P), D = X.shape, J.shape[-1]
    # Blocks: l for (optimum, ln floor) of a slice, g for shape and law.
    wl = w[..., None] * local
    ll = wl.swapaxes(1, 2) @ local
    lg = np.concatenate([wl.swapaxes(1, 2) @ J, np.zeros((K, 2, P))], axis=-1)
    l_right = (wl * residual[..., None]).sum(axis=1)
    wj = (w[..., None] * J).reshape(-1, D)
    gg = np.zeros((D + P, D + P))
    gg[:D, :D] = wj.T @ J.reshape(-1, D) + np.diag(prior_sd**-2)
    g_right = np.concatenate([wj.T @ residual.ravel() + pull, np.zeros(P)])
    ll += np.diag([scatter**-2, FLOOR_SD**-2])
    lg[:, 0, D:] -= X / scatter**2
    l_right[:, 0] -= away / scatter**2
    gg[D:, D:] += X.T @ X / scatter**2 + 1e-6 * np.eye(P)
    g_right[D:] += X.T @ away / scatter**2
    inverse = np.linalg.inv(ll + ll * np.eye(2) * (0.3 * 0.5**step + 1e-9))
    reduced = gg - (lg.swapaxes(1, 2) @ inverse @ lg).sum(axis=0)
    right = g_right - (lg.swapaxes(1, 2) @ (inverse @ l_right[..., None])).sum(axis=0)[:, 0]
    delta = np.linalg.solve(reduced + np.diag(np.diag(gg)) * 1e-9, right)
    own = (inverse @ (l_right - (lg @ delta))[..., None])[..., 0]
    cov = np.linalg.inv(reduced)[:D, :D]
    return _Step(delta[:D], delta[D:], own, cov, np.sqrt(inverse[:, 0, 0]))


def _basin_derivatives(
    v: np.ndarray, skew: float, log_tail: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The basin at v, and its derivatives with respect to v, skew and ln tail."""
    h, tail = 1e-4, math.exp(log_tail)
    by_skew = skewed_excess(v, skew + h, tail) - skewed_excess(v, skew - h, tail)
    by_tail = skewed_excess(v, skew, tail * (1 + h)) - skewed_excess(v, skew, tail * (1 - h))
    return skewed_excess(v, skew, tail), excess_slope(v, skew, tail), by_skew / (2 * h), by_tail / (2 * h)


def _sound(residual: np.ndarray, variance: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Probability that a residual is noise and no spike: a mixture with exponential spikes upwards."""
    noise = (1 - SPIKES) * np.exp(-0.5 * residual**2 / variance) / np.sqrt(2 * np.pi * variance)
    spike = SPIKES * np.exp(-np.maximum(residual, 0) / SPIKE) / SPIKE * (residual > 0)
    return np.where(real, noise / np.maximum(noise + spike, 1e-300), 0.0)


def _noise_mode(log_noise: float, squares: float, freedom: float) -> float:
    """The most probable ln sigma for so many squares with so many degrees of freedom, and its prior."""
    for _ in range(20):
        ratio = squares * math.exp(-2 * log_noise)
        gradient = ratio - freedom - (log_noise - NOISE[0]) / NOISE[1] ** 2
        move = gradient / (2 * ratio + NOISE[1] ** -2)
        log_noise += min(max(move, -1.0), 1.0)
    return log_noise
