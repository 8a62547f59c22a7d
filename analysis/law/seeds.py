"""What each seed's runs say by themselves: repetitions of a sweep, whose spread is an interval of its own.

The interval of a law asks how well each optimum is known, and of a few coarse slices that is hardly known
at all. What bends the estimate of one optimum, such as a skewed basin on a coarse grid of rates, bends those
of all slices alike and leaves exponents alone; what is left shows between seeds that are fitted apart.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hyperp.analysis.law.identify import assess
from hyperp.analysis.law.regression import Sample, regress
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.law.schema import BySeed
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.slices import Slice


def of_seed(one: Slice, seed: int) -> Slice:
    """The runs of a slice with that seed."""
    mine = one.seed == seed
    tuned = {name: values[mine] for name, values in one.tuned.items()}
    return replace(one, lr=one.lr[mine], seed=one.seed[mine], loss=one.loss[mine], tuned=tuned)


def by_seed(request: FitRequest, slices: Sequence[Slice]) -> dict[str, BySeed]:
    """The exponents of each seed alone over the slices of a law; empty for fewer than two such seeds.

    A seed counts if all slices have an optimum with its runs only, by the law's own method. `low` and `high`
    are Student's t interval of the mean over seeds.
    """
    if request.given:
        return {}
    seeds = sorted(set().union(*(one.seed.tolist() for one in slices)))
    betas = {seed: beta for seed in seeds if (beta := _alone(request, slices, seed)) is not None}
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


def _alone(request: FitRequest, slices: Sequence[Slice], seed: int) -> np.ndarray | None:
    """The coefficients of one seed's law, None if some slice of it has no optimum."""
    mine = [of_seed(one, seed) for one in slices]
    if not all(len(one.lr) for one in mine):
        return None
    found = estimate_optima(request.method, mine, request.options)
    group = assess(list(range(len(mine))), mine, found.optima, request.by)
    if group.problem is not None or len(group.usable) < len(mine):
        return None
    sample = Sample(mine, found.optima, request.by, request.fix, found.by_runs, request.space)
    return regress(sample).beta
