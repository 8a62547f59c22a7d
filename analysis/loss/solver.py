"""Huber fits of L = E + sum_k A_k x_k^-e_k to log losses, many side by side.

The fits that run together start at different places, hold different floors, or fit different resamples. For
given exponents e the law is linear in (E, A_1, ..., A_K) (variable projection). So non-negative least squares
on a grid of exponents finds the starting points, and Newton steps in all parameters refine them.

Shapes: R fits, n points, K terms, P = 1 + 2 K parameters, M = 1 + K linear parameters.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.special import huber

EXPONENTS = (0.01, 3.0)  # the report names an exponent that ends at either bound
GRID = {1: 64, 2: 20}  # exponents along each axis of the grid, by the number of terms
GRID_ROWS = 4096  # the grid uses at most so many points: it only finds where to start
BLOCK = 60_000  # doubles in one (R, n) block, so that its Jacobian stays in the cache
NEGLIGIBLE = 1e-9  # of the smallest loss: a smaller term or floor counts as absent


@dataclass(frozen=True)
class SolverPoints:
    """The points to fit.

    Attributes:
        u_Kn: ln of each covariate over its geometric mean.
        y_Rn: ln of the loss; one row (R = 1) serves all fits.
        weights_Rn: weight of each point; one row serves all fits.
        delta: threshold of the Huber loss, on ln(loss).
    """

    u_Kn: np.ndarray
    y_Rn: np.ndarray
    weights_Rn: np.ndarray
    delta: float

    def rows(self, index: np.ndarray | slice) -> "SolverPoints":
        """The points of the fits in `index`; losses or weights that all fits share stay shared."""
        y = self.y_Rn if len(self.y_Rn) == 1 else self.y_Rn[index]
        weights = self.weights_Rn if len(self.weights_Rn) == 1 else self.weights_Rn[index]
        return replace(self, y_Rn=y, weights_Rn=weights)


@dataclass(frozen=True)
class Solution:
    """Fitted parameters.

    Attributes:
        z_RP: (E, ln A_1, ..., e_1, ...), with A_k the size of its term at the geometric mean of x_k.
        objective_R: weighted sum of Huber losses.
        converged_R: whether the last Newton step expected no further decrease.
    """

    z_RP: np.ndarray
    objective_R: np.ndarray
    converged_R: np.ndarray


@dataclass(frozen=True)
class HuberSum:
    """The weighted sum of Huber losses and its derivatives at one z for each fit.

    Attributes:
        value_R: the sum.
        gradient_RP: its gradient.
        hessian_RPP: its Hessian without the second derivatives of the law (Gauss-Newton).
        majoriser_RPP: the Hessian of the iteratively reweighted least squares that majorises the sum.
    """

    value_R: np.ndarray
    gradient_RP: np.ndarray
    hessian_RPP: np.ndarray
    majoriser_RPP: np.ndarray

    def select(self, index: np.ndarray) -> "HuberSum":
        """The sums of the fits in `index`."""
        return HuberSum(*(a[index] for a in vars(self).values()))

    def where(self, chosen_R: np.ndarray, other: "HuberSum") -> "HuberSum":
        """These sums where `chosen_R`, else those of `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return HuberSum(*(np.where(chosen_R.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


def log_law(z_RP: np.ndarray, u_Kn: np.ndarray) -> np.ndarray:
    """ln of the law, ln(E + sum_k A_k exp(-e_k u_k)), shape (R, n)."""
    K = len(u_Kn)
    terms = np.exp(z_RP[:, 1 : 1 + K, None] - z_RP[:, 1 + K :, None] * u_Kn)
    return np.log(z_RP[:, :1] + terms.sum(axis=1))


def parameter_bounds(points: SolverPoints, pins: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value (P,) of each parameter.

    Args:
        points: the points; the bounds scale with their losses.
        pins: values to hold, by the index of the parameter; both of its bounds are that value.
    """
    K = len(points.u_Kn)
    loss = np.exp([points.y_Rn.min(), points.y_Rn.max()])
    low = np.array([0.0, *[np.log(loss[0] * NEGLIGIBLE)] * K, *[EXPONENTS[0]] * K])
    high = np.array([loss[1], *[np.log(loss[1] * 1e6)] * K, *[EXPONENTS[1]] * K])
    for index, value in pins.items():
        low[index] = high[index] = value
    return low, high


def evaluate_huber_sum(z_RP: np.ndarray, points: SolverPoints) -> HuberSum:
    """The Huber sum and its derivatives at every row of `z_RP`."""
    K = len(points.u_Kn)
    terms = np.exp(z_RP[:, 1 : 1 + K, None] - z_RP[:, 1 + K :, None] * points.u_Kn)
    law = z_RP[:, :1] + terms.sum(axis=1)
    residual = np.log(law) - points.y_Rn
    size = np.abs(residual)
    inside = size <= points.delta
    value = (points.weights_Rn * huber(points.delta, residual)).sum(axis=1)
    terms /= law[:, None]
    jacobian = np.concatenate([1 / law[:, None], terms, -points.u_Kn * terms], axis=1)
    irls = points.weights_Rn * np.where(inside, 1.0, points.delta / np.maximum(size, points.delta))
    gradient = np.matmul(jacobian, (irls * residual)[:, :, None])[:, :, 0]
    newton = jacobian * (points.weights_Rn * inside)[:, None]
    transposed = jacobian.transpose(0, 2, 1)
    return HuberSum(value, gradient, newton @ transposed, (jacobian * irls[:, None]) @ transposed)


def polish(
    z_RP: np.ndarray, points: SolverPoints, low_RP: np.ndarray, high_RP: np.ndarray, steps: int = 300
) -> Solution:
    """Minimise the Huber sum from each row of `z_RP` by damped Newton steps within bounds.

    The Hessian of a Huber sum sees only residuals within delta. The majoriser (iteratively reweighted least
    squares) sees all residuals and always descends. The steps use the Hessian plus an adaptive multiple of
    the majoriser, which is fast near the optimum and safe away from it.

    Args:
        z_RP: where each fit starts.
        points: the points of all fits.
        low_RP, high_RP: bounds of the parameters, (R, P) or (P,).
        steps: at most so many steps.
    """
    R = len(z_RP)
    low_RP, high_RP = np.broadcast_to(low_RP, z_RP.shape), np.broadcast_to(high_RP, z_RP.shape)
    z_out, value_out, done_out = np.empty_like(z_RP), np.empty(R), np.zeros(R, dtype=bool)
    size = max(1, BLOCK // points.u_Kn.shape[1])
    for start in range(0, R, size):
        block = slice(start, min(start + size, R))
        found = _polish(z_RP[block], points.rows(block), low_RP[block], high_RP[block], steps)
        z_out[block], value_out[block], done_out[block] = found.z_RP, found.objective_R, found.converged_R
    return Solution(z_out, value_out, done_out)


def _polish(
    z_RP: np.ndarray, points: SolverPoints, low_RP: np.ndarray, high_RP: np.ndarray, steps: int
) -> Solution:
    z_out = np.clip(z_RP, low_RP, high_RP)
    value_out, done_out = np.full(len(z_RP), np.inf), np.zeros(len(z_RP), dtype=bool)
    active = np.arange(len(z_RP))
    z, low, high, own = z_out.copy(), low_RP, high_RP, points
    damping, state = np.full(len(z), 1.0), evaluate_huber_sum(z, points)
    scale = points.weights_Rn.sum(axis=1) * points.delta**2  # unit in which a Huber sum is of order one
    scale = np.broadcast_to(scale, len(z))
    for _ in range(steps):
        step, gain = _newton_step(z, state, damping, low, high)
        done = (gain <= 1e-11 * (state.value_R + 1e-4 * scale)) & (damping <= 1.0)
        stuck = damping > 1e12
        if (leave := done | stuck).any():
            value_out[active[leave]], done_out[active[leave]] = state.value_R[leave], done[leave]
            z_out[active[leave]] = z[leave]
            keep = ~leave
            active, z, step, damping, scale = (a[keep] for a in (active, z, step, damping, scale))
            low, high, own, state = low[keep], high[keep], own.rows(keep), state.select(keep)
            if not len(active):
                break
        trial = np.clip(z + step, low, high)
        new = evaluate_huber_sum(trial, own)
        better = new.value_R < state.value_R
        z, state = np.where(better[:, None], trial, z), new.where(better, state)
        damping = np.where(better, np.maximum(damping / 6, 1e-9), damping * 4)
    z_out[active], value_out[active] = z, state.value_R
    return Solution(z_out, value_out, done_out)


def _newton_step(
    z_RP: np.ndarray, state: HuberSum, damping_R: np.ndarray, low_RP: np.ndarray, high_RP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step (R, P) within bounds, and the decrease (R,) that its quadratic model expects.

    A parameter whose step would cross a bound stops there, and the step of the others is solved for again.
    If the step were only clipped, the others would move as if it had not been, and the iteration would stall
    on its way to a bound.
    """
    g = state.gradient_RP
    held = ((z_RP <= low_RP) & (g >= 0)) | ((z_RP >= high_RP) & (g <= 0)) | (low_RP == high_RP)
    matrix = state.hessian_RPP + damping_R[:, None, None] * state.majoriser_RPP
    diagonal = np.einsum("rpp->rp", state.majoriser_RPP)
    ridge = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-12 * diagonal + 1e-300
    index = np.arange(z_RP.shape[1])
    matrix[:, index, index] += ridge
    step = _solve_free(matrix, g, held, np.zeros_like(g))
    for _ in index:
        inside = np.clip(z_RP + step, low_RP, high_RP) - z_RP
        crossing = ~held & (inside != step) & ((z_RP + step < low_RP) | (z_RP + step > high_RP))
        if not crossing.any():
            break
        held = held | crossing
        step = _solve_free(matrix, g, held, np.where(held, inside, 0.0))
    curved = np.matmul(matrix, step[:, :, None])[:, :, 0]
    return step, np.abs(((g + 0.5 * curved) * step).sum(axis=1))


def _solve_free(
    matrix_RPP: np.ndarray, g_RP: np.ndarray, held_RP: np.ndarray, to_RP: np.ndarray
) -> np.ndarray:
    """The step s (R, P) that minimises g s + s M s / 2, with s equal to `to_RP` where `held_RP`."""
    free = ~held_RP
    pull = g_RP + np.matmul(matrix_RPP, to_RP[:, :, None])[:, :, 0]
    matrix = np.where(free[:, :, None] & free[:, None, :], matrix_RPP, 0.0)
    index = np.arange(g_RP.shape[1])
    matrix[:, index, index] += np.where(free, 0.0, 1.0)
    step = -np.linalg.solve(matrix, np.where(free, pull, 0.0)[:, :, None])[:, :, 0]
    return np.where(held_RP, to_RP, step)


def fit_linear_parameters(
    exponents_RK: np.ndarray, points: SolverPoints, floor_R: np.ndarray | None, rounds: int = 6
):
    """Fit the non-negative (E, A_1, ..., A_K) for given exponents, by reweighted least squares.

    Args:
        exponents_RK: the exponents of each fit.
        points: losses and weights, one row for all fits or one row for each.
        floor_R: floors E to hold; None fits them.
        rounds: how often the logarithm and the Huber weights are linearised again.

    Returns:
        (linear_RM, objective_R): (E, A_1, ..., A_K) at the geometric means of x, and the Huber sum there.
    """
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
        low, high: (P,) bounds; an exponent with equal bounds is held there.
        most: at most so many starts.
    """
    K, n = points.u_Kn.shape
    if n > GRID_ROWS:
        some = np.linspace(0, n - 1, GRID_ROWS).astype(int)
        points = SolverPoints(
            points.u_Kn[:, some], points.y_Rn[:, some], points.weights_Rn[:, some], points.delta
        )
    axes = [
        np.array([low[1 + K + k]]) if low[1 + K + k] == high[1 + K + k] else np.geomspace(0.03, 2.0, GRID[K])
        for k in range(K)
    ]
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    linear, value, size = [], [], max(1, BLOCK // points.u_Kn.shape[1])
    for start in range(0, len(grid), size):
        part = grid[start : start + size]
        floor = np.full(len(part), low[0]) if low[0] == high[0] else None
        found = fit_linear_parameters(part, points, floor, rounds=4)
        linear.append(found[0])
        value.append(found[1])
    table = np.concatenate(value).reshape([len(a) for a in axes])
    chosen = np.flatnonzero(table == minimum_filter(table, size=3))
    chosen = chosen[np.argsort(table.ravel()[chosen], kind="stable")][:most]
    return start_from_linear(np.concatenate(linear)[chosen], grid[chosen])


def start_from_linear(linear_RM: np.ndarray, exponents_RK: np.ndarray) -> np.ndarray:
    """Parameters z (R, P) from linear ones and exponents; a term of size zero starts small, not absent."""
    least = 1e-4 * linear_RM.sum(axis=1, keepdims=True)
    terms = np.log(np.maximum(linear_RM[:, 1:], least))
    return np.concatenate([linear_RM[:, :1], terms, exponents_RK], axis=1)
