"""Print how far an optimum moves along an axis, and what ignoring that costs."""

from collections.abc import Sequence

from hyperp.analysis.queries.transfer import Transfer, TransferAhead, TransferPenalty, TransferPoint
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.report.text.slices import format_one_end, format_value, state_text
from hyperp.analysis.wording import format_number, format_percent


def context_columns(answers: Sequence[Transfer]) -> list[str]:
    """The context columns to print; setting only where any context has one."""
    shown = any(t.context.get("setting") for t in answers)
    return ["optimizer", "parametrization", *(["setting"] if shown else [])]


def _interval_column(answers: Sequence[Transfer]) -> str:
    return f"{format_percent(answers[0].level)} interval"


def _has_seeds(answers: Sequence[Transfer]) -> bool:
    return any(t.drift is not None and t.drift.by_seed is not None for t in answers)


def transfer_columns(answers: Sequence[Transfer]) -> list[str]:
    """The header of `transfer_rows`; with what seeds alone say, where any context has two or more."""
    drift = ["octaves per doubling", _interval_column(answers)]
    seeds = ["by seeds alone"] if _has_seeds(answers) else []
    return [*context_columns(answers), "held", "optima", *drift, *seeds, "loss penalty"]


def transfer_rows(answers: Sequence[Transfer]) -> list[list[str]]:
    """One row per context: optima along the axis, drift with interval, penalty."""
    rows, names, with_seeds = [], context_columns(answers), _has_seeds(answers)
    for t in answers:
        optima = ", ".join(f"{format_value(p.value)}: {_optimum_text(p)}" for p in t.points)
        d, p = t.drift, t.penalty
        drift, seeds = [str(t.problem), "-"], "-"
        if d is not None:
            ends = d.basis if d.low is None or d.high is None else f"{d.low:+.2f} to {d.high:+.2f}"
            without = (
                f", without {t.axis} {', '.join(format_value(v) for v in t.excluded)}" if t.excluded else ""
            )
            drift = [f"{d.octaves_per_doubling:+.2f}{without}", ends]
            if d.by_seed is not None:
                s = d.by_seed
                seeds = f"{s.mean:+.2f} ({s.low:+.2f} to {s.high:+.2f}, {len(s.values)} of {s.of} seeds)"
        penalty = "-" if p is None else f"{p.nats:.4f} nats ({p.percent:.2f}%)"
        held = ", ".join(
            f"{n} {format_value(t.held[n])}" for n in ("width", "depth", "tokens") if n in t.held
        )
        row = [*(t.context[name] or "-" for name in names), held, optima, *drift]
        rows.append([*row, *([seeds] if with_seeds else []), penalty])
    return rows


def _optimum_text(point: TransferPoint) -> str:
    """The optimum, the one end of it that a one-sided curve has, or why there is none."""
    if point.lr is not None:
        return format_number(point.lr)
    if point.low is None and point.high is None:
        return state_text(point.state)
    return format_one_end(point.low, point.high)


def penalty_columns(answers: Sequence[Transfer]) -> list[str]:
    """The header of `penalty_rows`."""
    return [
        *context_columns(answers),
        "at",
        "octaves from the smallest one's optimum",
        _interval_column(answers),
        "loss penalty of that optimum",
        "over the interval",
    ]


def penalty_rows(answers: Sequence[Transfer]) -> list[list[str]]:
    """One row per context and value: measured penalties first, then extrapolated ones."""
    rows, shown = [], context_columns(answers)
    for t in answers:
        names = [t.context[name] or "-" for name in shown]
        rows += [[*names, format_value(p.at), *_cost_cells(p)] for p in t.penalties]
        rows += [[*names, f"{format_value(a.at)}, extrapolated", *_cost_cells(a)] for a in t.ahead]
    return rows


def _cost_cells(one: TransferPenalty | TransferAhead) -> list[str]:
    """How far the optimum lies from the rate, what that costs, and the intervals of both."""
    ends = "unknown" if one.low is None or one.high is None else f"{one.low:+.2f} to {one.high:+.2f}"
    cost = "-" if one.percent is None else f"{one.percent:.2f}%"
    span = "-"
    if one.percent_low is not None and one.percent_high is not None:
        span = f"{one.percent_low:.2f}% to {one.percent_high:.2f}%"
    return [f"{one.octaves:+.2f}", ends, cost, span]


def basis_lines(answers: Sequence[Transfer]) -> list[str]:
    """What the intervals of the drifts rest on, each said once with the contexts that it is true of."""
    found: dict[str, list[str]] = {}
    for t in answers:
        if t.drift is not None and t.drift.low is not None:
            name = " ".join(t.context[n] for n in context_columns(answers) if t.context[n])
            found.setdefault(t.drift.basis, []).append(name)
    whole = len(found) == 1
    return [
        f"Interval of the drift{'' if whole else f' ({_listed(names)})'}: {basis}."
        for basis, names in found.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name or "all runs" for name in names))


def show_transfer(over: str, answers: Sequence[Transfer]) -> None:
    """Print drift and penalty for every context."""
    show_table(f"Transfer over {over}", transfer_columns(answers), transfer_rows(answers))
    print(
        f"Loss penalty: the extra loss of training at the largest {over} "
        "with the optimal rate of the smallest.\n"
    )
    show_table(
        f"Using the optimum of the smallest {over} at larger ones",
        penalty_columns(answers),
        penalty_rows(answers),
    )
    print(
        "Measured rows have the interval of the optimum there, extrapolated ones that of one more curve; the "
        "penalty is by the fitted basin at that size, and its interval holds the errors of both."
    )
    for line in basis_lines(answers):
        print(line)
    if _has_seeds(answers):
        print("Seeds alone: the spread of drifts fitted to each seed, without the scatter between curves.")
