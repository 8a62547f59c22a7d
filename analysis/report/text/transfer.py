"""Print how far an optimum moves along an axis, and what ignoring that costs."""

import math
from collections.abc import Sequence

from hyperp.analysis.queries.transfer import Transfer
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.report.text.slices import format_value, state_text
from hyperp.analysis.wording import format_number, format_percent


def context_columns(answers: Sequence[Transfer]) -> list[str]:
    """The context columns to print; setting only where any context has one."""
    shown = any(t.context.get("setting") for t in answers)
    return ["optimizer", "parametrization", *(["setting"] if shown else [])]


def _interval_column(answers: Sequence[Transfer]) -> str:
    return f"{format_percent(answers[0].level)} interval"


def transfer_columns(answers: Sequence[Transfer]) -> list[str]:
    """The header of `transfer_rows`."""
    drift = ["octaves per doubling", _interval_column(answers)]
    return [*context_columns(answers), "held", "optima", *drift, "loss penalty"]


def transfer_rows(answers: Sequence[Transfer]) -> list[list[str]]:
    """One row per context: optima along the axis, drift with interval, penalty."""
    rows, names = [], context_columns(answers)
    for t in answers:
        optima = ", ".join(
            f"{format_value(p.value)}: {format_number(p.lr) if p.lr else state_text(p.state)}"
            for p in t.points
        )
        d, p = t.drift, t.penalty
        drift = [str(t.problem), "-"]
        if d is not None:
            ends = d.basis if d.low is None or d.high is None else f"{d.low:+.2f} to {d.high:+.2f}"
            without = (
                f", without {t.axis} {', '.join(format_value(v) for v in t.excluded)}" if t.excluded else ""
            )
            drift = [f"{d.octaves_per_doubling:+.2f}{without}", ends]
        penalty = "-" if p is None else f"{p.nats:.4f} nats ({p.percent:.2f}%)"
        held = ", ".join(
            f"{n} {format_value(t.held[n])}" for n in ("width", "depth", "tokens") if n in t.held
        )
        rows.append([*(t.context[name] or "-" for name in names), held, optima, *drift, penalty])
    return rows


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
        start = next((p.lr for p in t.points if p.lr), None)
        own = {p.value: p.lr for p in t.points}
        for p in t.penalties:
            lr = own[p.at]
            moved = "-" if lr is None or start is None else f"{math.log2(lr / start):+.2f}"
            rows.append([*names, format_value(p.at), moved, "measured", f"{p.percent:.2f}%", "-"])
        for a in t.ahead:
            ends = "unknown" if a.low is None or a.high is None else f"{a.low:+.2f} to {a.high:+.2f}"
            cost = "-" if a.percent is None else f"{a.percent:.2f}%"
            span = "-"
            if a.percent_low is not None and a.percent_high is not None:
                span = f"{a.percent_low:.2f}% to {a.percent_high:.2f}%"
            rows.append(
                [*names, f"{format_value(a.at)}, extrapolated", f"{a.octaves:+.2f}", ends, cost, span]
            )
    return rows


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
    print("Extrapolated rows carry on the drift, with the basin's curvature at the largest measured value.")
