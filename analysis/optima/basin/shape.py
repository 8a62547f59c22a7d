"""Curves of loss packed into arrays, and the algebra of the polynomial shape that they share.

The shape S(v) is a quadratic form plus all cubic terms of the displacement v from the optimum, in natural
logs of what is tuned (the rate, or the rate and the batch). S is the relative excess loss: loss over the
floor of its slice, less one.
"""

import itertools
from dataclasses import dataclass

import numpy as np

# K: slices   m: runs in the longest slice (shorter ones padded with count 0)   p: what is tuned   n: runs
# S: terms of the shape   q: covariates

OWN_RANGE = 0.05  # natural log by which a covariate must vary independently of the others


@dataclass(frozen=True)
class LossCurves:
    """Runs sorted into slices of equal length; padding repeats the first run of a slice with a count of 0.

    Attributes:
        u: (K, m, p) natural logs of what is tuned.
        loss: (K, m) losses.
        count: (K, m) how many seeds each loss averages.
        row: (K, m) place of each run in the input; -1 for padding.
        labels: (K,) sorted slice labels.
        amplitude: (K,) factor of the common shape in each slice.
    """

    u: np.ndarray
    loss: np.ndarray
    count: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    amplitude: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """Smallest value of each tuned quantity in each slice, (K, p)."""
        return self.u.min(axis=1)

    @property
    def high(self) -> np.ndarray:
        """Largest value of each tuned quantity in each slice, (K, p)."""
        return self.u.max(axis=1)

    @property
    def best(self) -> np.ndarray:
        """Where the run with the lowest loss of each slice lies, (K, p)."""
        index = self.loss.argmin(axis=1)
        return np.take_along_axis(self.u, index[:, None, None], axis=1)[:, 0]

    def select(self, keep: np.ndarray) -> "LossCurves":
        """The slices in the mask `keep` (K,)."""
        return LossCurves(*(a[keep] for a in vars(self).values()))


@dataclass(frozen=True)
class BasinShape:
    """S(v), the sum over s of coef[s] * prod(v ** powers[s]).

    Attributes:
        powers: (S, p) integers, the terms of degree two first, then those of degree three.
        coef: (S,) coefficients.
    """

    powers: np.ndarray
    coef: np.ndarray

    @property
    def quadratic(self) -> np.ndarray:
        """The symmetric matrix A (p, p) of the quadratic part v'Av."""
        return quadratic_form(self.powers, self.coef)

    def penalty(self, du: np.ndarray) -> np.ndarray:
        """Relative excess loss (...) at the displacement `du` (..., p) from the optimum, never negative.

        A cubic turns over far out on its shallow side; from there on, the quadratic part alone is used.

        Raises:
            ValueError: `du` does not have p columns.
        """
        du = np.asarray(du, dtype=float)
        if du.shape[-1:] != (self.powers.shape[1],):
            raise ValueError(
                f"du must have {self.powers.shape[1]} columns of natural logs, got shape {du.shape}"
            )
        full = monomials(du, self.powers) @ self.coef
        quadratic = np.einsum("...i,ij,...j->...", du, self.quadratic, du)
        # A negative slope along the ray from the optimum means that the cubic has turned over.
        degree = self.powers.sum(axis=1)
        outward = monomials(du, self.powers) @ (self.coef * degree)
        return np.maximum(np.where(outward < 0, quadratic, full), 0.0)


def pack_curves(
    U: np.ndarray, loss: np.ndarray, slices: np.ndarray, weights: np.ndarray | None = None
) -> LossCurves:
    """Sort runs into slices, padded to equal length.

    Args:
        U: (n, p) natural logs of what is tuned; (n,) is one column.
        loss: (n,), positive.
        slices: (n,) integers, the slice of each run.
        weights: (n,) numbers of seeds that each loss averages; one each by default.

    Raises:
        ValueError: shapes that do not fit; values not finite; losses or weights not positive.
    """
    U, loss, slices = np.asarray(U, dtype=float), np.asarray(loss, dtype=float), np.asarray(slices)
    U = U[:, None] if U.ndim == 1 else U
    weights = np.ones(len(loss)) if weights is None else np.asarray(weights, dtype=float)
    if U.ndim != 2 or U.shape[1] not in (1, 2) or {loss.shape, slices.shape, weights.shape} != {U.shape[:1]}:
        raise ValueError(
            f"U, loss, slices and weights must be (n, 1 or 2), (n,), (n,) and (n,), got {U.shape}, "
            f"{loss.shape}, {slices.shape} and {weights.shape}"
        )
    if len(U) == 0:
        raise ValueError("at least one run is needed, got none")
    for name, array in (("U", U), ("loss", loss), ("weights", weights)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    for name, array in (("loss", loss), ("weights", weights)):
        if not (array > 0).all():
            raise ValueError(f"{name} must be positive, got {array.min()}")
    # Sorted by value too, so that the order of the input does not change a bit of the output.
    order = np.lexsort((weights, loss, *U.T[::-1], slices))
    labels, size = np.unique(slices, return_counts=True)
    row = np.full((len(labels), size.max()), -1)
    row[np.arange(size.max()) < size[:, None]] = order
    index = np.where(row < 0, row[:, :1], row)
    return LossCurves(
        U[index], loss[index], np.where(row < 0, 0.0, weights[index]), row, labels, np.ones(len(labels))
    )


def law_design(covariates: np.ndarray, count: int) -> np.ndarray:
    """Design (K, 1 + q) of the law: ones, then the log covariates, centred and scaled.

    Only the span of its columns matters to the shape.

    Args:
        covariates: (K, q) natural logs.
        count: K, the number of slices.

    Raises:
        ValueError: the covariates have a wrong shape or are not finite, there are fewer slices than
            coefficients plus one, or an exponent is not identifiable.
    """
    Z = np.asarray(covariates, dtype=float)
    Z = Z[:, None] if Z.ndim == 1 else Z
    if Z.ndim != 2 or len(Z) != count:
        raise ValueError(f"covariates must be ({count}, q), a row for each slice, got {Z.shape}")
    if not np.isfinite(Z).all():
        raise ValueError(f"covariates must be finite, got {Z[~np.isfinite(Z)][0]}")
    if count < Z.shape[1] + 2:
        needed = Z.shape[1] + 2
        raise ValueError(f"{needed} slices are needed for {needed - 1} coefficients, got {count}")
    check_identifiable(Z)
    Z = Z - Z.mean(axis=0)
    return np.column_stack([np.ones(count), Z / np.abs(Z).max(axis=0, initial=0.0)])


def check_identifiable(Z: np.ndarray) -> None:
    """Raise ValueError unless each log covariate in Z (n, q) varies independently of the others."""
    problem = unidentifiable_reason(Z)
    if problem is not None:
        raise ValueError(problem)


def unidentifiable_reason(Z: np.ndarray) -> str | None:
    """Why the exponent of some log covariate in Z (n, q) is not identifiable; None if all are.

    Full rank is not enough: a design has it where total parameters differ by 0.3% between architectures, and
    their exponent would be the noise divided by that.
    """
    spread = np.ptp(Z, axis=0)
    for j in np.flatnonzero(spread < OWN_RANGE):
        return (
            f"covariate column {j} does not vary (by {np.expm1(spread[j]):.2g} of its value), so its "
            "exponent is not identifiable"
        )
    for j in range(Z.shape[1]):
        others = np.column_stack([np.ones(len(Z)), np.delete(Z, j, axis=1)])
        own = Z[:, j] - others @ np.linalg.lstsq(others, Z[:, j], rcond=None)[0]
        if np.ptp(own) < OWN_RANGE:
            return (
                f"covariate column {j} moves together with the others (collinear), so their exponents are "
                f"not identifiable"
            )
    return None


def identifiable_columns(Z: np.ndarray) -> list[int]:
    """The columns of Z (n, q) whose exponents n slices identify with one to spare, earlier ones preferred."""
    chosen: list[int] = []
    for j in range(Z.shape[1]):
        if len(Z) >= len(chosen) + 3 and unidentifiable_reason(Z[:, [*chosen, j]]) is None:
            chosen.append(j)
    return chosen


def monomial_powers(p: int, degree: int = 3) -> np.ndarray:
    """Powers (S, p) of the monomials of degree 2 to `degree` in p variables."""
    every = itertools.product(range(degree + 1), repeat=p)
    return np.array(sorted((e for e in every if 2 <= sum(e) <= degree), key=lambda e: (sum(e), -e[0])))


def monomials(v: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """The monomials (..., S) of v (..., p) with `powers` (S, p)."""
    table = [np.ones_like(v), v]
    while len(table) <= powers.max():
        table.append(table[-1] * v)
    columns = [table[e[0]][..., 0] for e in powers]
    for j in range(1, v.shape[-1]):
        columns = [c if e[j] == 0 else c * table[e[j]][..., j] for c, e in zip(columns, powers, strict=True)]
    return np.stack(columns, axis=-1)


def shape_gradient(v: np.ndarray, powers: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Gradient (..., p) of S at v (..., p); `coef` (..., S) broadcasts against v[..., 0]."""
    parts = []
    for j in range(v.shape[-1]):
        factor = powers[:, j]
        lower = powers[factor > 0] - np.eye(v.shape[-1], dtype=int)[j]
        parts.append((monomials(v, lower) * coef[..., factor > 0] * factor[factor > 0]).sum(axis=-1))
    return np.stack(parts, axis=-1)


def quadratic_form(powers: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Symmetric matrix (..., p, p) of the terms of degree two in `coef` (..., S)."""
    p = powers.shape[1]
    A = np.zeros((*coef.shape[:-1], p, p))
    for s, e in enumerate(powers):
        if e.sum() == 2:
            i, j = np.repeat(np.arange(p), e)
            A[..., i, j] += coef[..., s] / 2
            A[..., j, i] += coef[..., s] / 2
    return A


def run_weights(excess: np.ndarray, count: np.ndarray, scale: float) -> np.ndarray:
    """Weight of each squared residual, count / (1 + (excess/scale)^2)^2; see `fit` for the reason."""
    return count / (1 + (np.maximum(excess, 0) / scale) ** 2) ** 2


def subtract_weighted_means(J: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the weighted means over runs from J (..., m, c) and y (..., m), to eliminate the floors."""
    total = w.sum(axis=-1, keepdims=True)
    mean_J = np.einsum("...m,...mc->...c", w, J) / total
    return J - mean_J[..., None, :], y - (w * y).sum(axis=-1, keepdims=True) / total


def invert_small(A: np.ndarray) -> np.ndarray:
    """Invert (..., 1, 1) or (..., 2, 2) matrices in closed form."""
    if A.shape[-1] == 1:
        return 1 / A
    a, b, c, d = A[..., 0, 0], A[..., 0, 1], A[..., 1, 0], A[..., 1, 1]
    adjugate = np.stack([np.stack([d, -b], axis=-1), np.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]
