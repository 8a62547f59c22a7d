"""Which group of slices identifies the exponents asked for, and if none does, what to run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal
from hyperp.analysis.law.regression import Sample, collinear, still
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.table.slices import NOT_DONE, Slice, next_point, short_label, varying
from hyperp.analysis.vocabulary import CENSORED


@dataclass(frozen=True)
class Stratum:
    """Slices that differ only in the law's covariates; `usable` are bracketed, `problem` says why no fit."""

    members: list[int]
    usable: list[int]
    problem: str | None


def assess(
    members: list[int], slices: Sequence[Slice], optima: Sequence[Optimum], by: Sequence[str]
) -> Stratum:
    """Whether a group of slices identifies the exponents of `by`, and if not, why."""
    usable = [i for i in members if optima[i].state == "bracketed"]
    return Stratum(members, usable, _problem(members, usable, slices, optima, by))


def _problem(
    members: list[int],
    usable: list[int],
    slices: Sequence[Slice],
    optima: Sequence[Optimum],
    by: Sequence[str],
) -> str | None:
    needed = len(by) + 2
    for name in by:
        why = still([slices[i].covariates[name] for i in members])
        if why is not None:
            return f"{name} {why}"
    if len(usable) < needed:
        size = f"{len(members)} slices" if len(members) > 1 else "one slice"
        return f"{size}, of which {len(usable)} bracketed, {needed} needed for {len(by) + 1} coefficients"
    censored = sum(optima[i].state in CENSORED for i in members)
    if 2 * censored > len(members):
        # Those that are left are the ones that happened to lie inside, so they lean.
        return f"{censored} of {len(members)} slices have their lowest loss at the end of their rates"
    return collinear(Sample([slices[i] for i in usable], [], tuple(by), {}).X, by)


def choose(groups: list[Stratum], slices: list[Slice], optima: list[Optimum], by: Sequence[str]) -> Stratum:
    """The group that carries the law.

    Raises:
        ValueError: several could.
        Refusal: none can; says which points to run.
    """
    able = [group for group in groups if group.problem is None]
    if len(able) == 1:
        return able[0]
    if able:
        first = [slices[group.members[0]] for group in able]
        differ = [name for name in varying(first) if name not in by]
        choices = [
            " ".join(f"--where {n}={_quoted({**one.context, **one.covariates}[n])}" for n in differ)
            for one in first
        ]
        raise ValueError(
            f"{len(able)} groups of slices could carry the law; choose one: {' or '.join(choices[:12])}"
        )
    best = max(
        groups,
        key=lambda g: (len({tuple(slices[i].covariates[n] for n in by) for i in g.members}), len(g.usable)),
    )
    raise Refusal(*_refusal(best, slices, optima, by, len(groups)))


def _quoted(value: object) -> str:
    text = str(value)
    return f"'{text}'" if " " in text else text


def _refusal(
    best: Stratum, slices: list[Slice], optima: list[Optimum], by: Sequence[str], groups: int
) -> tuple[str, list[dict[str, Any]]]:
    unbracketed = [i for i in best.members if optima[i].state != "bracketed"]
    names = varying(slices)
    why = "; ".join(f"{short_label(slices[i], names)}: {optima[i].reason}" for i in unbracketed)
    group = "the slices" if groups == 1 else f"the best of {groups} groups of slices"
    reason = (
        _undone(slices)
        + f"the exponents of {', '.join(by)} are not identified: {group}: {best.problem}"
        + (f" ({why})" if why else "")
    )
    wanted = {i: _rates(slices[i], optima[i], [slices[k] for k in best.members]) for i in unbracketed}
    points = [next_point(slices[i], rates) for i, rates in wanted.items() if rates]
    if not unbracketed or (len(best.usable) >= len(by) + 2 and "end of their rates" not in str(best.problem)):
        points = _more_values(best, slices, by)
    return reason, points


def _undone(slices: Sequence[Slice]) -> str:
    """How many planned runs wait to be done, for an interrupted sweep."""
    waiting = {status: sum(one.dropped.get(status, 0) for one in slices) for status in NOT_DONE}
    count = sum(waiting.values())
    if not count:
        return ""
    which = ", ".join(f"{n} {status}" for status, n in waiting.items() if n)
    runs = "planned run is" if count == 1 else "planned runs are"
    return (
        f"{count} {runs} not done ({which}); run the same `hyperp-sweep run` again, then collect; until then "
    )


def _rates(one: Slice, optimum: Optimum, group: Sequence[Slice]) -> list[float]:
    """What to run of a slice without an optimum: what was planned and would bracket it, or as its group."""
    own = sorted({*one.pending, *optimum.next_rates})
    return own or np.unique(np.concatenate([other.lr for other in group])).tolist()


def _more_values(best: Stratum, slices: list[Slice], by: Sequence[str]) -> list[dict[str, Any]]:
    last = slices[best.members[-1]]
    rates = np.unique(last.lr)
    points = []
    for name in by:
        values = {slices[i].covariates[name] for i in best.members}
        missing = max(len(by) + 2 - len(values), 1)
        for step in range(1, missing + 1):
            bigger = replace(last, covariates={**last.covariates, name: max(values) * 2**step})
            points.append(next_point(bigger, rates.tolist()))
    return points
