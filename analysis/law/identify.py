"""Which group of slices identifies the exponents asked for, and if none does, what to run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.regression import design_matrix, why_collinear, why_constant
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.table.slices import Slice, varying_columns
from hyperp.analysis.vocabulary import CENSORED, trains_with_hyperp
from hyperp.run_table import NOT_DONE


@dataclass(frozen=True)
class Stratum:
    """Slices that differ only in the law's covariates, by index.

    Attributes:
        members: all of them.
        usable: those that a law uses: whose optimum is bracketed, and one-sided ones where these count.
        problem: why they do not identify the exponents; None if they do.
        edges: whether the problem is that most optima lie at the end of their rates.
    """

    members: list[int]
    usable: list[int]
    problem: str | None
    edges: bool = False


def assess_stratum(
    members: list[int],
    slices: Sequence[Slice],
    optima: Sequence[Optimum],
    by: Sequence[str],
    one_sided: bool = False,
) -> Stratum:
    """The stratum of these slices, with the reason why it does not identify the exponents of `by`, if any.

    With `one_sided`, slices whose best rate is the last one count too. They bound the law, but cannot place
    it: as many slices as there are coefficients must bracket their optimum, at sizes that tell these apart.
    """
    bracketed = [i for i in members if optima[i].state == "bracketed"]
    usable = [i for i in members if optima[i].log2_lr is not None] if one_sided else bracketed
    for name in by:
        values = [slices[i].covariates[name] for i in members]
        why = "is 0, and no power law goes through 0" if max(values) == 0 else why_constant(values)
        if why is not None:
            return Stratum(members, usable, f"{name} {why}")
    needed = len(by) + 2
    if len(usable) < needed:
        size = f"{len(members)} slices" if len(members) > 1 else "one slice"
        few = f"{size}, of which {len(bracketed)} bracketed, {needed} needed for {len(by) + 1} coefficients"
        return Stratum(members, usable, few)
    censored = sum(optima[i].state in CENSORED for i in members)
    if one_sided:
        if len(bracketed) < len(by) + 1:
            size, P = len(members), len(by) + 1
            why = (
                f"{size} slices, of which {len(bracketed)} bracketed, {P} needed to place a law of {P} "
                f"coefficients; {censored} have their lowest loss at the end of their rates"
            )
            return Stratum(members, usable, why, edges=True)
        return Stratum(members, usable, why_collinear(design_matrix([slices[i] for i in bracketed], by), by))
    if 2 * censored > len(members):  # the bracketed ones are a biased selection
        why = f"{censored} of {len(members)} slices have their lowest loss at the end of their rates"
        return Stratum(members, usable, why, edges=True)
    return Stratum(members, usable, why_collinear(design_matrix([slices[i] for i in usable], by), by))


def choose_stratum(groups: Sequence[Stratum], slices: Sequence[Slice], by: Sequence[str]) -> Stratum:
    """The one stratum that identifies the law, or if none does, the one that comes closest.

    Raises:
        ValueError: several strata identify it; names the `where` that selects each.
    """
    able = [group for group in groups if group.problem is None]
    if len(able) == 1:
        return able[0]
    if able:
        first = [slices[group.members[0]] for group in able]
        differ = [name for name in varying_columns(first) if name not in by]
        choices = [
            argument("where", {n: {**one.context, **one.covariates}[n] for n in differ}) for one in first
        ]
        raise ValueError(
            f"{len(able)} groups of slices could carry the law; choose one: {' or '.join(choices[:12])}"
        )
    return max(
        groups,
        key=lambda g: (len({tuple(slices[i].covariates[n] for n in by) for i in g.members}), len(g.usable)),
    )


def unidentified_refusal(
    best: Stratum, slices: Sequence[Slice], optima: Sequence[Optimum], by: Sequence[str], groups: int
) -> Refusal:
    """The refusal of a law whose best stratum, of so many groups, has a problem; it says what to run."""
    unbracketed = [i for i in best.members if optima[i].state != "bracketed"]
    names = varying_columns(slices)
    why = "; ".join(f"{slices[i].label(names)}: {optima[i].reason}" for i in unbracketed)
    group = "the slices" if groups == 1 else f"the best of {groups} groups of slices"
    before, after = _runs_not_done(slices)
    reason = (
        f"{before}the exponents of {', '.join(by)} are not identified: {group}: {best.problem}"
        + (f" ({why})" if why else "")
        + after
    )
    if not unbracketed or (len(best.usable) >= len(by) + 2 and not best.edges):
        return Refusal(reason, _larger_sizes(best, slices, by))
    rates = {i: _rates_to_add(slices[i], optima[i], [slices[k] for k in best.members]) for i in unbracketed}
    return Refusal(reason, [slices[i].next_point(add) for i, add in rates.items() if add])


def _runs_not_done(slices: Sequence[Slice]) -> tuple[str, str]:
    """What a refusal says of runs that are not done, before its reason and after it.

    Of an interrupted hyperp sweep they come first, since running it again finishes them.
    """
    waiting = {status: sum(one.dropped.get(status, 0) for one in slices) for status in NOT_DONE}
    count = sum(waiting.values())
    if not count:
        return "", ""
    which = ", ".join(f"{n} {status}" for status, n in waiting.items() if n)
    if not all(trains_with_hyperp(one.context) for one in slices):
        runs = "runs that did not finish do" if count > 1 else "run that did not finish does"
        return "", f"; {count} {runs} not count ({which})"
    runs = "planned run is" if count == 1 else "planned runs are"
    again = "run the same `hyperp-sweep run` again, then collect; until then "
    return f"{count} {runs} not done ({which}); {again}", ""


def _rates_to_add(one: Slice, optimum: Optimum, group: Sequence[Slice]) -> list[float]:
    """The planned rates and those that would bracket the optimum; without any, the rates of the group."""
    own = sorted({*one.pending, *optimum.next_rates})
    return own or np.unique(np.concatenate([other.lr for other in group])).tolist()


def _larger_sizes(best: Stratum, slices: Sequence[Slice], by: Sequence[str]) -> list[dict[str, Any]]:
    """The last slice at doublings of each covariate, as many as the law lacks values."""
    last = slices[best.members[-1]]
    rates = np.unique(last.lr).tolist()
    points = []
    for name in by:
        values = {slices[i].covariates[name] for i in best.members}
        missing = max(len(by) + 2 - len(values), 1)
        for step in range(1, missing + 1):
            bigger = replace(last, covariates={**last.covariates, name: max(values) * 2**step})
            points.append(bigger.next_point(rates))
    return points
