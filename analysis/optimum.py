"""The learning rate at the bottom of one slice, with its standard error.

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
from hyperp.analysis.slices import Slice
from hyperp.analysis.vocabulary import LEVEL, WINDOW, State
from scipy.special import stdtrit

MIN_RATES = 3


@dataclass(frozen=True)
class Optimum:
    """What a slice says about its best rate; from `log2_lr` on, None unless `state` is bracketed.

    Octaves are log2 units. `se` is the larger of `se_residual` (delta method, residual variance) and the
    scatter of the seeds' own optima over sqrt(seeds). `low` and `high` are rates: a Fieller interval with
    `df` degrees of freedom, its covariance scaled up where `se` exceeds `se_residual`; None when unbounded or
    without degrees of freedom. `leverage` is the optimum's variance for a residual variance of one.
    """

    state: State
    reason: str | None
    next_rates: tuple[float, ...] = ()
    window_rates: tuple[float, ...] = ()
    log2_lr: float | None = None
    loss: float | None = None
    curvature: float | None = None
    se: float | None = None
    se_residual: float | None = None
    low: float | None = None
    high: float | None = None
    df: int = 0
    residual_variance: float | None = None
    leverage: float | None = None
    seeds: int = 0
    seed_variance: float | None = None

    @property
    def lr(self) -> float | None:
        """The optimum as a rate."""
        return None if self.log2_lr is None else 2.0**self.log2_lr


@dataclass(frozen=True)
class _Parabola:
    centre: float
    slope: float
    curvature: float
    cov: np.ndarray  # (2, 2) of (slope, curvature) for a residual variance of one
    floor: float
    rss: float
    df: int

    @property
    def vertex(self) -> float:
        return self.centre - self.slope / (2 * self.curvature)


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


def find_optimum(
    one: Slice, window: float = WINDOW, min_rates: int = MIN_RATES, level: float = LEVEL
) -> Optimum:
    """The optimum of a slice, or the state that says why there is none.

    Args:
        one: the slice.
        window: half-width in octaves about the vertex.
        min_rates: at least this many rates are used, the nearest ones where the window holds fewer.
        level: coverage of the interval.

    Raises:
        ValueError: window, min_rates or level out of range.
    """
    if not (math.isfinite(window) and window > 0):
        raise ValueError(f"window must be a positive number of octaves, got {window}")
    if min_rates < 3:
        raise ValueError(f"min_rates must be at least 3, got {min_rates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if len(np.unique(one.lr)) < 3:
        return _too_few(one)
    rates, means = rate_means(one.lr, one.seed, one.loss)
    x, best = np.log2(rates), int(np.argmin(means))
    if best in (0, len(rates) - 1):
        return _edge(one, rates, low=best == 0)
    parabola, used = _centred_fit(one, x, x[best], window, min_rates)
    if parabola.curvature <= 0 or not x[0] < parabola.vertex < x[-1]:
        shape = "opens downwards" if parabola.curvature <= 0 else "has its vertex outside the rates"
        near = rates[max(best - 1, 0) : best + 2]
        between = tuple(float(r) for r in np.sqrt(near[1:] * near[:-1]))
        return Optimum("not_convex", f"the fitted parabola {shape}", between, tuple(rates[used].tolist()))
    return _measured(one, parabola, rates[used], level)


def _too_few(one: Slice) -> Optimum:
    rates = np.unique(one.lr)
    reason = f"{len(rates)} rate(s) with a finished run, at least 3 are needed"
    add = tuple(float(r) for r in (rates[0] / 2, rates[-1] * 2)) if len(rates) else ()
    return Optimum("too_few_rates", reason, tuple(r for r in add if r not in one.diverged))


def _edge(one: Slice, rates: np.ndarray, low: bool) -> Optimum:
    end = float(rates[0] if low else rates[-1])
    add = [end / 2, end / 4] if low else [end * 2, end * 4]
    wall = next((r for r in one.diverged if r > end), None)
    if not low and wall is not None:
        step = math.log2(wall / end) / 3
        add = [end * 2**step, end * 4**step]
    side = "lowest" if low else "highest"
    reason = f"the {side} rate {end:.4g} has the lowest loss"
    if not low and wall is not None:
        reason += f" and {wall:.4g} diverged"
    return Optimum("edge_low" if low else "edge_high", reason, tuple(add))


def _centred_fit(
    one: Slice, x: np.ndarray, start: float, window: float, min_rates: int
) -> tuple[_Parabola, np.ndarray]:
    """Fit, move the window onto the vertex, repeat until the same rates are in it (or have been before)."""
    centre, tried = start, set()
    used = np.arange(0)
    while True:
        distance = np.abs(x - centre)
        inside = np.flatnonzero(distance <= window * (1 + 1e-9))
        if len(inside) < min_rates:
            inside = np.sort(np.argsort(distance, kind="stable")[:min_rates])
        if tuple(inside) in tried:
            break
        tried.add(tuple(inside))
        used = inside
        parabola = _fit_parabola(one, x[used])
        if parabola.curvature <= 0:
            break
        centre = float(np.clip(parabola.vertex, x[0], x[-1]))
    return parabola, used


def _fit_parabola(one: Slice, x_used: np.ndarray) -> _Parabola:
    x = np.log2(one.lr)
    keep = np.isin(x, x_used)
    x, seed, loss = x[keep], one.seed[keep], one.loss[keep]
    centre = float(x_used.mean())
    seeds, index = np.unique(seed, return_inverse=True)
    dummies = np.eye(len(seeds))[index]
    u = x - centre
    design = np.column_stack([dummies, u, u**2])
    # The loss is centred first: a constant added to every loss must not move the vertex.
    level = loss.mean()
    coefficients, _, rank, _ = np.linalg.lstsq(design, loss - level, rcond=None)
    residual = loss - level - design @ coefficients
    slope, curvature = (float(v) for v in coefficients[-2:])
    floor = level + float(np.mean(coefficients[:-2]))
    if curvature > 0:
        floor -= slope**2 / (4 * curvature)
    cov = np.linalg.pinv(design.T @ design)[-2:, -2:]
    df = len(loss) - int(rank)
    return _Parabola(centre, slope, curvature, cov, floor, float(residual @ residual), df)


def _measured(one: Slice, p: _Parabola, used: np.ndarray, level: float) -> Optimum:
    gradient = np.array([-1 / (2 * p.curvature), p.slope / (2 * p.curvature**2)])
    leverage = float(gradient @ p.cov @ gradient)
    variance = p.rss / p.df if p.df else None
    se_residual = None if variance is None else math.sqrt(variance * leverage)
    count, seed_variance = _seed_variance(one, p, used)
    se_seed = None if seed_variance is None else math.sqrt(seed_variance / count)
    known = [s for s in (se_residual, se_seed) if s is not None]
    se = max(known) if known else None
    low = high = None
    if variance and se and se_residual:
        low, high = _fieller(p, variance * (se / se_residual) ** 2, level)
    return Optimum(
        state="bracketed",
        reason=None,
        window_rates=tuple(float(r) for r in used),
        log2_lr=p.vertex,
        loss=p.floor,
        curvature=p.curvature,
        se=se,
        se_residual=se_residual,
        low=low,
        high=high,
        df=p.df,
        residual_variance=variance,
        leverage=leverage,
        seeds=count,
        seed_variance=seed_variance,
    )


def _seed_variance(one: Slice, p: _Parabola, used: np.ndarray) -> tuple[int, float | None]:
    """Seeds in the window, and the variance of their own optima (octaves squared) at the common curvature."""
    keep = np.isin(one.lr, used)
    x, seed, loss = np.log2(one.lr[keep]) - p.centre, one.seed[keep], one.loss[keep]
    optima = []
    seeds = np.unique(seed)
    for s in seeds:
        u, y = x[seed == s], loss[seed == s]
        if len(u) < 2:
            continue
        straight = y - p.curvature * u**2
        slope = np.cov(u, straight)[0, 1] / np.var(u, ddof=1)
        optima.append(-slope / (2 * p.curvature))
    return len(seeds), float(np.var(optima, ddof=1)) if len(optima) > 1 else None


def _fieller(p: _Parabola, variance: float, level: float) -> tuple[float | None, float | None]:
    """Interval of -b/(2a): the x at which b + 2 a x is not significantly different from zero."""
    t2 = float(stdtrit(p.df, 0.5 + level / 2)) ** 2
    vbb, vab, vaa = p.cov[0, 0] * variance, p.cov[0, 1] * variance, p.cov[1, 1] * variance
    quadratic = 4 * (p.curvature**2 - t2 * vaa)
    linear = 4 * (p.slope * p.curvature - t2 * vab)
    constant = p.slope**2 - t2 * vbb
    if quadratic <= 0:
        return None, None
    root = math.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0))
    ends = [(-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)]
    if max(abs(end) for end in ends) > 500:  # 2^500: no statement, and no overflow
        return None, None
    return 2 ** (p.centre + ends[0]), 2 ** (p.centre + ends[1])
