"""Huber fits of L = E + sum_k A_k x_k^-e_k to log losses, many side by side.

The fits that run together start at different places, hold different floors, or fit different resamples. For
given exponents e the law is linear in (E, A_1, ..., A_K) (variable projection). So non-negative least squares
on a grid of exponents finds the starting points (`starts`), and Newton steps in all parameters refine them.
Several data sets can share the exponents, each with an E and A_k of its own.

Shapes: R fits, n points, S data sets, K terms, M = 1 + K linear parameters of each data set, Q exponents that
are fitted (K, or 1 where they are tied), P = S M + Q parameters.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import huber

EXPONENTS = (0.01, 3.0)  # the report names an exponent that ends at either bound
BLOCK = 60_000  # doubles in one (R, n) block, so that its Jacobian stays in the cache
NEGLIGIBLE = 1e-9  # of the smallest loss: a smaller term or floor counts as absent


@dataclass(frozen=True)
class Layout:
    """Which parameters stand where in z (P,): (E_1, ..., E_S, ln A_1 of each set, ..., exponents).

    Attributes:
        terms: number of terms K.
        sets: number of data sets S, which share the exponents.
        tied: whether one exponent serves all terms.
    """

    terms: int
    sets: int = 1
    tied: bool = False

    @property
    def linear(self) -> int:
        """Number of the floors and term sizes, S M; the exponents come after them."""
        return self.sets * (1 + self.terms)

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.linear + (1 if self.tied else self.terms)

    def floors(self, z_RP: np.ndarray) -> np.ndarray:
        """E of every data set (R, S)."""
        return z_RP[:, : self.sets]

    def log_terms(self, z_RP: np.ndarray) -> np.ndarray:
        """ln A_k of every term and data set (R, K, S)."""
        return z_RP[:, self.sets : self.linear].reshape(len(z_RP), self.terms, self.sets)

    def exponents(self, z_RP: np.ndarray) -> np.ndarray:
        """The exponent of every term (R, K)."""
        return np.broadcast_to(z_RP[:, self.linear :], (len(z_RP), self.terms))

    def join(self, floor_RS: np.ndarray, log_terms_RKS: np.ndarray, exponents_RK: np.ndarray) -> np.ndarray:
        """The parameters z (R, P) from their parts."""
        fitted = exponents_RK[:, :1] if self.tied else exponents_RK
        return np.concatenate(
            [floor_RS, log_terms_RKS.reshape(len(floor_RS), self.linear - self.sets), fitted], axis=1
        )


@dataclass(frozen=True)
class SolverPoints:
    """The points to fit.

    Attributes:
        u_Kn: ln of each covariate over its geometric mean.
        y_Rn: ln of the loss; one row (R = 1) serves all fits.
        weights_Rn: weight of each point; one row serves all fits.
        delta: threshold of the Huber loss, on ln(loss).
        set_n: index of the data set of each point.
        layout: where the parameters stand.
    """

    u_Kn: np.ndarray
    y_Rn: np.ndarray
    weights_Rn: np.ndarray
    delta: float
    set_n: np.ndarray
    layout: Layout

    def rows(self, index: np.ndarray | slice) -> "SolverPoints":
        """The points of the fits in `index`; losses or weights that all fits share stay shared."""
        y = self.y_Rn if len(self.y_Rn) == 1 else self.y_Rn[index]
        weights = self.weights_Rn if len(self.weights_Rn) == 1 else self.weights_Rn[index]
        return replace(self, y_Rn=y, weights_Rn=weights)

    def columns(self, index: np.ndarray) -> "SolverPoints":
        """Some of the points, in all fits."""
        u, y, weights = (a[:, index] for a in (self.u_Kn, self.y_Rn, self.weights_Rn))
        return replace(self, u_Kn=u, y_Rn=y, weights_Rn=weights, set_n=self.set_n[index])


@dataclass(frozen=True)
class Solution:
    """Fitted parameters.

    Attributes:
        z_RP: as `Layout` says, with A_k the size of its term at the geometric mean of x_k.
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


def term_sizes(z_RP: np.ndarray, u_Kn: np.ndarray, set_n: np.ndarray, layout: Layout) -> np.ndarray:
    """Every term of the law at every point, (R, K, n)."""
    sizes = layout.log_terms(z_RP)
    sizes = sizes if layout.sets == 1 else sizes[:, :, set_n]
    return np.exp(sizes - layout.exponents(z_RP)[:, :, None] * u_Kn)


def log_law(z_RP: np.ndarray, u_Kn: np.ndarray, set_n: np.ndarray, layout: Layout) -> np.ndarray:
    """ln of the law, ln(E + sum_k A_k exp(-e_k u_k)) with E and A_k of the point's data set, shape (R, n)."""
    terms = term_sizes(z_RP, u_Kn, set_n, layout)
    return np.log(_floor_of_points(z_RP, set_n, layout) + terms.sum(axis=1))


def _floor_of_points(z_RP: np.ndarray, set_n: np.ndarray, layout: Layout) -> np.ndarray:
    """E at every point (R, n), or (R, 1) where there is one data set."""
    floors = layout.floors(z_RP)
    return floors if layout.sets == 1 else floors[:, set_n]


def parameter_bounds(points: SolverPoints, pins: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value (P,) of each parameter.

    Args:
        points: the points; the bounds scale with the losses of their data set.
        pins: values to hold, by the index of the parameter; both of its bounds are that value.
    """
    layout, K = points.layout, points.layout.terms
    sets = [points.y_Rn[:, points.set_n == index] for index in range(layout.sets)]
    least, most = np.exp([[y.min() for y in sets], [y.max() for y in sets]])
    exponents = layout.size - layout.linear
    low = np.concatenate(
        [np.zeros(layout.sets), np.tile(np.log(least * NEGLIGIBLE), K), [EXPONENTS[0]] * exponents]
    )
    high = np.concatenate([most, np.tile(np.log(most * 1e6), K), [EXPONENTS[1]] * exponents])
    for index, value in pins.items():
        low[index] = high[index] = value
    return low, high


def evaluate_huber_sum(z_RP: np.ndarray, points: SolverPoints) -> HuberSum:
    """The Huber sum and its derivatives at every row of `z_RP`."""
    layout, delta = points.layout, points.delta
    terms = term_sizes(z_RP, points.u_Kn, points.set_n, layout)
    law = _floor_of_points(z_RP, points.set_n, layout) + terms.sum(axis=1)
    residual = np.log(law) - points.y_Rn
    size = np.abs(residual)
    inside = size <= delta
    value = (points.weights_Rn * huber(delta, residual)).sum(axis=1)
    jacobian = _jacobian(terms, law, points)
    irls = points.weights_Rn * np.where(inside, 1.0, delta / np.maximum(size, delta))
    gradient = np.matmul(jacobian, (irls * residual)[:, :, None])[:, :, 0]
    newton = jacobian * (points.weights_Rn * inside)[:, None]
    transposed = jacobian.transpose(0, 2, 1)
    return HuberSum(value, gradient, newton @ transposed, (jacobian * irls[:, None]) @ transposed)


def _jacobian(terms_RKn: np.ndarray, law_Rn: np.ndarray, points: SolverPoints) -> np.ndarray:
    """Derivatives of ln of the law by every parameter, (R, P, n); changes `terms_RKn`."""
    layout, (R, _, n) = points.layout, terms_RKn.shape
    terms_RKn /= law_Rn[:, None]
    slopes = -points.u_Kn * terms_RKn
    slopes = slopes.sum(axis=1, keepdims=True) if layout.tied else slopes
    if layout.sets == 1:
        return np.concatenate([1 / law_Rn[:, None], terms_RKn, slopes], axis=1)
    member = (points.set_n == np.arange(layout.sets)[:, None]).astype(float)
    floors = member / law_Rn[:, None]
    sizes = (terms_RKn[:, :, None] * member).reshape(R, -1, n)
    return np.concatenate([floors, sizes, slopes], axis=1)


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
    size = max(1, BLOCK * 5 // (points.u_Kn.shape[1] * max(points.layout.size, 5)))
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
