"""The posterior of a law as a mixture of normals, and what it predicts.

Every point of the grid over basin and scatter leaves a normal distribution of the coefficients; the points'
weights make a mixture of them. A prediction at a size is the mixture of the normal distributions of the
optimum there: of the law's value, plus the scatter.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

# H: points of the grid   P: coefficients   q: covariates   B: bends


@dataclass(frozen=True)
class LawTerms:
    """The columns of a law: one, the centred logs of the covariates, and quadratic terms orthogonal to both.

    Attributes:
        centre: (q,) mean natural logs of the covariates.
        bends: the pairs of covariates whose products bend the law; a pair of the same one is a square.
        project: (B, 1 + q) the straight law nearest to each product, at the slices.
    """

    centre: np.ndarray
    bends: tuple[tuple[int, int], ...]
    project: np.ndarray

    @classmethod
    def of(cls, logs: np.ndarray, bends: bool) -> "LawTerms":
        """The terms for slices with the covariates `logs` (K, q), in natural log."""
        centre, q = logs.mean(axis=0), logs.shape[1]
        pairs = tuple((i, j) for i in range(q) for j in range(i, q)) if bends else ()
        z = logs - centre
        straight = np.column_stack([np.ones(len(z)), z])
        products = np.array([z[:, i] * z[:, j] for i, j in pairs]).reshape(len(pairs), len(z))
        project = np.linalg.lstsq(straight, products.T, rcond=None)[0].T
        return cls(centre, pairs, project)

    def rows(self, logs: np.ndarray) -> np.ndarray:
        """The design (..., 1 + q + B) at covariates (..., q) in natural log."""
        z = np.asarray(logs, dtype=float) - self.centre
        straight = np.concatenate([np.ones((*z.shape[:-1], 1)), z], axis=-1)
        bent = [
            z[..., i] * z[..., j] - straight @ line
            for (i, j), line in zip(self.bends, self.project, strict=True)
        ]
        return np.concatenate([straight, *(column[..., None] for column in bent)], axis=-1)


@dataclass(frozen=True)
class Posterior:
    """Weights, scatter and normal distributions of the coefficients, at the H points of the grid.

    Attributes:
        weight: (H,) sum to one.
        tau: (H,) scatter of the optima about the law, natural log.
        mean: (H, P) coefficients in the order of `LawTerms.rows`.
        cov: (H, P, P) their covariances.
    """

    weight: np.ndarray
    tau: np.ndarray
    mean: np.ndarray
    cov: np.ndarray

    @functools.cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (P,) and covariance (P, P) of the coefficients."""
        mean = self.weight @ self.mean
        away = self.mean - mean
        return mean, np.einsum("h,hpq->pq", self.weight, self.cov) + (self.weight * away.T) @ away

    def pruned(self, least: float = 2e-4) -> "Posterior":
        """Without the points that weigh less than `least`."""
        keep = self.weight >= min(least, self.weight.max())
        weight = self.weight[keep] / self.weight[keep].sum()
        return Posterior(weight, self.tau[keep], self.mean[keep], self.cov[keep])

    def quantiles(self, x: np.ndarray, levels: Sequence[float], scatter: bool = True) -> list[float]:
        """Quantiles of x'coefficients for x (P,), with the scatter of one optimum about it or without."""
        mean, variance = self.mean @ x, np.einsum("p,hpq,q->h", x, self.cov, x)
        sd = np.sqrt(np.maximum(variance + (self.tau**2 if scatter else 0.0), 1e-30))
        return mixture_quantiles(self.weight, mean, sd, levels)

    def variance_parts(self, x: np.ndarray, straight: int) -> dict[str, float]:
        """The variance of an optimum at x (P,), by where it comes from.

        Args:
            x: a row of `LawTerms.rows`.
            straight: how many of its columns are the power law's, 1 + q.
        """
        total = np.einsum("p,hpq,q->h", x, self.cov, x)
        lines = total
        if straight < len(x):
            # What the power law's coefficients leave unknown once the bends are known; the rest is theirs.
            rest = self.cov[:, straight:, straight:]
            cross = self.cov[:, :straight, straight:]
            known = self.cov[:, :straight, :straight] - cross @ np.linalg.solve(rest, cross.swapaxes(1, 2))
            lines = np.einsum("p,hpq,q->h", x[:straight], known, x[:straight])
        mean = self.mean @ x
        return {
            "coefficients": float(self.weight @ lines),
            "scatter": float(self.weight @ self.tau**2),
            "bend": float(self.weight @ np.maximum(total - lines, 0.0)),
            "shape": float(self.weight @ (mean - self.weight @ mean) ** 2),
        }


def mixture_quantiles(
    weight: np.ndarray, mean: np.ndarray, sd: np.ndarray, levels: Sequence[float]
) -> list[float]:
    """Quantiles of a mixture of normals with (H,) weights, means and standard deviations, by bisection."""
    ends = float((mean - 12 * sd).min()), float((mean + 12 * sd).max())
    found = []
    for level in levels:
        low, high = ends
        for _ in range(60):
            middle = 0.5 * (low + high)
            if weight @ ndtr((middle - mean) / sd) < level:
                low = middle
            else:
                high = middle
        found.append(0.5 * (low + high))
    return found
