"""The method `two-stage`: each slice gets its own parabola, with errors pooled over slices of one context."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hyperp.analysis.optima.estimation import group_by_context
from hyperp.analysis.optima.optimum import MIN_RATES, Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.optima.parabola import fit_centred_parabola, mean_loss_by_rate, seed_vertices
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import LEVEL, WINDOW


def parabola_optima(
    slices: Sequence[Slice], window: float = WINDOW, min_rates: int = MIN_RATES, level: float = LEVEL
) -> list[Optimum]:
    """Find the optimum of every slice from its own parabola.

    Three rates and two seeds leave a slice two degrees of freedom. So residual variance and seed scatter are
    each pooled over slices of the same optimizer, parametrization, schedule, data and metric, weighted by
    degrees of freedom.

    Args:
        slices: any slices.
        window: half-width in octaves about the vertex.
        min_rates: use at least this many rates; the nearest ones, where the window holds fewer.
        level: coverage of the intervals.

    Raises:
        ValueError: window, min_rates or level out of range.
    """
    if not (math.isfinite(window) and window > 0):
        raise ValueError(f"window must be a positive number of octaves, got {window}")
    if min_rates < MIN_RATES:
        raise ValueError(f"min_rates must be at least {MIN_RATES}, got {min_rates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    optima = [_optimum_without_errors(one, window, min_rates) for one in slices]
    for members in group_by_context(slices):
        bracketed = [i for i in members if optima[i].parabola is not None]
        pooled = _with_pooled_errors([optima[i] for i in bracketed], level)
        for index, optimum in zip(bracketed, pooled, strict=True):
            optima[index] = optimum
    return optima


def parabola_optimum(
    one: Slice, window: float = WINDOW, min_rates: int = MIN_RATES, level: float = LEVEL
) -> Optimum:
    """Find the optimum of one slice, with errors from this slice alone; see `parabola_optima`."""
    return parabola_optima([one], window, min_rates, level)[0]


def _optimum_without_errors(one: Slice, window: float, min_rates: int) -> Optimum:
    """The vertex of the slice's parabola, and the scatter of its seeds' own vertices."""
    if len(np.unique(one.lr)) < MIN_RATES:
        return too_few_rates_optimum(one)
    rates, means = mean_loss_by_rate(one.lr, one.seed, one.loss)
    best = int(np.argmin(means))
    if best in (0, len(rates) - 1):
        return edge_optimum(one, rates, low=best == 0)
    parabola = fit_centred_parabola(one, float(np.log2(rates[best])), window, min_rates)
    if parabola.curvature <= 0 or not rates[0] < 2.0**parabola.vertex < rates[-1]:
        shape = "opens downwards" if parabola.curvature <= 0 else "has its vertex outside the rates"
        near = rates[max(best - 1, 0) : best + 2]
        between = tuple(float(r) for r in np.sqrt(near[1:] * near[:-1]))
        return Optimum("not_convex", f"the fitted parabola {shape}", between)
    own = seed_vertices(one, parabola)
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


def _with_pooled_errors(optima: Sequence[Optimum], level: float) -> list[Optimum]:
    """These bracketed optima with standard errors and intervals from variances pooled over all of them."""
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
        # A seed that moves the optimum by d octaves changes the slope by 2 d curvature, not the curvature.
        by_seeds = (2 * p.curvature) ** 2 * seed_variance / optimum.seeds
        own_df = seed_df if by_seeds > cov[0, 0] or not df else df
        cov[0, 0] = max(cov[0, 0], by_seeds)
        low, high = p.fieller(cov, own_df, level) or (None, None)
        found.append(dataclasses.replace(optimum, se=p.se(cov), df=own_df, low=low, high=high))
    return found
