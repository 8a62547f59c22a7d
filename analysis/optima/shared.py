"""The method `shared`: fit one basin to all slices of a context, then each slice its own optimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.fit import BasinFit, fit_basin
from hyperp.analysis.optima.basin.shape import (
    monomials,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)
from hyperp.analysis.optima.estimation import (
    BasinEstimate,
    MethodOptions,
    MethodResult,
    group_by_context,
    mean_loss_by_setting,
)
from hyperp.analysis.optima.optimum import MIN_RATES, Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import CENSORED, LN2

SPARE_SLICES = 4  # slices beyond the covariates with which the curvature may depend on them
LARGEST_HALF_WIDTH = 500.0  # octaves; a wider interval is as good as unbounded, and 2.0 ** 1024 overflows
LEAST_INFORMATION = 0.25  # of that of the slice's most informative seed; seeds with less are left out


def shared_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Find the optimum of each slice with the basin that all slices of its context share; see `basin.fit`."""
    optima: list[Optimum] = [too_few_rates_optimum(one) for one in slices]
    basins: list[BasinEstimate | None] = [None] * len(slices)
    notes: list[str] = []
    for group in group_by_context(slices):
        members = [i for i in group if len(slices[i].lr)]
        if not members:
            continue
        part = [slices[i] for i in members]
        try:
            fit, names = _fit_context(part, options)
        except Refusal as refusal:
            for i in members:
                optima[i] = _optimum_without_basin(slices[i], refusal.reason)
            continue
        middle = [math.exp(math.fsum(math.log(s.covariates[n]) for s in part) / len(part)) for n in names]
        bend = dict(zip(names, zip(fit.bend.tolist(), middle, strict=True), strict=True))
        shape = BasinEstimate(fit.shape.powers.tolist(), fit.shape.coef.tolist(), bend)
        seeds = [_seed_optima(slices[i], fit, k) for k, i in enumerate(members)]
        scatter, seed_df = _pooled_seed_variance(seeds)
        for k, i in enumerate(members):
            floor = scatter / seeds[k].number
            optima[i] = _slice_optimum(slices[i], fit, k, floor, seed_df, options)
            basins[i] = shape
        if not fit.converged:
            notes.append("the fit of the shared basin did not converge")
    return MethodResult(optima, basins, notes=notes)


def _fit_context(slices: Sequence[Slice], options: MethodOptions) -> tuple[BasinFit, list[str]]:
    """Fit one basin to these slices; with the names of the covariates on which its curvature depends."""
    logs, losses, counts, labels = [], [], [], []
    for index, one in enumerate(slices):
        settings, means, seeds = mean_loss_by_setting(one)
        logs.append(np.log(settings))
        losses.append(means)
        counts.append(seeds)
        labels.append(np.full(len(means), index))
    U, loss, count, label = (np.concatenate(parts) for parts in (logs, losses, counts, labels))
    names = _sizes_of_curvature(slices, options)
    Z = np.log([[float(one.covariates[name]) for name in names] for one in slices])
    basin = fit_basin(U, loss, label, count, Z if names else None, names=("rate", *options.over[1:]))
    return basin, names


def _sizes_of_curvature(slices: Sequence[Slice], options: MethodOptions) -> list[str]:
    """The covariates on which the curvature may depend: all that vary, if there are slices enough to tell.

    None where more than the rate is tuned: exponents made predictions worse for StepLaw's cells left out.
    """
    sizes = {n: {one.covariates[n] for one in slices} for n in slices[0].covariates}
    vary = [n for n, values in sizes.items() if len(values) > 1 and 0 not in values]  # 0 has no logarithm
    return vary if options.over == ("lr",) and len(slices) >= len(vary) + SPARE_SLICES else []


@dataclass(frozen=True)
class _SeedOptima:
    """Optima of the seeds of one slice.

    Attributes:
        optima: (s, p) natural logs.
        number: effective number of seeds that the optimum of the slice averages.
    """

    optima: np.ndarray
    number: float


def _seed_optima(one: Slice, fit: BasinFit, k: int) -> _SeedOptima:
    """Each seed's own optimum with the shape held, one Newton step from that of slice k.

    A seed that ran far fewer settings near the bottom than another would only add noise, so it is left out.
    """
    p = fit.optimum.shape[1]
    if fit.states[k] != "bracketed":
        return _SeedOptima(np.empty((0, p)), 1.0)
    u = np.log(np.column_stack([one.lr, *one.tuned.values()]))
    v, coef = u - fit.optimum[k], fit.shape.coef * fit.amplitude[k]
    excess = one.loss / fit.floor[k] - 1
    model = monomials(v, fit.shape.powers) @ coef
    G = -shape_gradient(v, fit.shape.powers, coef)
    w = run_weights(np.maximum(excess, model), np.ones(len(v)), fit.scale)
    smallest, optima = [], []
    for seed in np.unique(one.seed):
        own = one.seed == seed
        G_c, r_c = subtract_weighted_means(G[own], (excess - model)[own], w[own])
        normal = G_c.T @ (w[own][:, None] * G_c)
        smallest.append(float(np.linalg.eigvalsh(normal)[0]))
        optima.append(np.linalg.pinv(normal) @ G_c.T @ (w[own] * r_c))
    information = np.maximum(smallest, 0.0)
    if not information.any():
        return _SeedOptima(np.empty((0, p)), 1.0)
    number = float(information.sum() ** 2 / (information**2).sum())
    return _SeedOptima(np.array(optima)[information > LEAST_INFORMATION * information.max()], number)


def _pooled_seed_variance(seeds: Sequence[_SeedOptima]) -> tuple[np.ndarray, int]:
    """Variance (p,) of the optimum of one seed within its slice, in squared natural logs, and its df."""
    df = sum(max(len(s.optima) - 1, 0) for s in seeds)
    squares = [((s.optima - s.optima.mean(axis=0)) ** 2).sum(axis=0) for s in seeds if len(s.optima) > 1]
    return (np.sum(squares, axis=0) / df if df else np.zeros(seeds[0].optima.shape[1])), df


def _slice_optimum(
    one: Slice, fit: BasinFit, k: int, floor: np.ndarray, seed_df: int, options: MethodOptions
) -> Optimum:
    """The optimum of slice k; its variance is at least `floor` (p,), that of the mean of its seeds' optima.

    `seed_df` is the degrees of freedom of `floor`.
    """
    state = fit.states[k]
    if state != "bracketed":
        return Optimum(state, fit.reasons[k], _next_rates(one, fit, k))
    where = fit.optimum[k] / LN2
    variance, df = _variance(fit, k, floor, seed_df)
    errors = None if variance is None else np.sqrt(variance) / LN2
    half = math.inf if errors is None else t_quantile(df, options.level) * float(errors[0])
    bounded = half < LARGEST_HALF_WIDTH
    real = fit.curves.count[k] > 0
    near = real & (fit.weight[k] >= 0.5 * fit.weight[k][real].max())
    loss = float(fit.floor[k])
    return Optimum(
        "bracketed",
        None,
        log2_lr=float(where[0]),
        loss=loss,
        curvature=loss * float(fit.shape.quadratic[0, 0] * fit.amplitude[k]) * LN2**2,
        rates=tuple(np.unique(one.lr[_near_any(one.lr, np.exp(fit.curves.u[k][near, 0]))]).tolist()),
        seeds=len(np.unique(one.seed)),
        runs=int(near.sum()),
        se=None if errors is None else float(errors[0]),
        df=df,
        low=2.0 ** (float(where[0]) - half) if bounded else None,
        high=2.0 ** (float(where[0]) + half) if bounded else None,
        also=dict(zip(options.over[1:], where[1:].tolist(), strict=True)),
        also_se={} if errors is None else dict(zip(options.over[1:], errors[1:].tolist(), strict=True)),
    )


def _variance(fit: BasinFit, k: int, floor: np.ndarray, seed_df: int) -> tuple[np.ndarray | None, int]:
    """The variance (p,) of the optimum of slice k, in squared natural logs, and its degrees of freedom.

    Where the residuals leave no degree of freedom, the seeds alone tell the noise; None if they do not.
    """
    own, common = (np.diagonal(c[k]) for c in (fit.own, fit.common))
    if fit.noise is None:
        return (floor * (1 + common / own), seed_df) if floor.all() else (None, 0)
    of_runs = fit.noise**2 * own
    df = seed_df if floor[0] > of_runs[0] else fit.df
    return np.maximum(of_runs, floor) + fit.noise**2 * common, df


def _optimum_without_basin(one: Slice, reason: str) -> Optimum:
    """The optimum of a slice of a context in which no slice has a bottom to share; `reason` says why."""
    rates = np.unique(one.lr)
    if len(rates) < MIN_RATES:
        return too_few_rates_optimum(one)
    settings, means, _ = mean_loss_by_setting(one)
    best = settings[np.argmin(means), 0]
    if best in (rates[0], rates[-1]):
        return edge_optimum(one, rates, low=bool(best == rates[0]))
    return Optimum("not_convex", reason, (float(best) / 2**0.5, float(best) * 2**0.5))


def _near_any(rates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mask of the rates that equal a chosen one to rounding."""
    return np.abs(np.log(rates)[:, None] - np.log(chosen)[None]).min(axis=1) < 1e-9


def _next_rates(one: Slice, fit: BasinFit, k: int) -> tuple[float, ...]:
    """The rates to run next in slice k, which is not bracketed."""
    if fit.states[k] == "too_few_rates":
        return too_few_rates_optimum(one).next_rates
    settings, means, _ = mean_loss_by_setting(one)
    rates, best = np.unique(settings[:, 0]), settings[np.argmin(means), 0]
    if fit.states[k] in CENSORED:
        if fit.curves.low[k, 0] <= fit.optimum[k, 0] <= fit.curves.high[k, 0]:
            return ()  # the edge is one of another quantity
        return edge_optimum(one, rates, low=fit.states[k] == "edge_low").next_rates
    at = int(np.searchsorted(rates, best))
    near = rates[max(at - 1, 0) : at + 2]
    return tuple(np.sqrt(near[1:] * near[:-1]).tolist())
