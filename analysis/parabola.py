"""A parabola over the rates about the bottom of a slice, and the interval of its vertex.

Model, inside a window: loss = intercept(seed) + b (x - c) + a (x - c)^2, x = log2 lr. Seeds share
initialisation and data order across rates, so an intercept for each takes their main effect away.

The window is 1.5 octaves each side of the vertex and at least three rates. Basins are asymmetric, and a
parabola over rates that lie unevenly about the vertex, or far from it, leans: simulated with a cubic term of
15% of the quadratic one, three whole-octave rates put the vertex 0.06 octave too low, four 0.14 and five
0.23, while noise of 0.2% in the loss scatters it by 0.10, 0.08 and 0.07. A window centred on the vertex
itself keeps the lean small and about the same in every slice, where it moves the coefficient of a law by 4%
but not its exponents.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from hyperp.analysis.slices import Slice


@dataclass(frozen=True)
class Parabola:
    """loss = floor + curvature (x - vertex)^2, averaged over seeds; `slope` is its slope at `centre`.

    `cov` (2, 2) is the covariance of (slope, curvature) for a residual variance of one; `rss` has `df`
    degrees of freedom. `rates` are the rates inside the window.
    """

    centre: float
    slope: float
    curvature: float
    cov: np.ndarray
    floor: float
    rss: float
    df: int
    rates: np.ndarray

    @property
    def vertex(self) -> float:
        """log2 of the rate at the bottom."""
        return self.centre - self.slope / (2 * self.curvature)

    def se(self, cov: np.ndarray) -> float:
        """Standard error of the vertex in octaves, delta method; `cov` (2, 2) of (slope, curvature)."""
        gradient = np.array([-1 / (2 * self.curvature), self.slope / (2 * self.curvature**2)])
        return math.sqrt(float(gradient @ cov @ gradient))

    def fieller(self, cov: np.ndarray, df: int, level: float) -> tuple[float, float] | None:
        """The rates where the slope is not significantly different from zero; None if unbounded."""
        t2 = float(stdtrit(df, 0.5 + level / 2)) ** 2
        vbb, vab, vaa = float(cov[0, 0]), float(cov[0, 1]), float(cov[1, 1])
        quadratic = 4 * (self.curvature**2 - t2 * vaa)
        linear = 4 * (self.slope * self.curvature - t2 * vab)
        constant = self.slope**2 - t2 * vbb
        if quadratic <= 0:
            return None
        root = math.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0))
        low, high = (-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)
        if max(abs(low), abs(high)) > 500:  # 2^500 octaves: no statement, and no overflow
            return None
        return 2 ** (self.centre + low), 2 ** (self.centre + high)


def rate_means(lr: np.ndarray, seed: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rates, and the mean loss at each with the seeds' main effects removed (additive two-way fit).

    A plain mean would favour a rate at which the worse seed is missing.
    """
    rates, rate_index = np.unique(lr, return_inverse=True)
    seeds, seed_index = np.unique(seed, return_inverse=True)
    if len(lr) == len(rates) * len(seeds):
        return rates, np.bincount(rate_index, weights=loss) / len(seeds)
    design = np.zeros((len(lr), len(rates) + len(seeds) - 1))
    design[np.arange(len(lr)), rate_index] = 1
    later = seed_index > 0
    design[later, len(rates) + seed_index[later] - 1] = 1
    effects = np.linalg.lstsq(design, loss, rcond=None)[0]
    return rates, effects[: len(rates)] + effects[len(rates) :].sum() / len(seeds)


def fit_centred(one: Slice, start: float, window: float, min_rates: int) -> Parabola:
    """Fit about `start`, move the window onto the vertex, repeat until the same rates are in it.

    Args:
        one: a slice with at least `min_rates` rates.
        start: log2 of the rate to begin at.
        window: half-width in octaves.
        min_rates: the nearest ones are taken where the window holds fewer.
    """
    x = np.log2(np.unique(one.lr))
    centre, tried, parabola = start, set(), None
    while True:
        distance = np.abs(x - centre)
        inside = np.flatnonzero(distance <= window * (1 + 1e-9))
        if len(inside) < min_rates:
            inside = np.sort(np.argsort(distance, kind="stable")[:min_rates])
        if parabola is not None and tuple(inside) in tried:
            return parabola
        tried.add(tuple(inside))
        parabola = fit_parabola(one, x[inside])
        if parabola.curvature <= 0:
            return parabola
        centre = float(np.clip(parabola.vertex, x[0], x[-1]))


def fit_parabola(one: Slice, x_used: np.ndarray) -> Parabola:
    """Least squares with an intercept for each seed, over the log2 rates in `x_used`."""
    x = np.log2(one.lr)
    keep = np.isin(x, x_used)
    x, seed, loss = x[keep], one.seed[keep], one.loss[keep]
    centre = float(x_used.mean())
    seeds, index = np.unique(seed, return_inverse=True)
    u = x - centre
    dummies = np.eye(len(seeds))[index]
    design = np.column_stack([dummies, u, u**2])
    # The loss is centred first: a constant added to every loss must not move the vertex.
    level = float(loss.mean())
    coefficients = np.linalg.lstsq(design, loss - level, rcond=None)[0]
    slope, curvature = (float(v) for v in coefficients[-2:])
    floor = level + float(np.mean(coefficients[:-2]))
    if curvature > 0:
        floor -= slope**2 / (4 * curvature)
    # Seeds move the optimum, so the noise is what is left when each has a slope of its own.
    full = np.column_stack([dummies, dummies * u[:, None], u**2])
    fitted, _, rank, _ = np.linalg.lstsq(full, loss - level, rcond=None)
    residual = loss - level - full @ fitted
    return Parabola(
        centre=centre,
        slope=slope,
        curvature=curvature,
        cov=np.linalg.pinv(design.T @ design)[-2:, -2:],
        floor=floor,
        rss=float(residual @ residual),
        df=len(loss) - int(rank),
        rates=np.unique(one.lr[keep]),
    )


def seed_optima(one: Slice, parabola: Parabola) -> np.ndarray:
    """log2 of each seed's own optimum at the common curvature, for the seeds with two rates in the window."""
    keep = np.isin(one.lr, parabola.rates)
    x, seed, loss = np.log2(one.lr[keep]) - parabola.centre, one.seed[keep], one.loss[keep]
    optima = []
    for s in np.unique(seed):
        u, straight = x[seed == s], loss[seed == s] - parabola.curvature * x[seed == s] ** 2
        if len(u) > 1:
            slope = np.cov(u, straight)[0, 1] / np.var(u, ddof=1)
            optima.append(parabola.centre - slope / (2 * parabola.curvature))
    return np.array(optima)
