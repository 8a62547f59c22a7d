"""Other ways to fit a law to sweeps, to compare with the shared fit: argmin, pool, and a parabola per slice.

argmin regresses the best run of each slice. pool regresses every run within 0.25% of its slice's best, as
StepLaw does (arXiv 2503.04715). two-stage regresses the vertex of a quadratic about each slice's best run.
All of them use ordinary least squares on logs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.optima.basin.shape import LossCurves, invert

# K: slices   m: runs in the longest slice   p: what is tuned   q: covariates   C: 1 + p + p(p+1)/2

POOL = 0.0025  # relative excess loss
WINDOW = 1.5 * np.log(2)  # 1.5 octaves each side of the best run


@dataclass(frozen=True)
class Line:
    """The law of one tuned quantity: ln optimum = beta[0] + beta[1:] @ (log covariates in `columns`)."""

    beta: np.ndarray
    se: np.ndarray
    columns: tuple[int, ...]

    def predict(self, z: np.ndarray) -> np.ndarray:
        """Natural log of the optimum at log covariates `z` (..., q)."""
        return self.beta[0] + np.asarray(z, dtype=float)[..., list(self.columns)] @ self.beta[1:]


def argmin_fit(
    curves: LossCurves, covariates: np.ndarray, columns: Sequence[Sequence[int]] | None = None
) -> tuple[Line, ...]:
    """Regress the best run of each slice.

    Args:
        curves: the runs.
        covariates: (K, q) natural logs.
        columns: for each tuned quantity the columns of the covariates to use; all of them by default.

    Raises:
        ValueError: covariates are collinear, or there are fewer slices than coefficients plus one.
    """
    return _fit_lines(curves.best, np.asarray(covariates, dtype=float), columns)


def pool_fit(
    curves: LossCurves,
    covariates: np.ndarray,
    columns: Sequence[Sequence[int]] | None = None,
    threshold: float = POOL,
) -> tuple[Line, ...]:
    """Regress every run with a loss of at most (1 + threshold) times its slice's best; see `argmin_fit`."""
    near = (curves.loss <= curves.loss.min(axis=1, keepdims=True) * (1 + threshold)) & (curves.count > 0)
    owner = np.nonzero(near)[0]
    return _fit_lines(curves.u[near], np.asarray(covariates, dtype=float)[owner], columns)


def two_stage_fit(
    parabolas: "Parabolas", covariates: np.ndarray, columns: Sequence[Sequence[int]] | None = None
) -> tuple[Line, ...]:
    """Regress the vertices of the slices that have one; see `argmin_fit`."""
    used = parabolas.bowl
    return _fit_lines(parabolas.optimum[used], np.asarray(covariates, dtype=float)[used], columns)


def _fit_lines(
    y: np.ndarray, covariates: np.ndarray, columns: Sequence[Sequence[int]] | None
) -> tuple[Line, ...]:
    if covariates.ndim != 2 or len(covariates) != len(y):
        raise ValueError(f"covariates must be ({len(y)}, q), got {covariates.shape}")
    if not np.isfinite(covariates).all():
        raise ValueError("covariates must be finite")
    every = [range(covariates.shape[1])] * y.shape[1]
    lines = []
    for j, chosen in enumerate(every if columns is None else columns):
        Z = covariates[:, list(chosen)]
        centre, slices = Z.mean(axis=0), len(np.unique(Z, axis=0))
        X = np.column_stack([np.ones(len(y)), Z - centre])
        if len(y) <= X.shape[1] or slices < X.shape[1]:
            needed = X.shape[1] + 1
            raise ValueError(f"{needed} slices are needed for {needed - 1} coefficients, got {len(y)}")
        if np.linalg.matrix_rank(X) < X.shape[1]:
            raise ValueError(f"covariate columns {list(chosen)} must not be collinear")
        beta = np.linalg.lstsq(X, y[:, j], rcond=None)[0]
        residual = y[:, j] - X @ beta
        back = np.eye(len(beta))  # from the centred intercept to that at covariates of one
        back[0, 1:] = -centre
        cov = back @ np.linalg.inv(X.T @ X) @ back.T * (residual @ residual) / (len(y) - len(beta))
        lines.append(Line(back @ beta, np.sqrt(np.diag(cov)), tuple(chosen)))
    return tuple(lines)


@dataclass(frozen=True)
class Parabolas:
    """A full quadratic in each slice, fitted to the loss relative to the slice's best.

    Attributes:
        centre: (K, p) the best run, natural logs.
        coef: (K, C) coefficients about `centre`.
        optimum: (K, p) natural logs; NaN where not `bowl`.
        bowl: mask (K,) of the slices with positive curvature and a vertex among the runs.
        cov: (K, p, p) covariance of the optimum by the delta method.
        residual: (K, m) inflated for the degrees of freedom; 0 outside the window.
        solve: (K, m, C) maps losses to coefficients.
        inside: mask (K, m) of the runs in the window.
    """

    centre: np.ndarray
    coef: np.ndarray
    optimum: np.ndarray
    bowl: np.ndarray
    cov: np.ndarray
    residual: np.ndarray
    solve: np.ndarray
    inside: np.ndarray

    def vertex(self, coef: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Bottoms (..., K, p) for coefficients (..., K, C) of the slices `keep`, NaN without curvature."""
        return self.centre[keep] + _vertices(coef, self.centre.shape[1])


def fit_parabolas(curves: LossCurves, window: float = WINDOW) -> Parabolas:
    """A quadratic over the runs within `window` (natural log) of each slice's best run in every direction.

    Where the window holds fewer runs than coefficients, the nearest runs are used.
    """
    K, m, p = curves.u.shape
    centre, real = curves.best, curves.count > 0
    first, second = np.triu_indices(p)
    v = curves.u - centre[:, None, :]
    J = np.concatenate([np.ones((K, m, 1)), v, v[..., first] * v[..., second]], axis=-1)
    distance = np.where(real, np.abs(v).max(axis=-1), np.inf)
    C = J.shape[-1]
    reach = np.sort(distance, axis=1)[:, min(C, m) - 1]
    inside = real & (distance <= np.maximum(window, reach)[:, None] * (1 + 1e-9))
    weight = np.where(inside, curves.count, 0.0)
    solve = np.linalg.pinv((J * weight[..., None]).swapaxes(1, 2) @ J) @ (J * weight[..., None]).swapaxes(
        1, 2
    )
    relative = curves.loss / curves.loss.min(axis=1, keepdims=True) - 1
    coef = (solve @ relative[..., None])[..., 0]
    residual = np.where(inside, relative - (J @ coef[..., None])[..., 0], 0.0)
    left = max(int(inside.sum()) - K * C, 1)
    noise = (weight * residual**2).sum() / left
    optimum = _vertices(coef, p) + centre
    bowl = np.all((optimum >= curves.low) & (optimum <= curves.high), axis=1)
    spread = noise * solve @ (solve / np.maximum(curves.count, 1e-300)[:, None, :]).swapaxes(1, 2)
    # d vertex / d coef by the implicit function theorem: A dv = -(d gradient + 2 dA v)/2.
    _, A = _gradient_and_form(coef, p)
    safe = np.where(bowl[:, None, None], A, np.eye(p))
    at = np.where(bowl[:, None], optimum - centre, 0.0)
    D = np.stack(
        [_gradient_and_form(e, p)[0] + 2 * at @ _gradient_and_form(e, p)[1] for e in np.eye(C)], axis=-1
    )
    jacobian = -invert(safe) @ D / 2
    cov = jacobian @ spread @ jacobian.swapaxes(1, 2)
    inflated = residual * np.sqrt(inside.sum() / left)
    optimum = np.where(bowl[:, None], optimum, np.nan)
    return Parabolas(centre, coef, optimum, bowl, cov, inflated, solve.swapaxes(1, 2), inside)


def _vertices(coef: np.ndarray, p: int) -> np.ndarray:
    """Bottoms relative to the centre (..., p), NaN without positive curvature."""
    gradient, A = _gradient_and_form(coef, p)
    det = A[..., 0, 0] if p == 1 else A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] ** 2
    positive = ((A[..., 0, 0] > 0) & (det > 0))[..., None]
    safe = np.where(positive[..., None], A, np.eye(p))
    return np.where(positive, -(invert(safe) @ gradient[..., None])[..., 0] / 2, np.nan)


def _gradient_and_form(coef: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient at the centre (..., p) and quadratic form (..., p, p) of coefficients (..., C)."""
    A = np.zeros((*coef.shape[:-1], p, p))
    for c, (i, j) in enumerate(zip(*np.triu_indices(p), strict=True)):
        A[..., i, j] += coef[..., 1 + p + c] / 2
        A[..., j, i] += coef[..., 1 + p + c] / 2
    return coef[..., 1 : 1 + p], A
