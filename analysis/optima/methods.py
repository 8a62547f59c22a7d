"""The ways to find the best rate of each slice: a method takes slices and returns an optimum for each."""

from collections.abc import Sequence

import numpy as np

from hyperp.analysis.optima.estimation import (
    BasinEstimate,
    Method,
    MethodOptions,
    MethodResult,
    mean_loss_by_setting,
)
from hyperp.analysis.optima.optimum import Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.optima.two_stage import parabola_optima
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import METHODS, MethodName

POOL = 0.0025  # runs within this relative excess of the slice's lowest loss are pooled (arXiv 2503.04715)


def estimate_optima(name: MethodName, slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """The optima of the slices by the named method; see `vocabulary.METHODS`.

    Raises:
        ValueError: an unknown method, or one that cannot tune what `options.over` names.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {name!r}")
    return ESTIMATORS[name](slices, options)


def two_stage_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """A parabola of its own for every slice, over a window about its vertex."""
    if options.over != ("lr",):
        raise ValueError(
            f"--method two-stage tunes lr alone, got --tuned {','.join(options.over)}; "
            "use --method shared, pool or argmin"
        )
    optima = parabola_optima(slices, options.window, level=options.level)
    groups: dict[tuple, list[Optimum]] = {}
    for one, optimum in zip(slices, optima, strict=True):
        groups.setdefault(tuple(one.context.values()), []).append(optimum)
    common = {context: _common_parabola(members) for context, members in groups.items()}
    return MethodResult(optima, [common[tuple(one.context.values())] for one in slices])


def argmin_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """The rate (and batch) with the lowest mean loss."""
    return MethodResult([_best_setting(one, options, 0.0) for one in slices], [None] * len(slices))


def pool_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """The mean log of all runs within 0.25% of the slice's lowest loss, each run counted once."""
    return MethodResult(
        [_best_setting(one, options, POOL) for one in slices], [None] * len(slices), by_runs=True
    )


def _common_parabola(optima: Sequence[Optimum]) -> BasinEstimate | None:
    bends = [o.curvature / o.loss for o in optima if o.curvature is not None and o.loss]
    return BasinEstimate([[2]], [float(np.median(bends)) / np.log(2) ** 2]) if bends else None


def _best_setting(one: Slice, options: MethodOptions, within: float) -> Optimum:
    if len(np.unique(one.lr)) < 3:
        return too_few_rates_optimum(one)
    settings, means, _ = mean_loss_by_setting(one, options)
    rates = np.unique(settings[:, 0])
    best = settings[np.argmin(means)]
    if best[0] in (rates[0], rates[-1]):
        return edge_optimum(one, rates, low=best[0] == rates[0])
    near = means <= means.min() * (1 + within)
    if rates[0] in settings[near, 0] and rates[-1] in settings[near, 0] and near.sum() > 1:
        return Optimum(
            "not_convex", "the loss is as good as flat over all rates", (rates[0] / 4, rates[-1] * 4)
        )
    where = np.log2(settings[near]).mean(axis=0)
    return Optimum(
        "bracketed",
        None,
        log2_lr=float(where[0]),
        loss=float(means.min()),
        rates=tuple(np.unique(settings[near, 0]).tolist()),
        seeds=len(np.unique(one.seed)),
        runs=int(near.sum()),
        also={name: float(v) for name, v in zip(options.over[1:], where[1:], strict=True)},
    )


def _shared_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    from hyperp.analysis.optima.shared import shared_optima

    return shared_optima(slices, options)


ESTIMATORS: dict[MethodName, Method] = {
    "shared": _shared_optima,
    "two-stage": two_stage_optima,
    "pool": pool_optima,
    "argmin": argmin_optima,
}
DEFAULT_METHOD: MethodName = "shared"
