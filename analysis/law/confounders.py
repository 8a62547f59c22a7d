"""Columns that move with a covariate of a law, so that its exponent may be theirs."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hyperp.analysis.table.expression import columns_in
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import NOT_COVARIATES, VARYING_RATIO
from hyperp.run_table import DERIVED, RESULTS

ALIASED = 0.95  # |correlation of logs| over the slices above which two columns are said to move together
SHOWN = 4  # columns that a warning names
IDENTITY = 0.01  # relative error of an identity such as steps * batch = tokens, which rounding leaves
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward and backward pass of a dense model (arXiv 2001.08361)


def confounder_warnings(
    slices: Sequence[Slice], frame: pd.DataFrame, by: Sequence[str], mapping: Mapping[str, str] | None = None
) -> list[str]:
    """A line for each covariate with which other columns move, and for two covariates that move together.

    Only facts decide which columns could be behind an exponent: numbers above 0 that every run of a slice
    shares although its runs differ in rate, which results do not, that vary by VARYING_RATIO, and that are
    not the covariate itself in another unit, such as steps where the table has the batch. hyperp's own
    results and what it derives from sizes are left out. Of optima without runs nothing is said: there,
    settings and results look alike.

    Args:
        slices: the slices that carry the law.
        frame: the valid rows that they were cut from.
        by: the covariates of the law.
        mapping: what columns were computed from; these move with them by definition.
    """
    if len(slices) < 3 or not any(len(np.unique(one.lr)) > 1 for one in slices):
        return []
    logs = {name: np.log([one.covariates[name] for one in slices]) for name in by}
    sources = {name: columns_in((mapping or {}).get(name, "")) for name in by}
    found = []
    for a, b in itertools.combinations(by, 2):
        if abs(r := _correlation(logs[a], logs[b])) > ALIASED:
            found.append(
                f"{a} and {b} move together over the slices (correlation of their logs {r:+.3f}), so that "
                "their exponents are nearly aliased: only what they do together is known well"
            )
    shared = _shared_by_runs(slices, frame)
    others = {n: v for n, v in shared.items() if n not in slices[0].covariates and n not in RESULTS}
    for name, own in logs.items():
        moving = {
            other: r
            for other, values in others.items()
            if name not in DERIVED.get(other, ())
            and other not in (*sources[name], (mapping or {}).get(name))
            and abs(r := _correlation(values, own)) > ALIASED
            and not _same_in_other_units(other, name, shared)
        }
        if moving:
            found.append(_warning(name, moving))
    return found


def _warning(name: str, moving: dict[str, float]) -> str:
    first = sorted(moving, key=lambda other: -abs(moving[other]))
    shown = " and ".join(f"{other} ({moving[other]:+.3f})" for other in first[:SHOWN])
    more = f" and {len(first) - SHOWN} more columns" if len(first) > SHOWN else ""
    return (
        f"{shown}{more} {'moves' if len(first) == 1 else 'move'} with {name} over the slices (correlation of "
        f"logs), so that the exponent of {name} is that of {'both' if len(first) == 1 else 'all'} together"
    )


def _shared_by_runs(slices: Sequence[Slice], frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Natural logs (K,) of each column with one number above 0 in all finished runs of each of K slices."""
    first = slices[0]
    keys = [*first.context, *first.covariates]
    numbers = frame.select_dtypes("number").columns.difference([*keys, *NOT_COVARIATES, *first.tuned])
    cells = pd.DataFrame([{**one.context, **one.covariates} for one in slices])
    done = frame.loc[frame["status"] == "finished", [*keys, *numbers]]
    groups = done.merge(cells.assign(slice_number=range(len(cells))), on=keys).groupby("slice_number")
    low, high = groups[list(numbers)].min(), groups[list(numbers)].max()
    known = groups[list(numbers)].count().eq(groups.size(), axis=0).all()
    same = known & (low == high).all() & ((low > 0) & (low < np.inf)).all()
    sizes = {n: [one.covariates[n] for one in slices] for n in first.covariates}
    found = {n: np.log(values) for n, values in sizes.items() if min(values) > 0}
    return found | {str(n): np.log(low[n].to_numpy(dtype=float)) for n in numbers[same[numbers]]}


def _same_in_other_units(other: str, name: str, shared: dict[str, np.ndarray]) -> bool:
    """Whether further columns x, y make `other` the covariate itself, or something computed from it.

    That is other = name, other * x = name or other * x * y = name, as with steps, batch and sequence length
    for tokens, and other = name * x or other = 6 * name * x, as with FLOPs for tokens and parameters.
    """
    gap = shared[name] - shared[other]
    rest = [values for n, values in shared.items() if n not in (other, name)]
    products = [np.zeros_like(gap), *rest, *(x + y for x, y in itertools.combinations(rest, 2))]
    computed = [-x - k for x in rest for k in (0.0, np.log(FLOPS_PER_PARAMETER_AND_TOKEN))]
    return any(np.abs(gap - one).max() < IDENTITY for one in (*products, *computed))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them hardly varies."""
    if min(np.ptp(a), np.ptp(b)) < np.log(VARYING_RATIO):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
