"""Where the fits of a loss law start: exponents on a grid, and at each the best floor and terms."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.special import huber

from hyperp.analysis.loss.solver import BLOCK, Layout, SolverPoints

GRID = {1: 64, 2: 20}  # exponents along each axis of the grid, by how many are fitted
GRID_ROWS = 4096  # the grid uses at most so many points: it only finds where to start

# Shapes as in `solver`: R fits, n points, S data sets, K terms, M = 1 + K, P parameters.


def fit_linear_parameters(
    exponents_RK: np.ndarray,
    points: SolverPoints,
    floors: Sequence[np.ndarray | None],
    rounds: int = 6,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the non-negative (E, A_1, ..., A_K) of each data set for given exponents.

    Args:
        exponents_RK: the exponents of each fit.
        points: losses and weights, one row for all fits or one row for each.
        floors: for each data set the floors E (R,) to hold; None fits them.
        rounds: how often the logarithm and the Huber weights are linearised again.

    Returns:
        (linear_RSM, objective_R): (E, A_1, ..., A_K) at the geometric means of x, and the Huber sum there.
    """
    parts = [points.columns(np.flatnonzero(points.set_n == s)) for s in range(points.layout.sets)]
    found = [
        _fit_linear_set(exponents_RK, part, floor, rounds) for part, floor in zip(parts, floors, strict=True)
    ]
    return np.stack([linear for linear, _ in found], axis=1), sum(
        (value for _, value in found), np.zeros(len(exponents_RK))
    )


def _fit_linear_set(
    exponents_RK: np.ndarray, points: SolverPoints, floor_R: np.ndarray | None, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """The linear parameters (R, M) of one data set by reweighted least squares, and its Huber sum (R,)."""
    columns = np.exp(-exponents_RK[:, :, None] * points.u_Kn)
    columns = np.concatenate([np.ones_like(columns[:, :1]), columns], axis=1)
    law, weights = np.exp(points.y_Rn), points.weights_Rn
    linear, residual = np.empty(0), np.zeros_like(points.y_Rn)
    for _ in range(rounds):
        design = columns * (np.sqrt(weights) / law)[:, None]
        target = np.broadcast_to(np.sqrt(weights) * (1 - residual), design[:, 0].shape)
        linear = nonnegative_least_squares(design, target, floor_R)
        law = np.einsum("rm,rmn->rn", linear, columns)
        residual = np.log(law) - points.y_Rn
        weights = points.weights_Rn / np.maximum(np.abs(residual) / points.delta, 1.0)
    return linear, (points.weights_Rn * huber(points.delta, residual)).sum(axis=1)


def nonnegative_least_squares(
    design_RMn: np.ndarray, target_Rn: np.ndarray, first_R: np.ndarray | None
) -> np.ndarray:
    """Exact non-negative least squares with M of at most three, by trying every set of positive coefficients.

    Args:
        design_RMn: the columns of each problem.
        target_Rn: what they fit.
        first_R: values to hold for the first coefficient; None fits it.

    Returns:
        (R, M) coefficients.
    """
    R, M = design_RMn.shape[:2]
    fixed = 0 if first_R is None else 1
    out, best = np.zeros((R, M)), np.full(R, np.inf)
    if first_R is not None:
        target_Rn = target_Rn - first_R[:, None] * design_RMn[:, 0]
        out[:, 0] = first_R
    gram = design_RMn @ design_RMn.transpose(0, 2, 1)
    image = np.matmul(design_RMn, target_Rn[:, :, None])[:, :, 0]
    for count in range(1, M + 1 - fixed):
        for chosen in itertools.combinations(range(fixed, M), count):
            at = np.array(chosen)
            matrix = gram[:, at[:, None], at]
            ridge = 1e-13 * np.einsum("rpp->rp", matrix) + 1e-300
            matrix[:, range(count), range(count)] += ridge
            found = np.linalg.solve(matrix, image[:, at, None])[:, :, 0]
            value = -(found * image[:, at]).sum(axis=1)
            win = (found > 0).all(axis=1) & (value < best)
            best = np.where(win, value, best)
            out[win, fixed:] = 0.0
            out[win[:, None] & np.isin(np.arange(M), at)] = found[win].ravel()
    # With a floor held above every loss no term is positive; the start must still be finite.
    tiny = (out[:, fixed:] <= 0).all(axis=1)
    out[tiny, fixed] = np.maximum(out[tiny, fixed], 1e-6 * (target_Rn[tiny] ** 2).sum(axis=1) + 1e-12)
    return out


def starting_points(points: SolverPoints, low: np.ndarray, high: np.ndarray, most: int = 6) -> np.ndarray:
    """Where to start (S, P), best first: the local minima over a grid of exponents, E and A fitted at each.

    Args:
        points: losses and weights in one row.
        low, high: (P,) bounds; a parameter with equal bounds is held there.
        most: at most so many starts.
    """
    layout, n = points.layout, points.u_Kn.shape[1]
    if n > GRID_ROWS:
        points = points.columns(_some_of_each_set(points, GRID_ROWS // layout.sets))
    held, first = low == high, layout.linear
    count = layout.size - first
    axes = [
        np.array([low[first + q]]) if held[first + q] else np.geomspace(0.03, 2.0, GRID[count])
        for q in range(count)
    ]
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    exponents = np.broadcast_to(grid, (len(grid), layout.terms))
    linear, value, size = [], [], max(1, BLOCK // points.u_Kn.shape[1])
    for start in range(0, len(grid), size):
        part = exponents[start : start + size]
        floors = [np.full(len(part), low[s]) if held[s] else None for s in range(layout.sets)]
        found = fit_linear_parameters(part, points, floors, rounds=4)
        linear.append(found[0])
        value.append(found[1])
    table = np.concatenate(value).reshape([len(a) for a in axes])
    chosen = np.flatnonzero(table == minimum_filter(table, size=3))
    chosen = chosen[np.argsort(table.ravel()[chosen], kind="stable")][:most]
    return start_from_linear(np.concatenate(linear)[chosen], exponents[chosen], layout)


def _some_of_each_set(points: SolverPoints, most: int) -> np.ndarray:
    """Indices of at most so many points of each data set, evenly spaced over its sorted points."""
    sets = [np.flatnonzero(points.set_n == s) for s in range(points.layout.sets)]
    return np.concatenate([i[np.linspace(0, len(i) - 1, min(len(i), most)).astype(int)] for i in sets])


def start_from_linear(linear_RSM: np.ndarray, exponents_RK: np.ndarray, layout: Layout) -> np.ndarray:
    """Parameters z (R, P) from linear ones and exponents; a term of size zero starts small, not absent."""
    least = 1e-4 * linear_RSM.sum(axis=2, keepdims=True)
    terms = np.log(np.maximum(linear_RSM[:, :, 1:], least))
    return layout.join(linear_RSM[:, :, 0], terms.transpose(0, 2, 1), exponents_RK)
