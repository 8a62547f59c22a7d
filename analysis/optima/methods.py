"""The methods that find the best rate of each slice, by name."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hyperp.analysis.errors import argument
from hyperp.analysis.optima.estimation import (
    BasinEstimate,
    Method,
    MethodOptions,
    MethodResult,
    group_by_context,
    mean_loss_by_setting,
)
from hyperp.analysis.optima.likelihood.optima import hierarchical_optima
from hyperp.analysis.optima.optimum import MIN_RATES, Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.optima.shared import shared_optima
from hyperp.analysis.optima.two_stage import parabola_optima
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import METHODS, MethodName

POOL = 0.0025  # runs within this relative excess of the slice's lowest loss are pooled (arXiv 2503.04715)


def estimate_optima(name: MethodName, slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Find the optimum of each slice by the named method.

    Raises:
        ValueError: the method is not one of `vocabulary.METHODS`, or it cannot tune `options.over`.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"{argument('method')} must be one of {', '.join(METHODS)}, got {name!r}")
    found = ESTIMATORS[name](slices, options)
    unknown = sum(o.state == "bracketed" and o.se is None for o in found.optima)
    if not unknown:
        return found
    note = (
        f"{unknown} of {len(slices)} slices have an optimum without a standard error, because their runs "
        "leave no residual degree of freedom; a second seed or another rate would give one"
    )
    return dataclasses.replace(found, notes=[*found.notes, note])


def two_stage_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Fit each slice its own parabola, over a window about its vertex.

    Raises:
        ValueError: anything but the rate is tuned.
    """
    if options.over != ("lr",):
        raise ValueError(
            f"{argument('method', 'two-stage')} tunes lr alone, got "
            f"{argument('over', ','.join(options.over), '--tuned')}; use shared, pool or argmin"
        )
    optima = parabola_optima(slices, options.window, level=options.level)
    basins: list[BasinEstimate | None] = [None] * len(slices)
    for members in group_by_context(slices):
        common = _common_parabola([optima[i] for i in members])
        for index in members:
            basins[index] = common
    return MethodResult(optima, basins)


def argmin_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Take the rate (and batch) with the lowest mean loss."""
    return MethodResult([_best_setting(one, options, 0.0) for one in slices], [None] * len(slices))


def pool_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Average the log rates of all settings within 0.25% of the lowest mean loss (arXiv 2503.04715).

    The law weights the optimum by the number of these settings.
    """
    return MethodResult(
        [_best_setting(one, options, POOL) for one in slices], [None] * len(slices), by_runs=True
    )


def _common_parabola(optima: Sequence[Optimum]) -> BasinEstimate | None:
    """The parabola with the median relative curvature; None without a bracketed slice."""
    bends = [o.curvature / o.loss for o in optima if o.curvature is not None and o.loss]
    return BasinEstimate([[2]], [float(np.median(bends)) / np.log(2) ** 2]) if bends else None


def _best_setting(one: Slice, options: MethodOptions, within: float) -> Optimum:
    """The mean log of the settings whose mean loss is within the fraction `within` of the lowest."""
    if len(np.unique(one.lr)) < MIN_RATES:
        return too_few_rates_optimum(one)
    settings, means, _ = mean_loss_by_setting(one)
    rates = np.unique(settings[:, 0])
    best = settings[np.argmin(means)]
    if best[0] in (rates[0], rates[-1]):
        return edge_optimum(one, rates, low=best[0] == rates[0])
    near = means <= means.min() * (1 + within)
    if rates[0] in settings[near, 0] and rates[-1] in settings[near, 0] and near.sum() > 1:
        return Optimum("not_convex", "the loss is nearly flat over all rates", (rates[0] / 4, rates[-1] * 4))
    where = np.log2(settings[near]).mean(axis=0)
    rounding = [_half_step(np.log2(settings), j, where[j]) for j in range(settings.shape[1])]
    return Optimum(
        "bracketed",
        None,
        log2_lr=float(where[0]),
        loss=float(means.min()),
        rates=tuple(np.unique(settings[near, 0]).tolist()),
        seeds=len(np.unique(one.seed)),
        runs=int(near.sum()),
        rounding=rounding[0],
        se=rounding[0] / math.sqrt(3),
        also=dict(zip(options.over[1:], where[1:].tolist(), strict=True)),
        also_se={n: half / math.sqrt(3) for n, half in zip(options.over[1:], rounding[1:], strict=True)},
    )


def _half_step(settings: np.ndarray, j: int, at: float) -> float:
    """Half the step, in octaves, of the settings (n, p) along quantity j about its value `at`.

    Of a grid, it is the mean of the steps to the values on both sides. Of settings drawn at random, most
    values differ; it is then the step of a grid of as many settings over the same range.
    """
    count, p = settings.shape
    values = np.unique(settings[:, j])
    if p > 1 and 2 * len(values) > count:
        return float(np.ptp(values)) / (count ** (1 / p) - 1) / 2
    near = int(np.argmin(np.abs(values - at)))
    beside = values[max(near - 1, 0) : near + 2]
    return float(np.ptp(beside)) / max(len(beside) - 1, 1) / 2


ESTIMATORS: dict[MethodName, Method] = {
    "hierarchical": hierarchical_optima,
    "shared": shared_optima,
    "two-stage": two_stage_optima,
    "pool": pool_optima,
    "argmin": argmin_optima,
}
