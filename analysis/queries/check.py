"""What a table of runs holds, and which exponents it identifies."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hyperp.analysis.answers import Answer
from hyperp.analysis.law.confounders import moving_together, shared_columns
from hyperp.analysis.law.identify import Stratum, assess_stratum
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.request import FitRequest, check_request
from hyperp.analysis.law.slice_records import slice_record
from hyperp.analysis.law.zeros import zero_warnings
from hyperp.analysis.optima.estimation import MethodResult
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.table.slices import Slice, cut_slices, strata, varying_columns
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.vocabulary import DEFAULT_METHOD, LEVEL, WINDOW, MethodName
from hyperp.validation import Strict


class Identifiable(Strict):
    """Whether `fit_law` can fit the exponent of this covariate.

    Attributes:
        by: the smallest set of covariates with which it can, this one alone if possible; empty if none can.
        groups: the groups of slices that it can fit.
        reason: why this covariate alone cannot be fitted; None if it can.
    """

    covariate: str
    identified: bool
    by: list[str]
    groups: list[str]
    reason: str | None


class TableCheck(Answer, Strict):
    """Rows by status, slices with their states, the sizes that vary and the identifiable exponents."""

    records: str
    rows: int
    statuses: dict[str, int]
    varying: dict[str, list[int | float | str]]
    slices: list[SliceRecord]
    identifiable: list[Identifiable]
    warnings: list[str]
    level: float = LEVEL

    def headline(self) -> str:
        """How many rows there are, and which exponents they identify."""
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        sets = dict.fromkeys(tuple(one.by) for one in self.identifiable if one.identified)
        can = ", ".join(" and ".join(by) + " together" * (len(by) > 1) for by in sorted(sets, key=len))
        return f"{self.records}: {self.rows} rows ({counts}); exponents that they identify: {can or 'none'}"

    def notes(self) -> list[str]:
        """The warnings."""
        return [f"warning: {line}" for line in self.warnings]

    def to_frame(self) -> pd.DataFrame:
        """A row for each slice: its sizes, state, counts and optimum."""
        return pd.DataFrame([one.row() for one in self.slices])


MOST_TOGETHER = 4  # sizes that a law is tried with
SAME_SIZE = 1.01  # a smaller ratio of two sizes is likely one size, rounded in two ways


def _nearly_equal_sizes(changing: Mapping[str, Sequence[int | float | str]]) -> list[str]:
    """Warnings about sizes so close that they split what may be one slice."""
    found = []
    for name, values in changing.items():
        sizes = [v for v in values if not isinstance(v, str)]
        pairs = [(a, b) for a, b in itertools.pairwise(sizes) if b < SAME_SIZE * a]
        if pairs:
            (a, b), count = pairs[0], len(pairs)
            more = f", and {count - 1} more such pairs" if count > 1 else ""
            found.append(
                f"{name} {a:.10g} and {b:.10g} differ by less than 1% and make separate slices{more}; "
                "round them if they are the same size"
            )
    return found


@dataclass(frozen=True)
class TableOptima:
    """The slices of a table and the optima that a method finds in them, before they become records.

    Attributes:
        runs: the table, with the sizes that were asked for.
        frame: its selected rows.
        request: what was asked.
        slices: the slices of `frame`.
        found: what the method found of them.
    """

    runs: Runs
    frame: pd.DataFrame
    request: FitRequest
    slices: list[Slice]
    found: MethodResult


def find_optima(
    runs: Runs,
    where: Mapping[str, str] | None = None,
    window: float = WINDOW,
    by: Sequence[str] = (),
    over: Sequence[str] = ("lr",),
    method: MethodName = DEFAULT_METHOD,
    level: float = LEVEL,
    slice_by: Sequence[str] = (),
) -> TableOptima:
    """Cut a table into slices and find their optima.

    `by` and `slice_by` name columns of sizes beyond the standard covariates, `over` what is tuned.

    Raises:
        ValueError: the table mixes experiments (see `cut_slices`), or a column is not there.
    """
    request = FitRequest(
        tuple(by),
        {},
        dict(where or {}),
        over=tuple(over),
        slice_by=tuple(slice_by),
        method=method,
        window=window,
        level=level,
    )
    check_request(request, runs.frame, runs.mapping)
    runs = runs.with_sizes(request.extra)
    frame = filter_runs(runs.frame, request.where)
    slices = cut_slices(frame, extra=request.extra, over=request.over)
    return TableOptima(runs, frame, request, slices, estimate_optima(method, slices, request.options))


def describe_table(table: TableOptima) -> TableCheck:
    """What a table holds, and which exponents its optima identify."""
    runs, frame, slices, found = table.runs, table.frame, table.slices, table.found
    optima = found.optima
    changing = varying_columns(slices)
    verdicts, confounders, columns = [], [], shared_columns(slices, frame)
    for name in (n for n in slices[0].covariates if n in changing):
        verdict, able = _verdict(name, slices, optima, changing, table.request.hierarchical)
        verdicts.append(verdict)
        for group in able:
            used = [slices[i] for i in group.usable]
            here = {n: values[group.usable] for n, values in columns.items()}
            confounders += moving_together(used, here, verdict.by, runs.mapping)
    return TableCheck(
        records=runs.path,
        rows=len(frame),
        statuses={str(k): int(v) for k, v in frame["status"].value_counts().sort_index().items()},
        varying=changing,
        warnings=[
            *runs.notes,
            *_nearly_equal_sizes(changing),
            *found.notes,
            *zero_warnings(slices, frame, table.request.by, table.request.over),
            *dict.fromkeys(confounders),
        ],
        slices=[
            slice_record(one, optimum) for one, optimum in zip(found.slices or slices, optima, strict=True)
        ],
        identifiable=verdicts,
        level=table.request.level,
    )


def _rank(group: Stratum, name: str, slices: Sequence[Slice]) -> tuple[int, int, bool]:
    """The group whose problem is told is the largest, of equals one without a 0."""
    return len(group.members), len(group.usable), slices[group.members[0]].covariates[name] > 0


def _verdict(
    name: str,
    slices: Sequence[Slice],
    optima: Sequence[Optimum],
    changing: Mapping[str, Sequence],
    one_sided: bool,
) -> tuple[Identifiable, list[Stratum]]:
    """What identifies the exponent of this covariate, and the groups of slices that do.

    Sizes that vary together, such as width and depth, are identified only with each other. So the covariate
    is tried alone, then with one more size, and so on.
    """
    sizes = [n for n in slices[0].covariates if n in changing]
    others, reason = [n for n in sizes if n != name], None
    for count in range(min(len(sizes), MOST_TOGETHER)):
        for more in itertools.combinations(others, count):
            by = [n for n in sizes if n == name or n in more]
            groups = [assess_stratum(g, slices, optima, by, one_sided) for g in strata(slices, by)]
            if able := [group for group in groups if group.problem is None]:
                rest = [n for n in changing if n not in by]
                labels = [
                    slices[g.members[0]].label(rest) if rest else f"one group of {len(g.members)} slices"
                    for g in able
                ]
                found = Identifiable(covariate=name, identified=True, by=by, groups=labels, reason=reason)
                return found, able
            if not more:
                reason = max(groups, key=lambda g: _rank(g, name, slices)).problem
    return Identifiable(covariate=name, identified=False, by=[], groups=[], reason=reason), []
