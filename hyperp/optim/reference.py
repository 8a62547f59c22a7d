"""Slow, obvious float64 twins of everything in this folder, one matrix at a time, that the tests compare
against.

Every spectral quantity comes from a full SVD, every root from plain bisection. Nothing here is meant for
training.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]


def polynomial_of_singular_values(X: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """U p(S) V^T: p the composition of the quintics, S the singular values of X over its Frobenius norm."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    S = S / S.norm() if S.norm() > 0 else S
    for a, b, c in quintics:
        S = a * S + b * S**3 + c * S**5
    return U @ torch.diag(S) @ Vh


def polar_factor(X: Tensor, rtol: float = 1e-12) -> Tensor:
    """U V^T over the singular values above rtol times the largest; zero for a zero matrix."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    kept = (rtol * S[0] < S) & (S > 0)
    return U[:, kept] @ Vh[kept]


def optimal_quintic(lower: float, upper: float) -> Quintic:
    """Odd quintic nearest to 1 on [lower, upper] in the largest error, by Remez exchange on four points.

    Between its four alternation points, the ends and two extrema q < r inside, the error has equal size and
    changes sign.
    """
    if lower / upper >= 1 - 5e-6:  # the limit lower -> upper, where the linear system becomes singular
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    q, r, error = (3 * lower + upper) / 4, (lower + 3 * upper) / 4, math.inf
    while True:
        x = np.array([lower, q, r, upper])
        system = np.stack([x, x**3, x**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, new_error = np.linalg.solve(system, np.ones(4))
        if abs(new_error - error) <= 1e-15:
            return float(a), float(b), float(c)
        error = new_error
        root = math.sqrt(9 * b**2 - 20 * a * c)  # p'(x) = a + 3 b x^2 + 5 c x^4 vanishes at q and r
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))


def polar_express_quintics(
    lower: float = 1e-3, steps: int = 8, cushion: float = 0.02407327424182761
) -> list[Quintic]:
    """Greedy composition of optimal quintics for singular values in [lower, 1] (arXiv 2505.16932, section 3).

    The cushion keeps a first polynomial for a tiny `lower` from pressing mid-sized singular values down
    (section 4.4 there).
    """
    upper, quintics = 1.0, []
    for _ in range(steps):
        a, b, c = optimal_quintic(max(lower, cushion * upper), upper)

        def p(x: float, a: float = a, b: float = b, c: float = c) -> float:
            return a * x + b * x**3 + c * x**5

        scale = 2 / (p(lower) + p(upper)) if cushion * upper > lower else 1.0
        quintics.append((a * scale, b * scale, c * scale))
        lower = scale * p(lower)
        upper = 2 - lower
    return quintics
