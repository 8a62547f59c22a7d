"""What a table of runs holds, and which exponents it identifies."""

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from hyperp.analysis.answers import Answer
from hyperp.analysis.law.identify import assess_stratum
from hyperp.analysis.law.request import FitRequest, check_request
from hyperp.analysis.law.schema import SliceRecord
from hyperp.analysis.law.slice_records import slice_record
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.table.slices import cut_slices, strata, varying_columns
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.vocabulary import DEFAULT_METHOD, WINDOW, MethodName
from hyperp.validation import Strict


class Identifiable(Strict):
    """Whether `fit_law` by this covariate can fit a group of slices; `groups` names those that it can."""

    covariate: str
    identified: bool
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

    def headline(self) -> str:
        """How many rows there are, and which exponents they identify."""
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        can = ", ".join(one.covariate for one in self.identifiable if one.identified) or "none"
        return f"{self.records}: {self.rows} rows ({counts}); exponents that they identify: {can}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each slice: its sizes, state, counts and optimum."""
        return pd.DataFrame([one.row() for one in self.slices])


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


def check_runs(
    runs: Runs,
    where: Mapping[str, str] | None = None,
    window: float = WINDOW,
    by: Sequence[str] = (),
    over: Sequence[str] = ("lr",),
    method: MethodName = DEFAULT_METHOD,
) -> TableCheck:
    """Describe a table; `by` names columns of sizes beyond the standard covariates.

    Raises:
        ValueError: the table mixes experiments (see `cut_slices`), or a column is not there.
    """
    request = FitRequest(tuple(by), {}, {}, over=tuple(over), method=method, window=window)
    check_request(request, runs.frame)
    frame = filter_runs(runs.with_sizes(request.extra).frame, where or {})
    slices = cut_slices(frame, extra=request.extra, over=request.over)
    found = estimate_optima(method, slices, request.options)
    optima = found.optima
    changing = varying_columns(slices)
    verdicts = []
    for name in (n for n in slices[0].covariates if n in changing):
        groups = [assess_stratum(members, slices, optima, [name]) for members in strata(slices, [name])]
        able = [group for group in groups if group.problem is None]
        rest = [n for n in changing if n != name]
        labels = [
            slices[g.members[0]].label(rest) if rest else f"one group of {len(g.members)} slices"
            for g in able
        ]
        best = max(groups, key=lambda g: (len(g.members), len(g.usable)))
        reason = None if able else best.problem
        verdicts.append(Identifiable(covariate=name, identified=bool(able), groups=labels, reason=reason))
    return TableCheck(
        records=runs.path,
        rows=len(frame),
        statuses={str(k): int(v) for k, v in frame["status"].value_counts().sort_index().items()},
        varying=changing,
        warnings=[*_nearly_equal_sizes(changing), *found.notes],
        slices=[slice_record(one, optimum) for one, optimum in zip(slices, optima, strict=True)],
        identifiable=verdicts,
    )
