"""Tables of slices, and what `hyperp-law check` says of a table of runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyperp.analysis.errors import argument
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.vocabulary import LEVEL
from hyperp.analysis.wording import format_interval, format_number, format_percent

if TYPE_CHECKING:  # imports pandas, which a recommendation does without
    from hyperp.analysis.queries.check import Identifiable, TableCheck


def tuned_with_lr(slices: Sequence[SliceRecord]) -> list[str]:
    """The columns that were tuned beside the rate in these slices."""
    return list(dict.fromkeys(name for s in slices if s.optimum is not None for name in s.optimum.also))


def has_shares(slices: Sequence[SliceRecord]) -> bool:
    """Whether the law says what each of these slices gives of what it knows."""
    return any(s.share is not None for s in slices)


def slice_columns(
    names: Sequence[str], level: float = LEVEL, tuned: Sequence[str] = (), shares: bool = False
) -> list[str]:
    """The header of `slice_rows` with these `names`.

    `level` is the coverage of the intervals, and `tuned` the columns of `tuned_with_lr`. With `shares`, what
    each slice gives of the information about the law has a column.
    """
    interval, others = f"{format_percent(level)} interval", [f"optimal {name}" for name in tuned]
    ends = [*names, "rates", "seeds", "dropped", "state", "optimum", interval, *others]
    return [*ends, "weight"] if shares else ends


def format_value(value: float | str) -> str:
    """Format a size without an exponent where that reads well; text stays as it is."""
    if isinstance(value, float):
        return f"{value:.0f}" if value == value // 1 and abs(value) < 1e6 else f"{value:.6g}"
    return str(value)


def state_text(state: str) -> str:
    """A slice's state as text, such as "too few rates"."""
    return state.replace("_", " ")


def changing_columns(slices: list[SliceRecord]) -> list[str]:
    """The context columns and covariates that have more than one value among the slices."""
    if not slices:
        return []
    names = [*slices[0].context, *slices[0].covariates]
    values = [{**s.context, **s.covariates} for s in slices]
    return [n for n in names if len({v[n] for v in values}) > 1]


def slice_rows(slices: list[SliceRecord], names: list[str]) -> list[list[str]]:
    """One row per slice: the columns `names`, counts, state, optimum with interval, and the other optima."""
    rows, tuned = [], tuned_with_lr(slices)
    for s in slices:
        values = {**s.context, **s.covariates}
        dropped = ", ".join(f"{count} {status}" for status, count in s.dropped.items()) or "-"
        o = s.optimum
        optimum = ["-", "-"]
        if o is not None:
            known = o.df or o.se is not None
            optimum = [format_number(o.lr), _interval_text(o.low, o.high) if known else "unknown"]
        seeds = max((p.seeds for p in s.points), default=0)
        counts = [str(len({p.lr for p in s.points})), str(seeds), dropped]
        others = ["-" if o is None else format_number(o.also.get(n)) for n in tuned]
        size = [format_value(values[n]) for n in names]
        row = [*size, *counts, state_text(s.state), *optimum, *others]
        rows.append(row if s.share is None else [*row, format_percent(round(s.share, 3))])
    return rows


def _interval_text(low: float | None, high: float | None) -> str:
    """An interval, or the one end that a one-sided slice has."""
    return format_interval(low, high) if (low is None) == (high is None) else format_one_end(low, high)


def format_one_end(low: float | None, high: float | None) -> str:
    """The one end that is not None, such as "below 0.03"."""
    return f"below {format_number(high, 3)}" if low is None else f"above {format_number(low, 3)}"


def excluded_rows(law: Law, names: list[str]) -> list[list[str]]:
    """One row per slice that the law does not use: the columns `names`, its state, and the reason."""
    out = [s for s in law.slices if not s.used]
    values = [{**s.context, **s.covariates} for s in out]
    return [
        [*(format_value(v[n]) for n in names), state_text(s.state), str(s.reason)]
        for s, v in zip(out, values, strict=True)
    ]


def _identified(verdict: "Identifiable") -> str:
    if not verdict.identified:
        return "no"
    return "yes" if len(verdict.by) == 1 else f"yes, with {argument('by', ','.join(verdict.by))}"


def show_check(answer: "TableCheck") -> None:
    """Print what a table of runs holds, its slices, and the exponents that could be fitted."""
    print(
        f"{answer.records}: {answer.rows} rows: " + ", ".join(f"{n} {s}" for s, n in answer.statuses.items())
    )
    names = changing_columns(answer.slices)
    count = len(answer.slices)
    show_table(
        f"{count} slice{'' if count == 1 else 's'}",
        slice_columns(names, answer.level, tuned_with_lr(answer.slices)),
        slice_rows(answer.slices, names),
    )
    for s in (s for s in answer.slices if s.state != "bracketed"):
        values = {**s.context, **s.covariates}
        where = ", ".join(f"{n} {values[n]}" for n in names) or "the slice"
        add = f"; add the rates {', '.join(format_number(r) for r in s.next_rates)}" if s.next_rates else ""
        print(f"{where}: {s.reason}{add}")
    rows = [
        [v.covariate, _identified(v), "; ".join(v.groups) if v.identified else str(v.reason)]
        for v in answer.identifiable
    ]
    for line in answer.warnings:
        print(f"warning: {line}")
    show_table(
        "Exponents that a law could fit", ["covariate", "identified", "groups of slices, or the reason"], rows
    )
