"""The method `shared`: one basin shape for all slices of a context, then each slice's own optimum."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from hyperp.analysis.basin import Basin as Fit
from hyperp.analysis.basin import fit_basin
from hyperp.analysis.errors import Refusal
from hyperp.analysis.methods import Basin, Estimation, Options, setting_means
from hyperp.analysis.optimum import Optimum, edge, too_few
from hyperp.analysis.slices import Slice
from hyperp.analysis.vocabulary import CENSORED

LN2 = math.log(2.0)


def shared(slices: Sequence[Slice], options: Options) -> Estimation:
    """Optima of the slices of each context from one common basin; see `basin`."""
    optima: list[Optimum] = [too_few(one) for one in slices]
    basins: list[Basin | None] = [None] * len(slices)
    notes: list[str] = []
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        if len(one.lr):
            groups.setdefault(tuple(one.context.values()), []).append(index)
    for members in groups.values():
        part = [slices[i] for i in members]
        try:
            fit = _fit(part, options)
        except Refusal as refusal:
            for i in members:
                optima[i] = _without_basin(slices[i], refusal.reason, options)
            continue
        shape = Basin(fit.shape.powers.tolist(), fit.shape.coef.tolist())
        df = max(_degrees(fit), 1)
        for k, i in enumerate(members):
            optima[i] = _optimum(slices[i], fit, k, df, options)
            basins[i] = shape
        if not fit.converged:
            notes.append("the shared basin had not settled when its iterations ended")
    return Estimation(optima, basins, notes=notes)


def _fit(slices: Sequence[Slice], options: Options) -> Fit:
    logs, losses, counts, labels = [], [], [], []
    for index, one in enumerate(slices):
        settings, means, seeds = setting_means(one, options)
        logs.append(np.log(settings))
        losses.append(means)
        counts.append(seeds)
        labels.append(np.full(len(means), index))
    U, loss, count, label = (np.concatenate(parts) for parts in (logs, losses, counts, labels))
    return fit_basin(U, loss, label, count, _covariates(slices, options))


def _covariates(slices: Sequence[Slice], options: Options) -> np.ndarray | None:
    """Logs of as many covariates, those of the law first, as the slices tell apart; None for none."""
    order = dict.fromkeys((*options.by, *slices[0].covariates))
    columns: list[np.ndarray] = []
    for name in order:
        log = np.log([float(one.covariates[name]) for one in slices])
        tried = np.column_stack([np.ones(len(slices)), *columns, log - log.mean()])
        wide = np.linalg.svd(tried / np.maximum(np.abs(tried).max(axis=0), 1e-12), compute_uv=False)
        if len(slices) > tried.shape[1] and wide[-1] > 1e-3:
            columns.append(log)
    return np.column_stack(columns) if columns else None


def _degrees(fit: Fit) -> int:
    """Runs of the slices that have a location, less their floors and locations and the shape."""
    usable = np.isfinite(fit.optimum).all(axis=1)
    p = fit.optimum.shape[1]
    return int((fit.curves.count[usable] > 0).sum()) - int(usable.sum()) * (1 + p) - len(fit.shape.coef)


def _optimum(one: Slice, fit: Fit, k: int, df: int, options: Options) -> Optimum:
    state = fit.states[k]
    if state != "bracketed":
        return Optimum(state, fit.reasons[k], _next_rates(one, fit, k, options))
    where, errors = fit.optimum[k] / LN2, fit.se[k] / LN2
    half = float(stdtrit(df, 0.5 + options.level / 2)) * float(errors[0])
    real = fit.curves.count[k] > 0
    near = real & (fit.weight[k] >= 0.5 * fit.weight[k][real].max())
    floor = float(fit.floor[k])
    return Optimum(
        "bracketed",
        None,
        log2_lr=float(where[0]),
        loss=floor,
        curvature=floor * float(fit.shape.quadratic[0, 0]) * LN2**2,
        rates=tuple(np.unique(one.lr[_close(one.lr, np.exp(fit.curves.u[k][near, 0]))]).tolist()),
        seeds=len(np.unique(one.seed)),
        runs=int(near.sum()),
        se=float(errors[0]),
        df=df,
        low=2.0 ** (float(where[0]) - half),
        high=2.0 ** (float(where[0]) + half),
        also={n: float(v) for n, v in zip(options.over[1:], where[1:], strict=True)},
        also_se={n: float(v) for n, v in zip(options.over[1:], errors[1:], strict=True)},
    )


def _without_basin(one: Slice, reason: str, options: Options) -> Optimum:
    """What a slice says where no slice of its context has a bottom to share."""
    rates = np.unique(one.lr)
    if len(rates) < 3:
        return too_few(one)
    settings, means, _ = setting_means(one, options)
    best = settings[np.argmin(means), 0]
    if best in (rates[0], rates[-1]):
        return edge(one, rates, low=bool(best == rates[0]))
    return Optimum("not_convex", reason, (float(best) / 2**0.5, float(best) * 2**0.5))


def _close(rates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.abs(np.log(rates)[:, None] - np.log(chosen)[None]).min(axis=1) < 1e-9


def _next_rates(one: Slice, fit: Fit, k: int, options: Options) -> tuple[float, ...]:
    if fit.states[k] == "too_few_rates":
        return too_few(one).next_rates
    settings, means, _ = setting_means(one, options)
    rates, best = np.unique(settings[:, 0]), settings[np.argmin(means), 0]
    if fit.states[k] in CENSORED:
        return edge(one, rates, low=fit.states[k] == "edge_low").next_rates
    at = int(np.searchsorted(rates, best))
    near = rates[max(at - 1, 0) : at + 2]
    return tuple(np.sqrt(near[1:] * near[:-1]).tolist())
