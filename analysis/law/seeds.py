"""The exponents fitted to the runs of each seed alone, whose spread over seeds gives an interval of its own.

The interval of a law depends on how well each optimum is known, which a few coarse slices hardly tell. An
error that all slices share, such as that of a skewed basin on a coarse grid of rates, leaves exponents alone.
The noise of seeds shows as the spread between seeds that are fitted separately. What moves the optima of all
seeds of a slice alike, the scatter of slices about the law, does not: this interval is no replacement for the
law's own, but says which part of it more seeds would take away.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hyperp.analysis.law.hierarchy.law import fit_of
from hyperp.analysis.law.identify import assess_stratum
from hyperp.analysis.law.records import BySeed
from hyperp.analysis.law.regression import Sample, regress
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.likelihood.optima import ContextLikelihood, tables_of_seed
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.optima.optimum import MIN_RATES
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Slice


def _runs_of_seed(one: Slice, seed: int) -> Slice:
    """The runs of a slice with that seed."""
    mine = one.seed == seed
    tuned = {name: values[mine] for name, values in one.tuned.items()}
    return replace(one, lr=one.lr[mine], seed=one.seed[mine], loss=one.loss[mine], tuned=tuned)


def exponents_by_seed(
    request: FitRequest,
    slices: Sequence[Slice],
    found: MethodResult,
    usable: Sequence[int],
    scatter: float,
) -> dict[str, BySeed]:
    """The exponents of each seed alone, by covariate, over the slices of a law; empty below two seeds.

    A seed counts if it ran at least three rates in every slice; for a method without likelihoods, if every
    slice has an optimum with its runs alone. The hierarchical model keeps its most probable basin and its
    `scatter`, natural log, so that the seeds differ in nothing but their runs. `low` and `high` are Student's
    t interval of the mean over seeds.
    """
    if request.given:
        return {}
    used = [slices[i] for i in usable]
    seeds = sorted(set().union(*(one.seed.tolist() for one in used)))
    if len(seeds) < 2:
        return {}
    context = next((c for c in found.likelihoods if usable[0] in c.members), None)
    betas = {}
    for seed in seeds:
        if context is not None and request.hierarchical:
            beta = _hierarchical_coefficients(request, context, usable, seed, scatter)
        else:
            beta = _coefficients_of_seed(request, used, seed)
        if beta is not None:
            betas[seed] = beta
    if len(betas) < 2:
        return {}
    rows = np.array(list(betas.values()))
    mean, spread = rows.mean(axis=0), rows.std(axis=0, ddof=1)
    half = t_quantile(len(rows) - 1, request.level) * spread / math.sqrt(len(rows))
    return {
        name: BySeed(
            values={str(seed): float(beta[j]) for seed, beta in betas.items()},
            of=len(seeds),
            mean=float(mean[j]),
            low=float(mean[j] - half[j]),
            high=float(mean[j] + half[j]),
        )
        for j, name in enumerate(request.by, start=1)
    }


def _hierarchical_coefficients(
    request: FitRequest, context: ContextLikelihood, usable: Sequence[int], seed: int, scatter: float
) -> np.ndarray | None:
    """The coefficients of one seed with the basin held; None if it ran fewer than three rates somewhere."""
    rows = [context.row_of(i) for i in usable]
    mine = [_runs_of_seed(context.slices[row], seed) for row in rows]
    if any(len(np.unique(one.lr)) < MIN_RATES for one in mine):
        return None
    fit = fit_of(tables_of_seed(context, rows, mine), mine, request.by, request, request.fix, scatter)
    return fit.posterior.moments[0][: 1 + len(request.by)]


def _coefficients_of_seed(request: FitRequest, slices: Sequence[Slice], seed: int) -> np.ndarray | None:
    """The coefficients of the law of one seed; None if some slice has no optimum with its runs."""
    mine = [_runs_of_seed(one, seed) for one in slices]
    if not all(len(one.lr) for one in mine):
        return None
    found = estimate_optima(request.method, mine, request.options)
    whole = list(range(len(mine)))
    group = assess_stratum(whole, mine, found.optima, request.by)
    if group.problem is not None or len(group.usable) < len(mine):
        return None
    return regress(Sample.of(mine, found, group.usable, request)).beta
