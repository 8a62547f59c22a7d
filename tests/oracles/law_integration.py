"""The hierarchical law by plain integration on grids, slow: the twin of expectation propagation.

For K slices, each with a log likelihood of its optimum, and the coefficients (a, b, ...) on a product of
grids: the probability of the runs at one scatter is the integral over the coefficients of their prior times,
for each slice, the integral over its optimum of likelihood times normal about the line.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

LogLikelihood = Callable[[np.ndarray], np.ndarray]


def integrate_law(
    likelihoods: Sequence[LogLikelihood],
    X: np.ndarray,
    tau: float,
    prior_mean: np.ndarray,
    prior_sd: np.ndarray,
    centre: np.ndarray,
    reach: np.ndarray,
    points: int = 61,
    optima: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """ln of the evidence, and mean and covariance of the coefficients.

    Args:
        likelihoods: ln of the likelihood of each optimum, of arrays.
        X: (K, P) design.
        tau: scatter.
        prior_mean, prior_sd: (P,) of the coefficients.
        centre, reach: (P,) the middle and the half width of the grid of each coefficient.
        points: of each grid.
        optima: the grid of the optimum.
    """
    m = np.linspace(-8, 8, 4001) if optima is None else optima
    axes = [np.linspace(c - r, c + r, points) for c, r in zip(centre, reach, strict=True)]
    grid = np.array(list(itertools.product(*axes)))
    density = -0.5 * (((grid - prior_mean) / prior_sd) ** 2).sum(axis=1)
    density -= np.log(prior_sd).sum() + 0.5 * len(prior_sd) * np.log(2 * np.pi)
    for likelihood, x in zip(likelihoods, X, strict=True):
        own = likelihood(m)
        line = np.linspace((grid @ x).min(), (grid @ x).max(), 801)
        normal = -0.5 * ((m - line[:, None]) / tau) ** 2 - np.log(tau) - 0.5 * np.log(2 * np.pi)
        joint = own + normal
        top = joint.max(axis=1)
        mass = top + np.log(np.exp(joint - top[:, None]).sum(axis=1) * (m[1] - m[0]))
        density += np.interp(grid @ x, line, mass)
    top = density.max()
    weight = np.exp(density - top)
    volume = np.prod([axis[1] - axis[0] for axis in axes])
    evidence = float(top + np.log(weight.sum() * volume))
    weight /= weight.sum()
    mean = weight @ grid
    away = grid - mean
    return evidence, mean, (weight * away.T) @ away
