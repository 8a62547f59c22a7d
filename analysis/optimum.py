"""The best learning rate of each slice with its standard error, or the state that says why there is none."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperp.analysis.parabola import Parabola, fit_centred, rate_means, seed_optima
from hyperp.analysis.slices import Slice
from hyperp.analysis.vocabulary import LEVEL, WINDOW, State

MIN_RATES = 3


@dataclass(frozen=True)
class Optimum:
    """What a slice says about its best rate; from `log2_lr` on, None or empty unless `state` is bracketed.

    `loss` and `curvature` (per octave squared) are of the curve at its bottom, `rates` those that it was
    fitted to. `se` is in octaves, `df` its degrees of freedom; None without any. `low` and `high` are
    rates, None when unbounded. `runs` is how many runs the optimum averages, `also` the base-2 logs of
    what is tuned beside the rate. Of a parabola, `se` takes the slope's variance from the noise or from
    the scatter of the seeds' own optima (`seed_variance`, octaves squared, with `seed_df`) over their
    number, whichever is larger, and `df` from the same, and `low` and `high` are Fieller's.
    """

    state: State
    reason: str | None
    next_rates: tuple[float, ...] = ()
    log2_lr: float | None = None
    loss: float | None = None
    curvature: float | None = None
    rates: tuple[float, ...] = ()
    seeds: int = 0
    runs: int = 1
    se: float | None = None
    df: int = 0
    low: float | None = None
    high: float | None = None
    also: dict[str, float] = field(default_factory=dict)
    also_se: dict[str, float] = field(default_factory=dict)
    parabola: Parabola | None = None
    seed_variance: float = 0.0
    seed_df: int = 0

    @property
    def lr(self) -> float | None:
        """The optimum as a rate."""
        return None if self.log2_lr is None else 2.0**self.log2_lr


def find_optima(
    slices: Sequence[Slice], window: float = WINDOW, min_rates: int = MIN_RATES, level: float = LEVEL
) -> list[Optimum]:
    """The optimum of every slice, errors pooled over the slices of one context.

    Three rates and two seeds leave a slice two degrees of freedom, so residual variance and seed scatter are
    each pooled over slices of the same optimizer, parametrization, schedule, data and metric, weighted by
    degrees of freedom.

    Args:
        slices: any slices.
        window: half-width in octaves about the vertex.
        min_rates: at least this many rates are used, the nearest ones where the window holds fewer.
        level: coverage of the intervals.

    Raises:
        ValueError: window, min_rates or level out of range.
    """
    if not (math.isfinite(window) and window > 0):
        raise ValueError(f"window must be a positive number of octaves, got {window}")
    if min_rates < 3:
        raise ValueError(f"min_rates must be at least 3, got {min_rates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    optima = [_locate(one, window, min_rates) for one in slices]
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        if optima[index].parabola is not None:
            groups.setdefault(tuple(one.context.values()), []).append(index)
    for members in groups.values():
        for index, optimum in zip(members, _with_errors([optima[i] for i in members], level), strict=True):
            optima[index] = optimum
    return optima


def find_optimum(
    one: Slice, window: float = WINDOW, min_rates: int = MIN_RATES, level: float = LEVEL
) -> Optimum:
    """The optimum of one slice from its own errors alone; see find_optima."""
    return find_optima([one], window, min_rates, level)[0]


def _locate(one: Slice, window: float, min_rates: int) -> Optimum:
    if len(np.unique(one.lr)) < 3:
        return too_few(one)
    rates, means = rate_means(one.lr, one.seed, one.loss)
    best = int(np.argmin(means))
    if best in (0, len(rates) - 1):
        return edge(one, rates, low=best == 0)
    parabola = fit_centred(one, float(np.log2(rates[best])), window, min_rates)
    if parabola.curvature <= 0 or not rates[0] < 2.0**parabola.vertex < rates[-1]:
        shape = "opens downwards" if parabola.curvature <= 0 else "has its vertex outside the rates"
        near = rates[max(best - 1, 0) : best + 2]
        between = tuple(float(r) for r in np.sqrt(near[1:] * near[:-1]))
        return Optimum("not_convex", f"the fitted parabola {shape}", between)
    own = seed_optima(one, parabola)
    count = len(np.unique(one.seed[np.isin(one.lr, parabola.rates)]))
    variance = float(np.var(own, ddof=1)) if len(own) > 1 else 0.0
    df = max(len(own) - 1, 0)
    return Optimum(
        "bracketed",
        None,
        log2_lr=parabola.vertex,
        loss=parabola.floor,
        curvature=parabola.curvature,
        rates=tuple(parabola.rates.tolist()),
        seeds=count,
        runs=int(np.isin(one.lr, parabola.rates).sum()),
        parabola=parabola,
        seed_variance=variance,
        seed_df=df,
    )


def too_few(one: Slice) -> Optimum:
    """The optimum of a slice with fewer than three rates."""
    rates = np.unique(one.lr)
    reason = f"{len(rates)} rate(s) with a finished run, at least 3 are needed"
    add = (float(rates[0]) / 2, float(rates[-1]) * 2) if len(rates) else ()
    if not add and one.diverged:
        add = (one.diverged[0] / 4, one.diverged[0] / 2)
    return Optimum("too_few_rates", reason, tuple(r for r in add if r not in one.diverged))


def edge(one: Slice, rates: np.ndarray, low: bool) -> Optimum:
    """The optimum of a slice whose best rate is at an end of `rates` (sorted), with rates to add beyond."""
    end = float(rates[0] if low else rates[-1])
    side = "lowest" if low else "highest"
    reason = f"the {side} rate {end:.4g} has the lowest loss"
    add = (end / 2, end / 4) if low else (end * 2, end * 4)
    wall = None if low else next((r for r in one.diverged if r > end), None)
    if wall is not None:
        # Beyond the last finished rate it diverges, so the bottom lies between the two.
        reason += f" and {wall:.4g} diverged"
        step = (wall / end) ** (1 / 3)
        add = (end * step, end * step**2)
    return Optimum("edge_low" if low else "edge_high", reason, add)


def _with_errors(optima: Sequence[Optimum], level: float) -> list[Optimum]:
    """Standard errors and intervals from variances pooled over these (bracketed) optima."""
    parabolas = [o.parabola for o in optima if o.parabola is not None]
    df = sum(p.df for p in parabolas)
    variance = sum(p.rss for p in parabolas) / df if df else 0.0
    seed_df = sum(o.seed_df for o in optima)
    seed_variance = sum(o.seed_variance * o.seed_df for o in optima) / seed_df if seed_df else 0.0
    if df == 0 and seed_df == 0:
        return list(optima)
    found = []
    for optimum, p in zip(optima, parabolas, strict=True):
        cov = variance * p.cov
        # A seed that moves the optimum by d octaves moves the slope by 2 d curvature, and leaves the
        # curvature.
        by_seeds = (2 * p.curvature) ** 2 * seed_variance / optimum.seeds
        own_df = seed_df if by_seeds > cov[0, 0] or not df else df
        cov[0, 0] = max(cov[0, 0], by_seeds)
        low, high = p.fieller(cov, own_df, level) or (None, None)
        found.append(dataclasses.replace(optimum, se=p.se(cov), df=own_df, low=low, high=high))
    return found
