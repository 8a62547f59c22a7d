"""The likelihood of each slice's optimum on a grid of log rates, at every point of a design over basins."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from hyperp.analysis.optima.likelihood.basin import two_powers
from hyperp.analysis.optima.likelihood.curves import RateCurves
from hyperp.analysis.optima.likelihood.design import composite_design
from hyperp.analysis.optima.likelihood.mode import MISFIT, NOISE, BasinMode, shape_prior
from hyperp.analysis.vocabulary import LN2

# C: points of the design   K: slices   G: points of the grid   n: rates in the longest slice

GRID = 128
BEYOND = 5 * LN2  # how far beyond its rates a slice's optimum is looked for
REACH = 15.0  # standard errors of an optimum about its mode that the grid covers, with all rates at least
LEAST_REACH = 1.0  # natural log
WALL = 0.25 * LN2  # softness of the bound that a diverged run sets
CHUNK = 4e6  # numbers at once
SOFT_ENDS = 8.0  # the ends of a rounding interval are soft over this part of it
LEAST_ERROR = 1e-3  # natural log, of an optimum without an error


@dataclass(frozen=True)
class LikelihoodTables:
    """Log likelihoods of the optima of K slices, given the basin, on grids of natural log rates.

    Attributes:
        start, step: (K,) first value of each slice's grid and its spacing.
        loglik: (C, K, G) with the floor integrated out.
        log_weight: (C,) ln of the prior density times the volume that each point of the design stands for.
        shapes: (C, D) ln curvature, skew, ln tail and curvature exponents at each point.
        log_noise: (C,) ln of the noise of one run.
    """

    start: np.ndarray
    step: np.ndarray
    loglik: np.ndarray
    log_weight: np.ndarray
    shapes: np.ndarray
    log_noise: np.ndarray

    def select(self, keep: np.ndarray) -> "LikelihoodTables":
        """The slices with the indices `keep`."""
        return LikelihoodTables(
            self.start[keep],
            self.step[keep],
            self.loglik[:, keep],
            self.log_weight,
            self.shapes,
            self.log_noise,
        )

    @property
    def most_probable(self) -> "LikelihoodTables":
        """The tables at the most probable basin alone."""
        first = slice(0, 1)
        return LikelihoodTables(
            self.start, self.step, self.loglik[first], np.zeros(1), self.shapes[first], self.log_noise[first]
        )

    @property
    def grid(self) -> np.ndarray:
        """The grid of each slice, (K, G)."""
        return self.start[:, None] + self.step[:, None] * np.arange(self.loglik.shape[2])


def tabulate(curves: RateCurves, Z: np.ndarray, mode: BasinMode) -> LikelihoodTables:
    """The tables at the points of a composite design about the mode.

    Args:
        curves: the runs.
        Z: (K, q) natural logs of the covariates, centred.
        mode: see `find_mode`.
    """
    D = len(mode.shape)
    points, weights = composite_design(D + 1)
    root = np.linalg.cholesky(mode.cov)
    shapes = mode.shape + points[:, :D] @ root.T
    log_noise = mode.log_noise + mode.log_noise_sd * points[:, D]
    log_prior = -0.5 * (((shapes - shape_prior(D)[0]) / shape_prior(D)[1]) ** 2).sum(axis=1)
    log_prior -= 0.5 * ((log_noise - NOISE[0]) / NOISE[1]) ** 2
    log_prior -= curves.seed_df * log_noise + 0.5 * curves.seed_squares * np.exp(-2 * log_noise)
    log_weight = np.log(weights) + 0.5 * (points**2).sum(axis=1) + log_prior
    return tabulate_at(curves, Z, mode, shapes, log_noise, log_weight)


def tabulate_at(
    curves: RateCurves,
    Z: np.ndarray,
    mode: BasinMode,
    shapes: np.ndarray,
    log_noise: np.ndarray,
    log_weight: np.ndarray,
) -> LikelihoodTables:
    """The tables at given basins; `sound` and `model` of the mode belong to the runs of `curves`."""
    reach = np.maximum(REACH * mode.optimum_sd, LEAST_REACH)
    start = np.maximum(curves.low - BEYOND, np.minimum(mode.optimum - reach, curves.low))
    end = np.minimum(curves.high + BEYOND, np.maximum(mode.optimum + reach, curves.high))
    end = np.maximum(np.minimum(end, curves.wall + 4 * WALL), start + LEAST_REACH)
    step = (end - start) / (GRID - 1)
    height = np.exp(np.clip(shapes[:, :1] + shapes[:, 3:] @ Z.T, -20, 10))
    loglik = np.empty((len(shapes), len(start), GRID))
    size = max(int(CHUNK / (len(shapes) * max(GRID, curves.u.shape[1]))), 1)
    for first in range(0, len(start), size):
        part = slice(first, first + size)
        grid = start[part, None] + step[part, None] * np.arange(GRID)
        loglik[:, part] = _log_likelihood(curves, mode, part, grid, height[:, part], shapes, log_noise)
    return LikelihoodTables(start, step, loglik, log_weight, shapes, log_noise)


def _log_likelihood(
    curves: RateCurves,
    mode: BasinMode,
    part: slice,
    grid: np.ndarray,
    height: np.ndarray,
    shapes: np.ndarray,
    log_noise: np.ndarray,
) -> np.ndarray:
    """Log likelihood (C, K, G) of optima on the grid (K, G), for basins of the curvature `height` (C, K).

    At the log rate u, an optimum m gives an excess loss that is a sum of 1, e^(-a m) and e^(b m) with factors
    that depend on u alone. So the sums of squares over runs need sums over runs of these factors only.
    """
    sound = mode.sound[part]
    count = np.where(curves.count[part] > 0, curves.count[part], 1.0)
    # The misfit is that of the mode, so that no optimum is favoured because it explains away the noise.
    noise = np.exp(2 * log_noise)[:, None, None]
    precision = 1 / (noise / count + (MISFIT * mode.model[part]) ** 2)
    w = sound * precision
    a, b = (power[:, None, None] for power in two_powers(shapes[:, 1], np.exp(shapes[:, 2])))
    middle = 0.5 * (curves.low + curves.high)[part]
    u, m = curves.u[part] - middle[:, None], grid - middle[:, None]
    scale = height[..., None] / (a + b)
    up = scale / a * np.exp(np.clip(a * u, -50, 50))  # of e^(-a m)
    down = scale / b * np.exp(np.clip(-b * u, -50, 50))  # of e^(b m)
    one = 1 - scale * (1 / a + 1 / b) + np.zeros_like(up)  # of 1, in the loss over its floor
    left = curves.y[part] - one

    def total(x: np.ndarray) -> np.ndarray:
        return (w * x).sum(axis=-1)[..., None]

    rise, fall = np.exp(np.clip(-a * m, -100, 100)), np.exp(np.clip(b * m, -100, 100))
    common = rise * (rise * total(up * up) + 2 * fall * total(up * down)) + fall * fall * total(down * down)
    with_left = rise * total(left * up) + fall * total(left * down)
    with_one = rise * total(one * up) + fall * total(one * down)
    squares = total(left * left) + common - 2 * with_left
    information = total(one * one) + common + 2 * with_one
    miss = total(left * one) + with_left - with_one - common
    constant = 0.5 * (sound * np.log(precision)).sum(axis=-1)[..., None]
    bound = log_ndtr((curves.wall[part][:, None] - grid) / WALL)
    least = squares - miss**2 / information
    return constant - 0.5 * least - 0.5 * np.log(information) + bound


def interpolate(values: np.ndarray, first: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A smooth cubic through tabulated values; beyond the table its last slope goes on.

    Args:
        values: (..., G) tables, contiguous.
        first: where in the flattened `values` each table begins; broadcasts against `place`.
        place: where to evaluate, in steps from the start of the table.
    """
    flat, G = values.reshape(-1), values.shape[-1]
    near = np.clip(np.floor(place), 1, G - 3).astype(np.int64)
    t, index = place - near, first + near
    before, here, there, after = flat[index - 1], flat[index], flat[index + 1], flat[index + 2]
    one, two, rise = 0.5 * (there - before), 0.5 * (after - here), there - here
    square, cube = 3 * rise - 2 * one - two, one + two - 2 * rise
    inside = np.clip(t, -1.0, 2.0)
    value = here + inside * (one + inside * (square + inside * cube))
    return value + (t - inside) * (one + inside * (2 * square + 3 * inside * cube))


def tables_of_optima(optima: np.ndarray, errors: np.ndarray, rounding: np.ndarray) -> LikelihoodTables:
    """The likelihoods of optima that are known only as numbers.

    Args:
        optima: (K,) natural logs.
        errors: (K,) standard errors; 0 for none, or where the scatter about the law has to hold it too.
        rounding: (K,) half the step of the grid that an optimum was read off; 0 for none. Any optimum that
            rounds to the number is as likely as another.
    """
    sd = np.maximum(errors, np.where(rounding > 0, rounding / SOFT_ENDS, LEAST_ERROR))
    reach = rounding + 8 * sd
    start, step = optima - reach, 2 * reach / (GRID - 1)
    away = np.abs(np.linspace(-1, 1, GRID) * reach[:, None])
    smooth = -0.5 * (away / sd[:, None]) ** 2
    near = log_ndtr((rounding[:, None] - away) / sd[:, None])
    far = log_ndtr((-rounding[:, None] - away) / sd[:, None])
    flat = near + np.log1p(-np.exp(np.minimum(far - near, -1e-12)))
    loglik = np.where(rounding[:, None] > 0, flat, smooth)[None]
    return LikelihoodTables(start, step, loglik, np.zeros(1), np.zeros((1, 3)), np.zeros(1))
