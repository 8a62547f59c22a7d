"""Fit each slice its own optimum with the shared shape held, and find the state of each slice."""

from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.basin.shape import (
    LossCurves,
    invert_small,
    monomials,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)
from hyperp.analysis.optima.optimum import MIN_RATES
from hyperp.analysis.vocabulary import State

# K: slices   m: runs in the longest slice   p: what is tuned   S: terms of the shape   ...: resamples

MARGIN = 2.0  # natural log by which a location may leave the rates of its slice
LARGEST_STEP = 0.7  # largest move of a location in one Gauss-Newton step, natural log
TUNED_NAMES = ("rate", "batch")
# A slice has a second valley if, going away from its best run, the relative excess loss falls again by more
# than DIP, by more than FALLS times what it falls in the median other slice, and to VALLEY or less. (Above
# that, near divergence, the loss is erratic in good sweeps too.)
DIP = 0.005
VALLEY = 0.05
FALLS = 3.0


@dataclass(frozen=True)
class SliceFits:
    """Fits of slices with the shape held.

    Attributes:
        optimum: (..., K, p) natural logs.
        floor: (..., K) loss at the optimum.
        residual, weight: (..., K, m) of each run.
        cov: (..., K, p, p) covariance of the optimum for a noise of one.
        spent: (..., K) degrees of freedom that floor and optimum use, for a noise of one.
        size, square: (..., K) sums of the weights and of their squares, both per seed.
    """

    optimum: np.ndarray
    floor: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    cov: np.ndarray
    spent: np.ndarray
    size: np.ndarray
    square: np.ndarray

    def noise(self, keep: np.ndarray, shared: int) -> float:
        """Residual standard deviation of one run over the slices in the mask `keep`; `shared` as in `df`."""
        squares = (self.weight * self.residual**2)[keep].sum()
        return float(np.sqrt(squares / self.df(keep, shared)))

    def df(self, keep: np.ndarray, shared: int) -> float:
        """Degrees of freedom of the noise over the slices in the mask `keep` (K,).

        E[sum w e^2] = noise^2 (tr W - tr (J'WJ)^-1 J'W^2J). For the slices' own columns, the second trace is
        `spent`; each of the `shared` columns of the shape takes as much as a mean run.
        """
        left = (self.size - self.spent)[keep].sum()
        left -= shared * self.square[keep].sum() / self.weight[keep].sum()
        # Never fewer than a tenth of the runs, because an estimate from fewer would be a matter of luck.
        return float(max(left, 0.1 * self.size[keep].sum()))


def fit_slices(
    curves: LossCurves,
    powers: np.ndarray,
    coef: np.ndarray,
    where: np.ndarray,
    floor: np.ndarray,
    iterations: int,
    scale: float,
    tolerance: float = 0.0,
    damping: float = 1e-3,
) -> SliceFits:
    """Fit each slice its own optimum and floor by Gauss-Newton, with the shape held.

    Args:
        curves: the slices; `loss` (..., K, m) may hold many resamples.
        powers, coef: the common shape, (S, p) and (..., S).
        where, floor: where to start, (..., K, p) natural logs and (..., K).
        iterations: at most so many steps.
        scale: of the weights.
        tolerance: stop once a step moves no location by more, in natural logs.
        damping: of the first step, relative to the trace; 0 for a warm start.
    """
    coef = coef[..., None, :] * curves.amplitude[:, None]
    low, high = curves.low - MARGIN, curves.high + MARGIN
    identity = np.eye(curves.u.shape[-1])
    for step in range(iterations):
        residual, w, G, G_c = _linearise(curves, powers, coef, where, floor, scale)
        weighted = w[..., None] * G_c
        normal = weighted.swapaxes(-1, -2) @ G_c
        ridge = np.trace(normal, axis1=-2, axis2=-1)[..., None, None] * identity
        gradient = (weighted * residual[..., None]).sum(axis=-2)
        damped = normal + ridge * (damping * 0.3**step + 1e-12) + 1e-30 * identity
        move = np.clip((invert_small(damped) @ gradient[..., None])[..., 0], -LARGEST_STEP, LARGEST_STEP)
        new = np.clip(where + move, low, high)
        total = w.sum(axis=-1)
        mean_G = (w[..., None] * G).sum(axis=-2) / total[..., None]
        mean = (residual * w).sum(axis=-1) / total - (mean_G * (new - where)).sum(axis=-1)
        moved = np.abs(new - where).max()
        where, floor = new, floor * (1 + mean)
        if moved < tolerance and step >= 3:
            break
    residual, w, _, G_c = _linearise(curves, powers, coef, where, floor, scale)
    per_seed = w**2 / np.maximum(curves.count, 1e-300)
    normal = (w[..., None] * G_c).swapaxes(-1, -2) @ G_c
    meat = (per_seed[..., None] * G_c).swapaxes(-1, -2) @ G_c
    bread = invert_small(normal + 1e-30 * identity)
    size = (w / np.maximum(curves.count, 1e-300)).sum(axis=-1)
    square = per_seed.sum(axis=-1)
    spent = square / w.sum(axis=-1) + np.trace(bread @ meat, axis1=-2, axis2=-1)
    return SliceFits(where, floor, residual, w, bread @ meat @ bread, spent, size, square)


def _linearise(
    curves: LossCurves,
    powers: np.ndarray,
    coef: np.ndarray,
    where: np.ndarray,
    floor: np.ndarray,
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Residuals, weights, gradient in the location, and that gradient with the floor eliminated.

    `coef` (..., K, S) is the shape of each slice.
    """
    v = curves.u - where[..., None, :]
    excess = curves.loss / floor[..., None] - 1
    w = run_weights(excess, curves.count, scale)
    residual = excess - (monomials(v, powers) @ coef[..., None])[..., 0]
    G = -shape_gradient(v, powers, coef[..., None, :])
    return residual, w, G, subtract_weighted_means(G, residual, w)[0]


def distinct_values(curves: LossCurves, k: int) -> list[np.ndarray]:
    """The distinct natural logs of each tuned quantity in slice k."""
    real = curves.count[k] > 0
    return [np.unique(curves.u[k, real, j]) for j in range(curves.u.shape[2])]


def few_values_reason(curves: LossCurves, k: int) -> str | None:
    """Why slice k has too few distinct rates or batches to show a bottom; None if it has enough."""
    least, name = min(
        (len(v), name) for v, name in zip(distinct_values(curves, k), TUNED_NAMES, strict=False)
    )
    return f"{least} distinct {name}(s), at least {MIN_RATES} are needed" if least < MIN_RATES else None


def second_valley_reasons(curves: LossCurves) -> list[str | None]:
    """For each slice, why its loss falls again after it rose from the best run; None where it does not.

    Only slices along the rate alone are examined. The other slices tell how far noise makes a loss fall. The
    residuals of a fitted shape cannot: a slice that is no bowl distorts the shape of all, and so hides.
    """
    K = len(curves.labels)
    if curves.u.shape[2] > 1:
        return [None] * K
    falls = [_largest_fall(curves, k) for k in range(K)]
    reasons = []
    for k, (fall, at) in enumerate(falls):
        others = sorted(f for j, (f, _) in enumerate(falls) if j != k)
        usual = others[(len(others) - 1) // 2] if others else 0.0
        second = fall > max(DIP, FALLS * usual)
        reasons.append(f"the loss falls again by {100 * fall:.2g}% at {at:.4g}" if second else None)
    return reasons


def _largest_fall(curves: LossCurves, k: int) -> tuple[float, float]:
    """Largest relative fall of the loss, going outwards from the best run of slice k, and the rate there."""
    real = curves.count[k] > 0
    x, at = np.unique(curves.u[k, real, 0], return_inverse=True)
    total = np.bincount(at, weights=(curves.count * curves.loss)[k, real])
    mean = total / np.bincount(at, weights=curves.count[k, real])
    best = int(np.argmin(mean))
    found = (0.0, float(np.exp(x[best])))
    for side in (slice(best, None), slice(best, None, -1)):
        walk = mean[side] / mean[best] - 1
        fall = np.where(walk > VALLEY, 0.0, np.maximum.accumulate(walk) - walk)
        worst = int(np.argmax(fall))
        found = max(found, (float(fall[worst]), float(np.exp(x[side][worst]))))
    return found


def slice_state(
    curves: LossCurves, k: int, located: SliceFits, scale: float, noise: float
) -> tuple[State, str | None]:
    """The state of slice k, which has at least three rates, and why it is not bracketed, if so.

    Args:
        curves, k: the slices, and the index of one.
        located: their fits with the shape held.
        scale: of the weights.
        noise: residual standard deviation of one run.
    """
    flat = _negative_curvature_reason(curves, k, located, scale, noise)
    if flat is not None:
        return "not_convex", flat
    for j in range(curves.u.shape[2]):
        low, high, at = (float(np.exp(x[k, j])) for x in (curves.low, curves.high, located.optimum))
        if at < low:
            return "edge_low", f"the optimum lies below the lowest {TUNED_NAMES[j]}, {low:.4g}"
        if at > high:
            return "edge_high", f"the optimum lies above the highest {TUNED_NAMES[j]}, {high:.4g}"
    return "bracketed", None


def _negative_curvature_reason(
    curves: LossCurves, k: int, located: SliceFits, scale: float, noise: float
) -> str | None:
    """Why slice k is not convex, if a curvature of its own weighted quadratic is significantly negative."""
    p = curves.u.shape[2]
    if ((curves.best[k] == curves.low[k]) | (curves.best[k] == curves.high[k])).any():
        return None  # a curve whose bottom lies beyond the runs may bend either way
    v = curves.u[k] - curves.best[k]
    first, second = np.triu_indices(p)
    J = np.column_stack([np.ones(len(v)), v, v[:, first] * v[:, second]])
    w = run_weights(curves.loss[k] / located.floor[k] - 1, curves.count[k], scale)
    normal = J.T @ (w[:, None] * J)
    if np.linalg.cond(normal) > 1e12:
        return None
    bread = np.linalg.inv(normal)
    beta = bread @ J.T @ (w * (curves.loss[k] / located.floor[k] - 1))
    cov = noise**2 * bread @ (J.T @ ((w**2 / np.maximum(curves.count[k], 1e-300))[:, None] * J)) @ bread
    A = np.zeros((p, p))
    A[first, second] += beta[1 + p :] / 2
    A[second, first] += beta[1 + p :] / 2
    values, vectors = np.linalg.eigh(A)
    along = vectors[first, 0] * vectors[second, 0]
    se = float(np.sqrt(along @ cov[1 + p :, 1 + p :] @ along))
    if values[0] + 1.645 * se < 0:
        return f"its own curvature is negative, {values[0]:.3g} +- {se:.2g}"
    return None
