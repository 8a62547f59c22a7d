"""Curves of loss packed into arrays, and the algebra of the polynomial shape that they share.

The shape S(v) is a quadratic form plus cubic terms of the displacement v from the optimum, in natural logs of
what is tuned (the rate, or the rate and one or two quantities more). S is the relative excess loss: loss over
the floor of its slice, less one.
"""

import itertools
from dataclasses import dataclass

import numpy as np

# K: slices   m: runs in the longest slice (shorter ones padded with count 0)   p: what is tuned   n: runs
# S: terms of the shape   q: covariates


@dataclass(frozen=True)
class LossCurves:
    """Runs sorted into slices of equal length; padding repeats the first run of a slice with a count of 0.

    Attributes:
        u: (K, m, p) natural logs of what is tuned.
        loss: (K, m) losses.
        count: (K, m) how many seeds each loss averages.
        row: (K, m) place of each run in the input; -1 for padding.
        labels: (K,) sorted slice labels.
        sizes: (K, q) natural logs of the covariates, less their means.
    """

    u: np.ndarray
    loss: np.ndarray
    count: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

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
    U: np.ndarray,
    loss: np.ndarray,
    slices: np.ndarray,
    weights: np.ndarray | None = None,
    covariates: np.ndarray | None = None,
) -> LossCurves:
    """Sort runs into slices, padded to equal length.

    Args:
        U: (n, p) natural logs of what is tuned; (n,) is one column.
        loss: (n,), positive.
        slices: (n,) integers, the slice of each run.
        weights: (n,) numbers of seeds that each loss averages; one each by default.
        covariates: (K, q) natural logs, in the order of the sorted labels; (K,) is one column.

    Raises:
        ValueError: shapes that do not fit; values not finite; losses or weights not positive.
    """
    U, loss, slices = np.asarray(U, dtype=float), np.asarray(loss, dtype=float), np.asarray(slices)
    U = U[:, None] if U.ndim == 1 else U
    weights = np.ones(len(loss)) if weights is None else np.asarray(weights, dtype=float)
    if U.ndim != 2 or not U.shape[1] or {loss.shape, slices.shape, weights.shape} != {U.shape[:1]}:
        raise ValueError(
            f"U, loss, slices and weights must be (n, p), (n,), (n,) and (n,), got {U.shape}, {loss.shape}, "
            f"{slices.shape} and {weights.shape}"
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
    sizes = np.zeros((len(labels), 0)) if covariates is None else np.asarray(covariates, dtype=float)
    sizes = sizes[:, None] if sizes.ndim == 1 else sizes
    if sizes.ndim != 2 or len(sizes) != len(labels) or not np.isfinite(sizes).all():
        raise ValueError(
            f"covariates must be finite and ({len(labels)}, q), a row for each slice, got {sizes.shape}"
        )
    count = np.where(row < 0, 0.0, weights[index])
    return LossCurves(U[index], loss[index], count, row, labels, sizes - sizes.mean(axis=0))


def shape_powers(p: int) -> np.ndarray:
    """Powers (S, p) of the terms of the shape in p variables, those of degree two first.

    One or two variables have all cubic terms, three have the pure ones v_j^3 alone.
    """
    every = (e for e in itertools.product(range(4), repeat=p) if 2 <= sum(e) <= 3)
    kept = [e for e in every if sum(e) == 2 or p < 3 or max(e) == 3]
    return np.array(sorted(kept, key=lambda e: (sum(e), -e[0])))


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


def invert(A: np.ndarray) -> np.ndarray:
    """Invert positive semi-definite matrices (..., p, p); a direction of zero gets a very large inverse."""
    p = A.shape[-1]
    trace = np.trace(A, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.inv(A + (1e-12 * trace + 1e-30) * np.eye(p))
