"""Points at which to evaluate an integrand that is nearly Gaussian, after integrated nested Laplace.

A central composite design (Rue, Martino and Chopin, J. R. Stat. Soc. B 71, 2009, section 6.5): the centre,
two points on each axis and the corners of a cube, of which a balanced fraction suffices, all but the centre
on one sphere. The weights are those that give a standard normal its mass and variance.
"""

import functools
import itertools

import numpy as np

# Axes of the cube whose signs are products of those of other axes, so that main effects, squares and, but for
# the largest designs, products of pairs can be told apart (fractional factorials of resolution V, VI).
_GENERATORS = {5: [(0, 1, 2, 3)], 6: [(0, 1, 2, 3, 4)], 7: [(0, 1, 2, 3), (0, 1, 4, 5)]}
_GENERATORS[8] = [(0, 1, 2, 3), (0, 1, 4, 5)]
RADIUS = 1.1  # of the sphere, over the square root of the dimension


@functools.cache
def composite_design(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) and weights (n,) that integrate a function against a standard normal in d dimensions.

    The weights are positive and sum to one.
    """
    if dimension == 1:
        root = np.sqrt(3.0)
        return np.array([[0.0], [-root], [root]]), np.array([2 / 3, 1 / 6, 1 / 6])
    generators = _GENERATORS.get(dimension, [])
    free = dimension - len(generators)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=free)))
    for columns in generators:
        corners = np.column_stack([corners, corners[:, list(columns)].prod(axis=1)])
    radius = RADIUS * np.sqrt(dimension)
    axes = np.vstack([np.eye(dimension), -np.eye(dimension)])
    sphere = np.vstack([corners / np.sqrt(dimension), axes]) * radius
    points = np.vstack([np.zeros(dimension), sphere])
    outer = 1 / RADIUS**2
    return points, np.append(1 - outer, np.full(len(sphere), outer / len(sphere)))
