"""Huber fits of L = E + sum_k A_k x_k^-e_k in log loss, many at once: starts, pinned floors or resamples.

Variable projection: for given exponents e the law is linear in (E, A_1, ..., A_K), so an outer grid over the
exponents with an inner non-negative least squares finds the basins, and a Newton iteration in all parameters
polishes them. Shapes: R fits side by side, n points, K terms, P = 1 + 2 K parameters, M = 1 + K linear ones.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

EXPONENTS = (0.01, 3.0)  # an exponent at either end is reported as being at its bound
GRID = {1: 64, 2: 20}  # exponents tried along each axis, by the number of terms
GRID_ROWS = 4096  # the grid only finds basins; it does not need a million rows
BLOCK = 60_000  # doubles in one (R, n) block: its Jacobian stays in the cache
NEGLIGIBLE = 1e-9  # of the smallest loss, below which a term or the floor counts as absent


@dataclass(frozen=True)
class SolverPoints:
    """What is fitted: u_Kn = ln(x / its geometric mean), y_Rn = ln(loss), weights_Rn; R may be 1."""

    u_Kn: np.ndarray
    y_Rn: np.ndarray
    weights_Rn: np.ndarray
    delta: float

    def rows(self, index: np.ndarray | slice) -> "SolverPoints":
        """The same points with the chosen losses and weights, where these differ between fits."""
        y = self.y_Rn if len(self.y_Rn) == 1 else self.y_Rn[index]
        weights = self.weights_Rn if len(self.weights_Rn) == 1 else self.weights_Rn[index]
        return replace(self, y_Rn=y, weights_Rn=weights)


@dataclass(frozen=True)
class Solution:
    """z_RP = (E, ln A_1.., e_1..) at x's geometric mean; objective_R is the Huber sum, not scaled."""

    z_RP: np.ndarray
    objective_R: np.ndarray
    converged_R: np.ndarray


@dataclass(frozen=True)
class HuberSum:
    """Huber sum, its gradient, its Hessian without second derivatives of the law, and the majoriser's."""

    value_R: np.ndarray
    gradient_RP: np.ndarray
    hessian_RPP: np.ndarray
    majoriser_RPP: np.ndarray


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond (Huber 1964)."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def log_law(z_RP: np.ndarray, u_Kn: np.ndarray) -> np.ndarray:
    """ln(E + sum_k A_k exp(-e_k u_k)), shape (R, n)."""
    K = len(u_Kn)
    terms = np.exp(z_RP[:, 1 : 1 + K, None] - z_RP[:, 1 + K :, None] * u_Kn)
    return np.log(z_RP[:, :1] + terms.sum(axis=1))


def parameter_bounds(points: SolverPoints, pins: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest (P,) parameters; a pinned one has both alike. `pins` is by parameter index."""
    K = len(points.u_Kn)
    loss = np.exp([points.y_Rn.min(), points.y_Rn.max()])
    low = np.array([0.0, *[np.log(loss[0] * NEGLIGIBLE)] * K, *[EXPONENTS[0]] * K])
    high = np.array([loss[1], *[np.log(loss[1] * 1e6)] * K, *[EXPONENTS[1]] * K])
    for index, value in pins.items():
        low[index] = high[index] = value
    return low, high


def evaluate_huber_sum(z_RP: np.ndarray, points: SolverPoints) -> HuberSum:
    """The Huber sum and its derivatives at every row of z."""
    K = len(points.u_Kn)
    terms = np.exp(z_RP[:, 1 : 1 + K, None] - z_RP[:, 1 + K :, None] * points.u_Kn)
    law = z_RP[:, :1] + terms.sum(axis=1)
    residual = np.log(law) - points.y_Rn
    size = np.abs(residual)
    inside = size <= points.delta
    value = (points.weights_Rn * huber(residual, points.delta)).sum(axis=1)
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
    """Projected Newton from each row of z within its box, damped in the metric of the Huber majoriser.

    The Hessian of a Huber sum sees only the residuals within delta; the majoriser (iteratively reweighted
    least squares) sees all and always descends. Their sum, with an adaptive factor on the second, is quick
    near the optimum and safe away from it.
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
    scale = points.weights_Rn.sum(axis=1) * points.delta**2  # Huber sums in this unit are of order one
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
            low, high, own, state = low[keep], high[keep], own.rows(keep), _take(state, keep)
            if not len(active):
                break
        trial = np.clip(z + step, low, high)
        new = evaluate_huber_sum(trial, own)
        better = new.value_R < state.value_R
        z, state = np.where(better[:, None], trial, z), _choose(better, new, state)
        damping = np.where(better, np.maximum(damping / 6, 1e-9), damping * 4)
    z_out[active], value_out[active] = z, state.value_R
    return Solution(z_out, value_out, done_out)


def _newton_step(
    z_RP: np.ndarray, state: HuberSum, damping_R: np.ndarray, low_RP: np.ndarray, high_RP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The damped Newton step within the box, and the decrease that its quadratic model expects.

    A parameter whose step would leave the box goes to its bound and the others are solved for again: were
    it only clipped, they would move as if it had gone all the way, and the approach to a bound would stall.
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
    """The minimum of g s + s M s / 2 with the steps of `held_RP` given by `to_RP`."""
    free = ~held_RP
    pull = g_RP + np.matmul(matrix_RPP, to_RP[:, :, None])[:, :, 0]
    matrix = np.where(free[:, :, None] & free[:, None, :], matrix_RPP, 0.0)
    index = np.arange(g_RP.shape[1])
    matrix[:, index, index] += np.where(free, 0.0, 1.0)
    step = -np.linalg.solve(matrix, np.where(free, pull, 0.0)[:, :, None])[:, :, 0]
    return np.where(held_RP, to_RP, step)


def _take(state: HuberSum, keep: np.ndarray) -> HuberSum:
    return HuberSum(
        state.value_R[keep], state.gradient_RP[keep], state.hessian_RPP[keep], state.majoriser_RPP[keep]
    )


def _choose(first: np.ndarray, a: HuberSum, b: HuberSum) -> HuberSum:
    pairs = (
        (a.value_R, b.value_R),
        (a.gradient_RP, b.gradient_RP),
        (a.hessian_RPP, b.hessian_RPP),
        (a.majoriser_RPP, b.majoriser_RPP),
    )
    return HuberSum(*(np.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs))


def fit_linear_parameters(
    exponents_RK: np.ndarray, points: SolverPoints, floor_R: np.ndarray | None, rounds: int = 6
):
    """The best non-negative (E, A) for given exponents: reweighted non-negative least squares.

    Args:
        exponents_RK: one row of exponents a fit.
        points: one set of losses and weights for all of them, or one for each.
        floor_R: the floors to hold, None to fit them.
        rounds: linearisations of the log and of Huber's weights.

    Returns:
        (linear_RM, objective_R): (E, A_1, ..., A_K) at the geometric means, and the Huber sum there.
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
    return linear, (points.weights_Rn * huber(residual, points.delta)).sum(axis=1)


def nonnegative_least_squares(
    design_RMn: np.ndarray, target_Rn: np.ndarray, first_R: np.ndarray | None
) -> np.ndarray:
    """Exact non-negative least squares for M of at most three, by trying every set of positive columns.

    `first_R` holds the first column's coefficient. Returns (R, M).
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
    tiny = (out[:, fixed:] <= 0).all(axis=1)  # a pinned floor above every loss: a start must still be finite
    out[tiny, fixed] = np.maximum(out[tiny, fixed], 1e-6 * (target_Rn[tiny] ** 2).sum(axis=1) + 1e-12)
    return out


def starting_points(points: SolverPoints, low: np.ndarray, high: np.ndarray, most: int = 6) -> np.ndarray:
    """Starts (S, P), best first: the local minima of the inner problem on a grid of exponents."""
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
    chosen = np.flatnonzero(_local_minima(table).ravel())
    chosen = chosen[np.argsort(table.ravel()[chosen], kind="stable")][:most]
    return start_from_linear(np.concatenate(linear)[chosen], grid[chosen])


def start_from_linear(linear_RM: np.ndarray, exponents_RK: np.ndarray) -> np.ndarray:
    """(E, ln A.., e..) from an inner solution; a term that it left out starts small, not absent."""
    least = 1e-4 * linear_RM.sum(axis=1, keepdims=True)
    terms = np.log(np.maximum(linear_RM[:, 1:], least))
    return np.concatenate([linear_RM[:, :1], terms, exponents_RK], axis=1)


def _local_minima(table: np.ndarray) -> np.ndarray:
    padded = np.pad(table, 1, constant_values=np.inf)
    inner = [slice(1, -1)] * table.ndim
    lowest = np.ones(table.shape, dtype=bool)
    for shift in itertools.product((-1, 0, 1), repeat=table.ndim):
        at = tuple(slice(1 + s, 1 + s + m) for s, m in zip(shift, table.shape, strict=True))
        lowest &= padded[tuple(inner)] <= padded[at]
    return lowest
