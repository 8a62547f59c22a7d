"""The method `shared`: one basin shape for all slices of a context, then each slice's own optimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.basin.fit import BasinFit, fit_basin
from hyperp.analysis.optima.basin.shape import (
    identifiable_columns,
    monomials,
    run_weights,
    shape_gradient,
    subtract_weighted_means,
)
from hyperp.analysis.optima.estimation import BasinEstimate, MethodOptions, MethodResult, mean_loss_by_setting
from hyperp.analysis.optima.optimum import Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import CENSORED

LN2 = math.log(2.0)
INFORMED = 0.25  # of the most that a seed of the slice says about its optimum; one that says less is left out


def shared_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """Optima of the slices of each context from one common basin; see `basin`."""
    optima: list[Optimum] = [too_few_rates_optimum(one) for one in slices]
    basins: list[BasinEstimate | None] = [None] * len(slices)
    notes: list[str] = []
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(slices):
        if len(one.lr):
            groups.setdefault(tuple(one.context.values()), []).append(index)
    for members in groups.values():
        part = [slices[i] for i in members]
        try:
            names, Z = _identifiable_covariates(part, options)
            fit = _fit_context(part, options, Z)
        except Refusal as refusal:
            for i in members:
                optima[i] = _optimum_without_basin(slices[i], refusal.reason, options)
            continue
        shape = BasinEstimate(
            fit.shape.powers.tolist(), fit.shape.coef.tolist(), _curvature_exponents(fit, names, Z)
        )
        seeds = [_seed_optima(slices[i], fit, k) for k, i in enumerate(members)]
        scatter, seed_df = _pooled_seed_variance(seeds)
        for k, i in enumerate(members):
            floor = scatter / seeds[k].number
            optima[i] = _slice_optimum(slices[i], fit, k, floor, seed_df, options)
            basins[i] = shape
        notes += _curvature_notes(fit, names)
        if not fit.converged:
            notes.append("the shared basin had not settled when its iterations ended")
    return MethodResult(optima, basins, notes=notes)


def _fit_context(slices: Sequence[Slice], options: MethodOptions, Z: np.ndarray | None) -> BasinFit:
    logs, losses, counts, labels = [], [], [], []
    for index, one in enumerate(slices):
        settings, means, seeds = mean_loss_by_setting(one, options)
        logs.append(np.log(settings))
        losses.append(means)
        counts.append(seeds)
        labels.append(np.full(len(means), index))
    U, loss, count, label = (np.concatenate(parts) for parts in (logs, losses, counts, labels))
    return fit_basin(U, loss, label, count, Z)


def _identifiable_covariates(
    slices: Sequence[Slice], options: MethodOptions
) -> tuple[list[str], np.ndarray | None]:
    """Names and logs of as many covariates, those of the law first, as the slices tell apart."""
    names = list(dict.fromkeys((*options.by, *slices[0].covariates)))
    Z = np.log([[float(one.covariates[name]) for name in names] for one in slices])
    columns = identifiable_columns(Z)
    return [names[j] for j in columns], Z[:, columns] if columns else None


def _curvature_notes(fit: BasinFit, names: Sequence[str]) -> list[str]:
    law = fit.curvature
    if law is None:
        return []
    return [
        f"the basin's curvature changes as {names[j]}^{law.exponent[j]:.2f} (SE {law.se[j]:.2f}, "
        f"p = {law.p[j]:.2g}), and costs with it"
        for j in range(len(names))
        if law.used[j]
    ]


def _curvature_exponents(
    fit: BasinFit, names: Sequence[str], Z: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """Exponent of the curvature in each covariate that it follows, and the size where the shape holds."""
    law = fit.curvature
    if law is None or Z is None:
        return {}
    middle = np.exp(Z.mean(axis=0))
    return {names[j]: (float(law.exponent[j]), float(middle[j])) for j in range(len(names)) if law.used[j]}


@dataclass(frozen=True)
class _SeedOptima:
    """Optima of the seeds of one slice (s, p), natural logs, and how many seeds' worth the slice averages."""

    optima: np.ndarray
    number: float


def _seed_optima(one: Slice, fit: BasinFit, k: int) -> _SeedOptima:
    """Each seed's own optimum with the shape held, one Newton step from the slice's.

    A seed that ran far fewer settings near the bottom than another would add its noise, so it says none.
    """
    p = fit.optimum.shape[1]
    if fit.states[k] != "bracketed":
        return _SeedOptima(np.empty((0, p)), 1.0)
    u = np.log(np.column_stack([one.lr, *one.tuned.values()]))
    v, coef = u - fit.optimum[k], fit.shape.coef * fit.curves.amplitude[k]
    excess = one.loss / fit.floor[k] - 1
    model = monomials(v, fit.shape.powers) @ coef
    G = -shape_gradient(v, fit.shape.powers, coef)
    w = run_weights(np.maximum(excess, model), np.ones(len(v)), fit.scale)
    told, optima = [], []
    for seed in np.unique(one.seed):
        own = one.seed == seed
        G_c, r_c = subtract_weighted_means(G[own], (excess - model)[own], w[own])
        normal = G_c.T @ (w[own][:, None] * G_c)
        told.append(float(np.linalg.eigvalsh(normal)[0]))
        optima.append(np.linalg.pinv(normal) @ G_c.T @ (w[own] * r_c))
    information = np.maximum(told, 0.0)
    if not information.any():
        return _SeedOptima(np.empty((0, p)), 1.0)
    number = float(information.sum() ** 2 / (information**2).sum())
    return _SeedOptima(np.array(optima)[information > INFORMED * information.max()], number)


def _pooled_seed_variance(seeds: Sequence[_SeedOptima]) -> tuple[np.ndarray, int]:
    """Variance (p,) of one seed's optimum within its slice, and its degrees of freedom."""
    df = sum(max(len(s.optima) - 1, 0) for s in seeds)
    squares = [((s.optima - s.optima.mean(axis=0)) ** 2).sum(axis=0) for s in seeds if len(s.optima) > 1]
    return (np.sum(squares, axis=0) / df if df else np.zeros(seeds[0].optima.shape[1])), df


def _slice_optimum(
    one: Slice, fit: BasinFit, k: int, floor: np.ndarray, seed_df: int, options: MethodOptions
) -> Optimum:
    """The optimum of slice k, with a variance of at least `floor` (p,), that of the mean of its seeds."""
    state = fit.states[k]
    if state != "bracketed":
        return Optimum(state, fit.reasons[k], _next_rates(one, fit, k, options))
    df = seed_df if floor[0] > fit.se[k, 0] ** 2 else max(int(fit.df), 1)
    where, errors = fit.optimum[k] / LN2, np.sqrt(np.maximum(fit.se[k] ** 2, floor)) / LN2
    half = t_quantile(df, options.level) * float(errors[0])
    real = fit.curves.count[k] > 0
    near = real & (fit.weight[k] >= 0.5 * fit.weight[k][real].max())
    loss = float(fit.floor[k])
    return Optimum(
        "bracketed",
        None,
        log2_lr=float(where[0]),
        loss=loss,
        curvature=loss * float(fit.shape.quadratic[0, 0] * fit.curves.amplitude[k]) * LN2**2,
        rates=tuple(np.unique(one.lr[_near_any(one.lr, np.exp(fit.curves.u[k][near, 0]))]).tolist()),
        seeds=len(np.unique(one.seed)),
        runs=int(near.sum()),
        se=float(errors[0]),
        df=df,
        low=2.0 ** (float(where[0]) - half),
        high=2.0 ** (float(where[0]) + half),
        also={n: float(v) for n, v in zip(options.over[1:], where[1:], strict=True)},
        also_se={n: float(v) for n, v in zip(options.over[1:], errors[1:], strict=True)},
    )


def _optimum_without_basin(one: Slice, reason: str, options: MethodOptions) -> Optimum:
    """What a slice says where no slice of its context has a bottom to share."""
    rates = np.unique(one.lr)
    if len(rates) < 3:
        return too_few_rates_optimum(one)
    settings, means, _ = mean_loss_by_setting(one, options)
    best = settings[np.argmin(means), 0]
    if best in (rates[0], rates[-1]):
        return edge_optimum(one, rates, low=bool(best == rates[0]))
    return Optimum("not_convex", reason, (float(best) / 2**0.5, float(best) * 2**0.5))


def _near_any(rates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.abs(np.log(rates)[:, None] - np.log(chosen)[None]).min(axis=1) < 1e-9


def _next_rates(one: Slice, fit: BasinFit, k: int, options: MethodOptions) -> tuple[float, ...]:
    if fit.states[k] == "too_few_rates":
        return too_few_rates_optimum(one).next_rates
    settings, means, _ = mean_loss_by_setting(one, options)
    rates, best = np.unique(settings[:, 0]), settings[np.argmin(means), 0]
    if fit.states[k] in CENSORED:
        return edge_optimum(one, rates, low=fit.states[k] == "edge_low").next_rates
    at = int(np.searchsorted(rates, best))
    near = rates[max(at - 1, 0) : at + 2]
    return tuple(np.sqrt(near[1:] * near[:-1]).tolist())
