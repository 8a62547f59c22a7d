"""The state of each slice: whether it brackets its optimum, and if not, why."""

from collections.abc import Sequence

import numpy as np

from hyperp.analysis.optima.basin.descent import BasinParameters
from hyperp.analysis.optima.basin.shape import LossCurves, run_weights
from hyperp.analysis.optima.optimum import MIN_RATES
from hyperp.analysis.vocabulary import State

# K: slices   m: runs in the longest slice   p: what is tuned

# A slice has a second valley if, going away from its best run, the relative excess loss falls again by more
# than DIP, by more than FALLS times what it falls in the median other slice, and to VALLEY or less. (Above
# that, near divergence, the loss is erratic in good sweeps too.)
DIP = 0.005
VALLEY = 0.05
FALLS = 3.0


def distinct_values(curves: LossCurves, k: int) -> list[np.ndarray]:
    """The distinct natural logs of each tuned quantity in slice k."""
    real = curves.count[k] > 0
    return [np.unique(curves.u[k, real, j]) for j in range(curves.u.shape[2])]


def few_values_reason(curves: LossCurves, k: int, names: Sequence[str]) -> str | None:
    """Why slice k has too few distinct values of something tuned to show a bottom; None if it has enough."""
    least, name = min((len(v), name) for v, name in zip(distinct_values(curves, k), names, strict=False))
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
    curves: LossCurves,
    k: int,
    located: BasinParameters,
    scale: float,
    noise: float | None,
    names: Sequence[str],
) -> tuple[State, str | None]:
    """The state of slice k, which has at least three rates, and why it is not bracketed, if so.

    Args:
        curves, k: the slices, and the index of one.
        located: their optima and floors with the shape held.
        scale: of the weights.
        noise: residual standard deviation of one run; None if unknown.
        names: of what is tuned.
    """
    flat = None if noise is None else _negative_curvature_reason(curves, k, located, scale, noise)
    if flat is not None:
        return "not_convex", flat
    for j, name in enumerate(names[: curves.u.shape[2]]):
        low, high, at = (float(np.exp(x[k, j])) for x in (curves.low, curves.high, located.optimum))
        if at < low:
            more = f"; run {low / 2:.4g} and {low / 4:.4g} too" if j else ""
            return "edge_low", f"the optimum lies below the lowest {name}, {low:.4g}{more}"
        if at > high:
            more = f"; run {high * 2:.4g} and {high * 4:.4g} too" if j else ""
            return "edge_high", f"the optimum lies above the highest {name}, {high:.4g}{more}"
    return "bracketed", None


def _negative_curvature_reason(
    curves: LossCurves, k: int, located: BasinParameters, scale: float, noise: float
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
