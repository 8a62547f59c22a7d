"""Columns that move with a covariate of a law, so that its exponent may be theirs."""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import NOT_COVARIATES, VARYING_RATIO
from hyperp.expression import columns_in
from hyperp.run_table import DERIVED, RESULTS

ALIASED = 0.95  # |correlation of logs| over the slices above which two columns are said to move together
SHOWN = 4  # columns that a warning names
SAME = 0.01  # relative error of an identity such as steps * batch = tokens, which rounding leaves
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # forward and backward pass of a dense model (arXiv 2001.08361)
# Ways to count how long a run trained. Such a column that is proportional to the covariate is its unit.
COUNTS = re.compile(
    r"(n|num|max|total|global|train|trainer|training|optimizer)*"
    r"(step|iter|iteration|update|epoch|batch|batches|sample|sequence|example|token)s?(seen|consumed)?"
)
SLICE = "number of the slice"

Columns = dict[str, np.ndarray]  # natural logs, (K,)


def confounder_warnings(
    slices: Sequence[Slice], frame: pd.DataFrame, by: Sequence[str], mapping: Mapping[str, str] | None = None
) -> list[str]:
    """A line for each covariate with which other columns move, and for two covariates that move together.

    What could be behind an exponent is a column of numbers above 0 that every run of a slice shares although
    its runs differ in rate, which results do not, and that varies by VARYING_RATIO. Left out are the
    covariate in another unit (see `_is_unit`) and what hyperp derives from sizes. Of optima without runs
    nothing is said: there, settings and results look alike.

    Args:
        slices: the slices that carry the law.
        frame: the valid rows that they were cut from.
        by: the covariates of the law.
        mapping: what columns were computed from; these move with them by definition.
    """
    return moving_together(slices, shared_columns(slices, frame), by, mapping or {})


def moving_together(
    slices: Sequence[Slice], columns: Columns, by: Sequence[str], mapping: Mapping[str, str]
) -> list[str]:
    """The lines of `confounder_warnings`, given the columns that the runs of each of these K slices share."""
    if len(slices) < 3 or not any(len(np.unique(one.lr)) > 1 for one in slices):
        return []
    logs = {name: np.log([one.covariates[name] for one in slices]) for name in by}
    found = []
    for a, b in itertools.combinations(by, 2):
        if abs(r := _correlation(logs[a], logs[b])) > ALIASED:
            found.append(
                f"{a} and {b} move together over the slices (correlation of their logs {r:+.3f}), so that "
                "their exponents are nearly aliased: only what they do together is known well"
            )
    known = {name: values for name, values in columns.items() if np.isfinite(values).all()}
    others = [name for name in known if name not in (*slices[0].covariates, *RESULTS)]
    for name, own in logs.items():
        sources = (*columns_in(mapping.get(name, "")), mapping.get(name))
        moving = {
            other: r
            for other in others
            if other not in sources
            and name not in columns_in(mapping.get(other, ""))
            and abs(r := _correlation(known[other], own)) > ALIASED
            and not _is_unit(other, name, known | logs)
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


def shared_columns(slices: Sequence[Slice], frame: pd.DataFrame) -> Columns:
    """Natural logs (K,) of the columns with one number above 0 in all finished runs of a slice, or else NaN.

    Beside the columns of the frame these are the sizes of the K slices.
    """
    if not slices:
        return {}
    first = slices[0]
    keys = [*first.context, *first.covariates]
    numbers = [
        name
        for name in frame.select_dtypes("number").columns
        if name not in (*keys, *NOT_COVARIATES, *first.tuned)
    ]
    cells = pd.DataFrame([{**one.context, **one.covariates, SLICE: k} for k, one in enumerate(slices)])
    done = frame.loc[frame["status"] == "finished", [*keys, *numbers]]
    groups = done.merge(cells, on=keys).groupby(SLICE)[numbers]
    low, high, whole = groups.min(), groups.max(), groups.count().eq(groups.size(), axis=0)
    same = low.where((low == high) & whole & (low > 0) & (low < np.inf)).reindex(range(len(slices)))
    sizes = {n: np.array([one.covariates[n] for one in slices], dtype=float) for n in first.covariates}
    with np.errstate(divide="ignore"):
        found = {str(name): np.log(same[name].to_numpy(dtype=float)) for name in numbers}
        return found | {name: np.log(values) for name, values in sizes.items()}


def _is_unit(other: str, name: str, logs: Columns) -> bool:
    """Whether `other` is the covariate itself in another unit, or follows from it by definition.

    By definition: a column that hyperp derives from it, FLOPs, steps times the batch, and six times the
    covariate times another column. A column that is merely proportional is no unit, as parameters are to
    tokens in a sweep at a fixed ratio, unless its name too says that it counts how long a run trained.
    """
    letters = re.sub(r"[^a-z]", "", other.lower())
    if name in DERIVED.get(other, ()) or "flop" in letters or letters.endswith("flos"):
        return True
    gap = logs[name] - logs[other]
    of_model = name in DERIVED["parameters"]
    if COUNTS.fullmatch(letters) and np.ptp(gap) < SAME and not of_model:
        return True
    rest = [values for n, values in logs.items() if n not in (other, name)]
    units = [np.zeros_like(gap), *(-x - np.log(FLOPS_PER_PARAMETER_AND_TOKEN) for x in rest)]
    if "batch_tokens" in logs:
        units.append(logs["batch_tokens"])
    return any(np.abs(gap - unit).max() < SAME for unit in units)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them hardly varies."""
    if min(np.ptp(a), np.ptp(b)) < np.log(VARYING_RATIO):
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
