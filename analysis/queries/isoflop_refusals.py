"""Why profiles at equal compute do not tell the best size, and the runs that would."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.loss.allocation import FLOPS_PER_TOKEN
from hyperp.analysis.loss.profiles import BUDGET, Profiles
from hyperp.analysis.queries.recommend import WIDE_INTERVAL
from hyperp.analysis.vocabulary import DEFAULT_REACH

REACH = (
    DEFAULT_REACH**2
)  # in compute, the product of two sizes that may each go DEFAULT_REACH beyond the runs
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)  # sizes of a suggested profile, times the one expected to be best
NEEDED = 3  # bracketed profiles for a line with a scatter about it
MOST = 6  # profiles that a refusal completes
STATES = {
    "edge_low": "have their lowest loss at the smallest size",
    "edge_high": "have their lowest loss at the largest size",
    "too_few_rates": "have too few sizes",
    "not_convex": "have no bottom among their sizes",
}


def in_sizes(text: str) -> str:
    """A sentence about the best rates of slices as one about the best sizes of profiles."""
    text = re.sub(r"\blr\b", "N*", text)
    text = re.sub(r"\b(learning )?rate(s?)\b", r"size\2", text)
    return re.sub(r"\bslice(s?)\b", r"profile\1", text)


def unbracketed_refusal(profiles: Profiles, slices: Sequence[SliceRecord], why: str) -> Refusal:
    """The refusal where the profiles do not identify N*, with the runs that would.

    Args:
        profiles: the profiles.
        slices: the same with their states.
        why: what the law says, for a reason other than a profile without an optimum.
    """
    lacking = [one for one in slices if one.state != "bracketed"]
    few = [one for one in lacking if one.state == "too_few_rates"]
    if lacking:
        bracketed = len(slices) - len(lacking)
        need = f"{NEEDED} are needed" if bracketed < NEEDED else "and the others are too many to leave out"
        states = {one.state: [o for o in lacking if o.state == one.state] for one in lacking}
        kinds = [f"{len(g)} {STATES.get(state, state)} ({_budgets_text(g)})" for state, g in states.items()]
        why = f"{bracketed} of {len(slices)} have an optimum between their sizes, {need}; {', '.join(kinds)}"
    if 2 * len(few) > len(slices) and "6 N D" in profiles.grouped:
        column = argument("mapping", {BUDGET: "COLUMN"})
        why += f"; if the runs were planned by budget, name the column that has it with {column}"
    if not lacking and len(slices) < NEEDED:
        why = f"{NEEDED} are needed"
    several = [one for one in lacking if len(one.points) > 1]
    return Refusal(
        f"N* is not identified by {profiles.grouped}: {why}; `hyperp-law loss --form chinchilla` fits the "
        "loss surface without profiles",
        _completing_runs(profiles, several) or _further_profiles(profiles, slices),
    )


def _budgets_text(group: Sequence[SliceRecord]) -> str:
    budgets = [f"{one.covariates[BUDGET]:.4g}" for one in group]
    return ", ".join(budgets[:4]) + (", ..." if len(budgets) > 4 else "")


def _completing_runs(profiles: Profiles, lacking: Sequence[SliceRecord]) -> list[dict[str, Any]]:
    """The sizes that would bracket the optimum of the profiles that lack one, those with most sizes."""
    chosen = sorted(lacking, key=lambda one: -len(one.points))[:MOST]
    return [
        run_at(profiles, float(one.covariates[BUDGET]), size)
        for one in sorted(chosen, key=lambda one: one.covariates[BUDGET])
        for size in sorted(one.next_rates)
    ]


def _further_profiles(profiles: Profiles, slices: Sequence[SliceRecord]) -> list[dict[str, Any]]:
    """Whole profiles at further budgets, about a size that grows with the root of compute."""
    known = [one for one in slices if one.optimum is not None]
    budgets = [float(one.covariates[BUDGET]) for one in known or slices]
    largest = max(budgets)
    last = next(one for one in known or slices if one.covariates[BUDGET] == largest)
    sizes = [p.lr for p in last.points]
    middle = last.optimum.lr if last.optimum is not None else math.exp(np.log(sizes).mean())
    times = [4.0**k for k in range(0 if not known else 1, max(NEEDED - len(known), 1) + bool(known))]
    return [
        run_at(profiles, factor * largest, step * middle * math.sqrt(factor))
        for factor in times
        for step in STEPS
    ]


def run_at(profiles: Profiles, budget: float, parameters: float) -> dict[str, Any]:
    """A run of a size at a budget, as a refusal suggests it."""
    sizes = {"parameters": parameters, "tokens": budget / FLOPS_PER_TOKEN / parameters}
    rounded = {name: round(float(f"{size:.4g}")) for name, size in sizes.items()}
    return {**profiles.context, BUDGET: float(f"{budget:.4g}"), **rounded, "lr": profiles.rates}


def require_near(profiles: Profiles, law: Law, budget: float, outside: float) -> None:
    """Refuse a budget more than REACH times outside the fitted ones, with a profile halfway (in logs)."""
    if outside <= REACH:
        return
    low, high = (float(end) for end in law.ranges[BUDGET])
    edge = high if budget > high else low
    middle = math.sqrt(edge * budget)
    best = law.interval_at({BUDGET: middle})[0]
    raise Refusal(
        f"the budget {budget:.4g} lies {outside:.3g} times outside the fitted ones, {low:.4g} to {high:.4g}, "
        f"and the largest factor allowed is {REACH:g}; run a profile on the way there, or give "
        f"{argument('extrapolate', True)}",
        [run_at(profiles, middle, step * best) for step in STEPS],
    )


def require_narrow(profiles: Profiles, law: Law, budget: float) -> None:
    """Refuse a prediction interval that says hardly anything, with a profile at the budget."""
    best, low, high = law.interval_at({BUDGET: budget})
    if high <= WIDE_INTERVAL * low:
        return
    raise Refusal(
        f"the prediction interval of N* spans a factor of {high / low:.2g}: the profiles hardly identify it; "
        f"run one nearer to the budget, or give {argument('extrapolate', True)}",
        [run_at(profiles, budget, step * best) for step in STEPS],
    )
