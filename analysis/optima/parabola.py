"""Fit a parabola to the rates about the bottom of a slice, with an interval for its vertex.

The model inside a window is loss = intercept(seed) + b (x - c) + a (x - c)^2 with x = log2 lr. A seed has the
same initialisation and data order at every rate, so an intercept for each seed removes its main effect.

The window reaches 1.5 octaves to each side of the vertex and holds at least three rates. Basins are
asymmetric, so a parabola is biased if its rates lie unevenly about the vertex or far from it. In simulations
with a cubic term of 15% of the quadratic one, three whole-octave rates put the vertex 0.06 octave too low,
four rates 0.14 and five 0.23, while noise of 0.2% in the loss scatters it by 0.10, 0.08 and 0.07. A window
centred on the vertex keeps the bias small and about the same in every slice. There it changes the coefficient
of a law by 4%, but not its exponents.
"""

import math
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Slice


@dataclass(frozen=True)
class Parabola:
    """loss = floor + curvature (x - vertex)^2 with x = log2 lr, averaged over seeds.

    Attributes:
        centre: the x at which `slope` is taken.
        slope: of the loss at `centre`, per octave.
        curvature: coefficient of the square, per octave squared.
        cov: (2, 2) covariance of (slope, curvature) for a residual variance of one.
        floor: loss at the vertex.
        rss, df: residual sum of squares and its degrees of freedom.
        rates: the rates inside the window.
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
        """Base-2 log of the rate at the bottom."""
        return self.centre - self.slope / (2 * self.curvature)

    def se(self, cov: np.ndarray) -> float:
        """Standard error of the vertex in octaves by the delta method, given the (2, 2) covariance of
        (slope, curvature).
        """
        gradient = np.array([-1 / (2 * self.curvature), self.slope / (2 * self.curvature**2)])
        return math.sqrt(float(gradient @ cov @ gradient))

    def fieller(self, cov: np.ndarray, df: int, level: float) -> tuple[float, float] | None:
        """The ends of Fieller's interval of the vertex, as rates; None if it is unbounded.

        It holds the rates at which the slope does not differ significantly from zero.

        Args:
            cov: (2, 2) covariance of (slope, curvature).
            df: its degrees of freedom.
            level: coverage.
        """
        t2 = t_quantile(df, level) ** 2
        vbb, vab, vaa = float(cov[0, 0]), float(cov[0, 1]), float(cov[1, 1])
        quadratic = 4 * (self.curvature**2 - t2 * vaa)
        linear = 4 * (self.slope * self.curvature - t2 * vab)
        constant = self.slope**2 - t2 * vbb
        if quadratic <= 0:
            return None
        root = math.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0))
        low, high = (-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)
        if max(abs(low), abs(high)) > 500:  # as good as unbounded, and 2.0 ** low must not overflow
            return None
        return 2 ** (self.centre + low), 2 ** (self.centre + high)


def mean_loss_by_rate(lr: np.ndarray, seed: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss at each rate, without the seeds' main effects (additive two-way fit).

    A plain mean would favour a rate at which the worse seed is missing.

    Args:
        lr, seed, loss: (n,) of the runs of a slice.

    Returns:
        (rates, means): the distinct rates, sorted, and the mean loss at each.
    """
    rates, rate_index = np.unique(lr, return_inverse=True)
    seeds, seed_index = np.unique(seed, return_inverse=True)
    at_rate = np.bincount(rate_index)
    means = np.bincount(rate_index, weights=loss) / at_rate
    if len(seeds) == 1 or len(lr) == len(rates) * len(seeds):
        return rates, means
    if len(rates) * len(seeds) > 10 * len(lr):  # the rates share too few seeds to compare
        return rates, means
    cells = np.zeros((len(rates), len(seeds)))
    np.add.at(cells, (rate_index, seed_index), 1)
    # The rates are eliminated, which leaves a small system for the seeds, singular up to a constant.
    normal = np.diag(cells.sum(axis=0)) - cells.T @ (cells / at_rate[:, None])
    effects = np.linalg.pinv(normal, rcond=1e-10) @ np.bincount(seed_index, weights=loss - means[rate_index])
    effects -= effects.mean()
    return rates, means - cells @ effects / at_rate


def fit_centred_parabola(one: Slice, start: float, window: float, min_rates: int) -> Parabola:
    """Fit about `start`, then centre the window on the vertex, until it holds the same rates again.

    Args:
        one: a slice with at least `min_rates` rates.
        start: log2 of the rate to begin at.
        window: half-width in octaves.
        min_rates: use at least this many rates; the nearest ones, where the window holds fewer.
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
    """Fit a parabola with an intercept for each seed, to the rates whose base-2 logs are in `x_used`."""
    x = np.log2(one.lr)
    keep = np.isin(x, x_used)
    x, seed, loss = x[keep], one.seed[keep], one.loss[keep]
    centre = float(x_used.mean())
    seeds, index = np.unique(seed, return_inverse=True)
    if len(seeds) > len(loss) / 2:
        # Most seeds have one rate, so with intercepts of their own they would tell nothing about the shape.
        seeds, index = seeds[:1], np.zeros_like(index)
    u = x - centre
    # The loss is centred first, so that a constant added to every loss does not move the vertex.
    level = float(loss.mean())
    count = np.bincount(index)
    columns = np.column_stack([u, u**2, loss - level])
    means = np.column_stack([np.bincount(index, weights=c) for c in columns.T]) / count[:, None]
    within = columns - means[index]
    design = within[:, :2]
    slope, curvature = (float(v) for v in np.linalg.lstsq(design, within[:, 2], rcond=None)[0])
    floor = level + float(np.mean(means[:, 2] - means[:, :2] @ [slope, curvature]))
    if curvature > 0:
        floor -= slope**2 / (4 * curvature)
    rss, df = _noise(within, index, count)
    return Parabola(
        centre=centre,
        slope=slope,
        curvature=curvature,
        cov=np.linalg.pinv(design.T @ design),
        floor=floor,
        rss=rss,
        df=df,
        rates=np.unique(one.lr[keep]),
    )


def _noise(within: np.ndarray, index: np.ndarray, count: np.ndarray) -> tuple[float, int]:
    """Residual sum of squares and its degrees of freedom when each seed has its own slope.

    Seeds move the optimum, which is not noise; a slope for each seed takes that out.

    Args:
        within: (n, 3) u, u^2 and the loss, each less its mean over the seed.
        index: (n,) the seed of each run.
        count: number of runs of each seed.
    """
    u = within[:, 0]
    spread = np.bincount(index, weights=u**2)
    some = spread > 1e-12
    safe = np.where(some, spread, 1.0)
    square, loss = (
        c - (np.where(some, np.bincount(index, weights=c * u), 0.0) / safe)[index] * u
        for c in (within[:, 1], within[:, 2])
    )
    norm = float(square @ square)
    bends = norm > 1e-12 * max(float(within[:, 1] @ within[:, 1]), 1e-300)
    residual = loss - (float(square @ loss) / norm if bends else 0.0) * square
    return float(residual @ residual), len(index) - len(count) - int(some.sum()) - int(bends)


def seed_vertices(one: Slice, parabola: Parabola) -> np.ndarray:
    """Base-2 log of the vertex of each seed with two rates in the window, at the common curvature."""
    keep = np.isin(one.lr, parabola.rates)
    x, seed, loss = np.log2(one.lr[keep]) - parabola.centre, one.seed[keep], one.loss[keep]
    _, index = np.unique(seed, return_inverse=True)
    count = np.bincount(index)
    columns = np.column_stack([x, loss - parabola.curvature * x**2])
    means = np.column_stack([np.bincount(index, weights=c) for c in columns.T]) / count[:, None]
    u, straight = (columns - means[index]).T
    spread = np.bincount(index, weights=u**2)
    some = spread > 1e-12
    slope = np.bincount(index, weights=u * straight)[some] / spread[some]
    return parabola.centre - slope / (2 * parabola.curvature)
