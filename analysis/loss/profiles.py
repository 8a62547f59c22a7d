"""Profiles at equal compute: runs grouped by their budget, within which parameters and tokens trade off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.loss.allocation import FLOPS_PER_TOKEN
from hyperp.analysis.loss.points import SET, best_of_cells, single_context, usable_rows
from hyperp.run_table import COVARIATES

BUDGET = "budget"
TOLERANCE = 0.01  # budgets that differ by less are one
WIDEST = 5.0  # times the tolerance: a group of budgets that spans more is a chain of different ones


@dataclass(frozen=True)
class Profiles:
    """The rows of all profiles, each at the best rate of its budget and size.

    Attributes:
        frame: columns budget (one value for each profile), parameters, tokens, loss, and seed, lr and context
            columns where the table has them.
        every: the same of all rates that were tried.
        context: the value of each context column.
        grouped: how the budgets were told apart, in words.
        rows: number of rows of the table.
        dropped: number of rows that were not used, by reason.
        edges: number of cells whose best rate is the lowest or highest one tried; their loss is too high.
        ratio: smallest and largest 6 N D over the budget.
    """

    frame: pd.DataFrame
    every: pd.DataFrame
    context: dict[str, str]
    grouped: str
    rows: int
    dropped: dict[str, int]
    edges: int
    ratio: tuple[float, float]

    @property
    def rates(self) -> list[float]:
        """The rates at the largest budget, for suggestions."""
        if "lr" not in self.every.columns:
            return []
        largest = self.every[self.every[BUDGET] == self.every[BUDGET].max()]
        return sorted(set(largest["lr"].dropna().tolist()))


def isoflop_profiles(frame: pd.DataFrame, tolerance: float = TOLERANCE) -> Profiles:
    """Group runs by their budget: the column `budget`, or 6 N D where the table has none.

    Args:
        frame: one row for each run, with `loss` and two of `parameters`, `tokens` and `budget`; optional are
            `status`, `lr` and `seed`.
        tolerance: budgets that differ by less than this fraction are one.

    Raises:
        ValueError: a column is missing or out of range, the table mixes contexts, the budgets form no groups,
            or a run appears twice.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"{argument('tolerance')} must lie between 0 and 1, got {tolerance}")
    there = [name for name in ("parameters", "tokens", BUDGET) if name in frame.columns]
    if len(there) < 2 or "loss" not in frame.columns:
        missing = [n for n in ("loss", "parameters", "tokens") if n not in (*there, *frame.columns)]
        raise ValueError(
            f"{argument('runs')} needs the column loss and two of parameters, tokens and budget, and lacks "
            f"{', '.join(missing)}; name them with {argument('mapping', {missing[0]: 'COLUMN'})}; there are "
            f"{', '.join(map(str, frame.columns))}"
        )
    kept, dropped = usable_rows(frame, tuple(there))
    if kept.empty:
        raise ValueError(
            f"{argument('runs')} holds no finished run with finite loss and {', '.join(there)}: {dropped}"
        )
    context = single_context(kept, None)
    kept = _with_all_three(kept)
    budgets, grouped = _group_budgets(kept[BUDGET].to_numpy(), tolerance, BUDGET in there)
    ratio = FLOPS_PER_TOKEN * kept["parameters"] * kept["tokens"] / kept[BUDGET]
    kept = kept.assign(**{BUDGET: budgets, SET: ""})
    names = (BUDGET, "parameters")
    cell_m, _, edges = best_of_cells(kept.drop(columns=["tokens", "flops"], errors="ignore"), names, None)
    others = int((cell_m < 0).sum())
    best = _with_seeds(kept[cell_m >= 0])
    return Profiles(
        frame=best,
        every=kept,
        context=context,
        grouped=grouped,
        rows=len(frame),
        dropped={**dropped, **({"not at the best rate": others} if others else {})},
        edges=edges,
        ratio=(float(ratio.min()), float(ratio.max())),
    )


def _with_all_three(kept: pd.DataFrame) -> pd.DataFrame:
    """The rows with parameters, tokens and budget, the missing one from C = 6 N D."""
    if BUDGET not in kept.columns:
        return kept.assign(**{BUDGET: FLOPS_PER_TOKEN * kept["parameters"] * kept["tokens"]})
    if "tokens" not in kept.columns:
        return kept.assign(tokens=kept[BUDGET] / FLOPS_PER_TOKEN / kept["parameters"])
    if "parameters" not in kept.columns:
        return kept.assign(parameters=kept[BUDGET] / FLOPS_PER_TOKEN / kept["tokens"])
    return kept


def _group_budgets(budget_n: np.ndarray, tolerance: float, given: bool) -> tuple[np.ndarray, str]:
    """One budget for every group of nearly equal ones, their geometric mean, and how they were grouped."""
    order = np.argsort(budget_n, kind="stable")
    logs = np.log(budget_n[order])
    label = np.empty(len(logs), dtype=int)
    label[order] = np.cumsum(np.diff(logs, prepend=-math.inf) > math.log1p(tolerance)) - 1
    groups = [budget_n[label == one] for one in range(label.max() + 1)]
    spread = max(float(one.max() / one.min() - 1) for one in groups)
    source = "from the column budget" if given else "from 6 N D"
    if spread > WIDEST * tolerance:
        low, high = next((g.min(), g.max()) for g in groups if g.max() / g.min() - 1 == spread)
        raise ValueError(
            f"the budgets {source} form no groups: those between {low:.4g} and {high:.4g} differ by less "
            f"than {100 * tolerance:g}% from one to the next; name a column that has the budget of each run "
            f"with {argument('mapping', {BUDGET: 'COLUMN'})}, or set {argument('tolerance')}"
        )
    centres = np.array([one[0] if np.ptp(one) == 0 else np.exp(np.log(one).mean()) for one in groups])
    together = f", those within {100 * tolerance:g}% taken as one, which span at most {100 * spread:.2g}%"
    number = f"{len(groups)} budget{'' if len(groups) == 1 else 's'} {source}"
    return centres[label], number + (together if spread > 1e-9 else "")


def _with_seeds(best: pd.DataFrame) -> pd.DataFrame:
    """The rows with a seed, numbered where the table has none.

    Raises:
        ValueError: two rows have budget, parameters and seed in common.
    """
    if "seed" not in best.columns:
        return best.assign(seed=best.groupby([BUDGET, "parameters"]).cumcount())
    twice = best.duplicated([BUDGET, "parameters", "seed"])
    if twice.any():
        one = best[twice].iloc[0]
        raise ValueError(
            f"two runs have budget={one[BUDGET]:.6g}, parameters={one['parameters']:.6g} and "
            f"seed={one['seed']:g}; keep one, or tell them apart with {argument('where')}"
        )
    return best


def mixed_columns(frame: pd.DataFrame, known: Sequence[str]) -> list[str]:
    """Columns of text with a few values, in which the rows of one law may differ without being meant to."""
    skipped = (*known, *COVARIATES, "status", SET)
    found = []
    for name in (n for n in frame.columns if n not in skipped):
        if pd.api.types.is_numeric_dtype(frame[name]):
            continue
        values = frame[name].nunique()
        if 1 < values <= max(2, len(frame) // 10):
            found.append(str(name))
    return found
