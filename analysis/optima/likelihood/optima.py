"""The method `hierarchical`: the likelihood of each slice's optimum, with one basin for a whole context.

Nothing is dropped for where its best rate lies: a slice that ends at its best rate has a one-sided
likelihood. What has no likelihood is a slice of fewer than three rates, and one that is no basin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

from hyperp.analysis.optima.estimation import (
    BasinEstimate,
    MethodOptions,
    MethodResult,
    group_by_context,
)
from hyperp.analysis.optima.likelihood.basin import skewed_excess
from hyperp.analysis.optima.likelihood.curves import (
    RateCurves,
    drop_blown_up,
    drop_spikes,
    pack_rate_curves,
)
from hyperp.analysis.optima.likelihood.mode import SCATTER, BasinMode, find_mode
from hyperp.analysis.optima.likelihood.tables import (
    GRID,
    LikelihoodTables,
    interpolate,
    tabulate,
    tabulate_at,
)
from hyperp.analysis.optima.likelihood.valleys import uneven_reasons, valley_reasons
from hyperp.analysis.optima.optimum import MIN_RATES, Optimum, edge_optimum, too_few_rates_optimum
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import LN2, WINDOW, State

# C: points of the design over basins   K: slices   G: grid of the optimum

GROWTH_COLUMNS = 4  # covariates on which the curvature may depend, at most
OWN_RANGE = 0.05  # natural log by which a covariate must vary independently of the others
LOOSE = 3 * LN2  # scatter of the optima where the covariates give no law for them
ALONE = 2 * LN2  # SD of an optimum about the middle of its rates, before its runs are seen
FAR_UP = 0.25  # relative excess loss above which no run counts while those that blew up are sought
FINER = 4  # points of the density of an optimum for each point of its table


@dataclass(frozen=True)
class ContextLikelihood:
    """The likelihood of the slices of one context.

    Attributes:
        slices: the slices, without the runs that blew up.
        members: (K,) their places among the slices that the method was asked about.
        names: covariates on which the curvature depends.
        curves, Z, mode, tables: see `pack_rate_curves`, `find_mode` and `tabulate`.
    """

    slices: list[Slice]
    members: list[int]
    names: list[str]
    curves: RateCurves
    Z: np.ndarray
    mode: BasinMode
    tables: LikelihoodTables

    def row_of(self, member: int) -> int:
        """The row of the slice with this place in the method's input."""
        return int(np.searchsorted(self.members, member))


def hierarchical_optima(slices: Sequence[Slice], options: MethodOptions) -> MethodResult:
    """The likelihoods of the optima, and each optimum by its own; `shared` for two and more tuned."""
    if len(options.over) > 1:
        from hyperp.analysis.optima.shared import shared_optima

        return shared_optima(slices, options)
    optima: list[Optimum] = [too_few_rates_optimum(one) for one in slices]
    basins: list[BasinEstimate | None] = [None] * len(slices)
    likelihoods: list[ContextLikelihood] = []
    notes: list[str] = []
    kept = list(slices)
    for group in group_by_context(slices):
        members = [i for i in group if len(np.unique(slices[i].lr)) >= MIN_RATES]
        if not members:
            continue
        part = [slices[i] for i in members]
        found = _fit_context(part, members, options, optima, notes)
        for i, one in zip(members, part, strict=True):
            kept[i] = one
        if found is None:
            continue
        likelihoods.append(found)
        basin = _basin_estimate(found)
        own = _own_optima(found, options.level)
        for k, index in enumerate(found.members):
            optima[index], basins[index] = own[k], basin
    return MethodResult(optima, basins, notes=notes, likelihoods=likelihoods, slices=kept)


def _fit_context(
    slices: list[Slice],
    members: list[int],
    options: MethodOptions,
    optima: list[Optimum],
    notes: list[str],
) -> ContextLikelihood | None:
    """The likelihood of the slices that are basins; the others get their state in `optima`.

    Runs that are left out are taken from the `slices`, which count them.
    """
    keep = list(range(len(slices)))
    slices[:], spikes = drop_spikes(slices)
    dropped = False
    while keep:
        part = [slices[i] for i in keep]
        names, Z, whole = _covariates(part, options)
        curves = pack_rate_curves(part)
        scatter = SCATTER if whole else LOOSE
        mode = find_mode(curves, Z, scatter, np.inf if dropped else FAR_UP)
        if not dropped:
            dropped = True
            part, count = drop_blown_up(part, mode.optimum, _expected(part, mode, Z), FAR_UP)
            if count:
                notes.append(
                    f"{count} run{'s' * (count > 1)} marked finished blew up (more loss than any basin has "
                    f"there) and count{'s' * (count == 1)} as diverged"
                )
                for i, one in zip(keep, part, strict=True):
                    slices[i] = one
                slices[:], more = drop_spikes(slices)  # which runs that blew up had hidden
                spikes += more
                for i in [i for i in keep if len(np.unique(slices[i].lr)) < MIN_RATES]:
                    optima[members[i]] = too_few_rates_optimum(slices[i])
                    keep.remove(i)
            if count or (curves.y > 1 + FAR_UP).any():
                continue
        reasons = valley_reasons(curves, mode)
        if len(keep) > 1 and all(reasons):
            for i, reason in zip(keep, reasons, strict=True):
                why = f"{reason}; every slice has two valleys, so no basin tells which is the optimum"
                optima[members[i]] = Optimum("not_convex", why, _between_rates(slices[i]))
            return None
        reasons = [a or b for a, b in zip(reasons, uneven_reasons(curves, mode), strict=True)]
        bad = [i for i, reason in zip(keep, reasons, strict=True) if reason]
        if not bad:
            tables = tabulate(curves, Z, mode)
            if not mode.converged:
                notes.append("the fit of the basin did not converge")
            unsound = int(((mode.sound < 0.5) & (curves.count > 0)).sum())
            if unsound:
                losses = "losses" if unsound > 1 else "loss"
                notes.append(f"{unsound} mean {losses} far above the basin weigh next to nothing")
            if spikes:
                notes.append(f"{spikes} run{'s' * (spikes > 1)} far above the other seeds left out")
            return ContextLikelihood(part, [members[i] for i in keep], names, curves, Z, mode, tables)
        for i, reason in zip(keep, reasons, strict=True):
            if reason:
                optima[members[i]] = Optimum("not_convex", reason, _between_rates(slices[i]))
        keep = [i for i in keep if i not in bad]
    return None


def _covariates(slices: Sequence[Slice], options: MethodOptions) -> tuple[list[str], np.ndarray, bool]:
    """Names and centred natural logs (K, q) of covariates that vary, and whether no other varies."""
    names = list(dict.fromkeys((*options.by, *slices[0].covariates)))
    values = np.array([[float(one.covariates[name]) for name in names] for one in slices])
    usable = [j for j in range(len(names)) if (values[:, j] > 0).all()]
    logs = np.log(values[:, usable])
    columns = _independent_columns(logs)[:GROWTH_COLUMNS]
    rest = [j for j in range(len(names)) if j not in [usable[c] for c in columns]]
    whole = not any(np.ptp(values[:, j]) for j in rest)
    Z = logs[:, columns]
    return [names[usable[c]] for c in columns], Z - Z.mean(axis=0), whole


def _independent_columns(logs: np.ndarray) -> list[int]:
    """The columns of logs (K, q) that vary independently of those before, with two slices to spare each.

    Full rank is not enough: a design has it where parameters differ by 0.3% between architectures, and their
    exponent would be the noise divided by that.
    """
    chosen: list[int] = []
    for j in range(logs.shape[1]):
        others = np.column_stack([np.ones(len(logs)), logs[:, chosen]])
        own = logs[:, j] - others @ np.linalg.lstsq(others, logs[:, j], rcond=None)[0]
        if len(logs) >= len(chosen) + 3 and np.ptp(own) > OWN_RANGE:
            chosen.append(j)
    return chosen


def _expected(slices: Sequence[Slice], mode: BasinMode, Z: np.ndarray) -> list[np.ndarray]:
    """Relative excess loss of every run by the fitted basin."""
    height = np.exp(mode.shape[0] + Z @ mode.shape[3:])
    return [
        h * skewed_excess(np.log(one.lr) - m, mode.shape[1], np.exp(mode.shape[2]))
        for one, h, m in zip(slices, height, mode.optimum, strict=True)
    ]


def _basin_estimate(found: ContextLikelihood) -> BasinEstimate:
    """The basin at the mode, with the covariates on which its curvature depends."""
    middle = np.exp(np.mean([[np.log(s.covariates[n]) for n in found.names] for s in found.slices], axis=0))
    shape, se = found.mode.shape, np.sqrt(np.diag(found.mode.cov))
    growth = dict(
        zip(found.names, zip(shape[3:].tolist(), np.atleast_1d(middle).tolist(), strict=True), strict=True)
    )
    return BasinEstimate(
        [[2]],
        [float(math.exp(shape[0]) / 2)],
        growth,
        skew=float(shape[1]),
        tail=float(np.exp(shape[2])),
        errors={
            "curvature": float(se[0]),
            "skew": float(se[1]),
            "tail": float(se[2]),
            "noise": found.mode.log_noise_sd,
        },
        bend_errors=dict(zip(found.names, se[3:].tolist(), strict=True)),
        noise=math.exp(found.mode.log_noise),
    )


def _own_optima(found: ContextLikelihood, level: float) -> list[Optimum]:
    """Each slice's optimum by its own likelihood, averaged over basins by how well these explain all runs."""
    tables, curves, mode = found.tables, found.curves, found.mode
    C, K, _ = tables.loglik.shape
    fine = np.arange((GRID - 1) * FINER + 1) / FINER
    first = (np.arange(C)[:, None] * K + np.arange(K)) * GRID
    m = tables.start[:, None] + tables.step[:, None] * fine
    middle = 0.5 * (curves.low + curves.high)
    prior = -0.5 * ((m - middle[:, None]) / ALONE) ** 2
    coarse = tables.loglik - 0.5 * ((tables.grid - middle[:, None]) / ALONE) ** 2
    log_mass = np.asarray(logsumexp(coarse, axis=2))
    weight = tables.log_weight + log_mass.sum(axis=1)
    weight = np.exp(weight - logsumexp(weight))
    density = np.zeros((K, len(fine)))
    kept = np.flatnonzero(weight > 1e-4)
    for c in kept:
        own = interpolate(tables.loglik, first[c, :, None], fine) + prior
        own = np.exp(own - own.max(axis=1, keepdims=True))
        density += weight[c] * own / own.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(density, axis=1) - 0.5 * density  # a point of the grid stands for its cell
    cumulative /= density.sum(axis=1, keepdims=True)
    mean = (density * m).sum(axis=1) / density.sum(axis=1)
    sd = np.sqrt((density * (m - mean[:, None]) ** 2).sum(axis=1) / density.sum(axis=1))
    optima = []
    height = np.exp(mode.shape[0] + found.Z @ mode.shape[3:])
    for k, one in enumerate(found.slices):
        tail = (1 - level) / 2
        low, centre, high = np.interp([tail, 0.5, 1 - tail], cumulative[k], m[k])
        state, reason, add = _state(curves, mode, k, one)
        optima.append(
            Optimum(
                state,
                reason,
                add,
                log2_lr=float(centre / LN2),
                loss=float(curves.lowest[k] * mode.floor[k]),
                curvature=float(curves.lowest[k] * mode.floor[k] * height[k] / 2 * LN2**2),
                rates=_rates_near(one, float(centre)),
                seeds=len(np.unique(one.seed)),
                runs=len(one.lr),
                se=float(sd[k] / LN2),
                df=max(round(0.5 * (mode.log_noise_sd**-2)), 1),
                low=None if state == "edge_low" else float(np.exp(low)),
                high=None if state == "edge_high" else float(np.exp(high)),
            )
        )
    return optima


def _state(
    curves: RateCurves, mode: BasinMode, k: int, one: Slice
) -> tuple[State, str | None, tuple[float, ...]]:
    """Whether the rates of slice k lie on both sides of its optimum, and if not why, and what to run."""
    real = curves.count[k] > 0
    rates = np.exp(curves.u[k][real])
    best = int(np.argmin(curves.y[k][real]))
    low, high = curves.low[k], curves.high[k]
    if best == 0 or mode.optimum[k] < low:
        edge = edge_optimum(one, rates, low=True)
    elif best == len(rates) - 1 or mode.optimum[k] > high:
        edge = edge_optimum(one, rates, low=False)
    else:
        return "bracketed", None, ()
    reason = edge.reason
    if best not in (0, len(rates) - 1):
        side, end = ("below the lowest", low) if edge.state == "edge_low" else ("above the highest", high)
        reason = f"the optimum lies {side} rate, {math.exp(end):.4g}"
    return edge.state, reason, edge.next_rates


def _rates_near(one: Slice, centre: float) -> tuple[float, ...]:
    """The rates within WINDOW octaves of an optimum in natural log; at least the three nearest."""
    rates = np.unique(one.lr)
    away = np.abs(np.log(rates) - centre)
    near = away <= max(WINDOW * LN2, np.sort(away)[MIN_RATES - 1])
    return tuple(rates[near].tolist())


def _between_rates(one: Slice) -> tuple[float, ...]:
    """Rates between the best one and its neighbours."""
    rates = np.unique(one.lr)
    at = int(np.searchsorted(rates, one.lr[np.argmin(one.loss)]))
    near = rates[max(at - 1, 0) : at + 2]
    return tuple(np.sqrt(near[1:] * near[:-1]).tolist())


def tables_of_seed(
    found: ContextLikelihood, rows: Sequence[int], slices: Sequence[Slice]
) -> LikelihoodTables:
    """The tables of some slices with other runs, such as those of one seed, at the most probable basin.

    Args:
        found: the likelihood of the context.
        rows: the rows of the slices in `found`.
        slices: the same slices with the runs to use.
    """
    curves, mode = pack_rate_curves(slices), found.mode
    Z = found.Z[list(rows)]
    height = np.exp(mode.shape[0] + Z @ mode.shape[3:])
    model = height[:, None] * skewed_excess(
        curves.u - mode.optimum[list(rows), None], mode.shape[1], np.exp(mode.shape[2])
    )
    mine = replace(
        mode,
        model=model,
        sound=(curves.count > 0) * 1.0,
        optimum=mode.optimum[list(rows)],
        optimum_sd=2 * mode.optimum_sd[list(rows)],
    )
    return tabulate_at(curves, Z, mine, mode.shape[None], np.array([mode.log_noise]), np.zeros(1))
