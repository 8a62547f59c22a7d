"""Print compute-optimal sizes."""

from hyperp.analysis.queries.isoflop import Allocation, ComputeOptimal, Interval
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.wording import format_degrees, format_interval, format_number, format_percent


def show_isoflop(found: ComputeOptimal) -> None:
    """Print N* and D* by profiles and by the loss surface, and every profile."""
    n, d, level = found.by_profiles.parameters, found.by_profiles.tokens, format_percent(found.level)
    degrees = format_degrees(found.df)
    print(f"N* = {n.value:.4g} parameters, D* = {d.value:.4g} tokens at {found.budget:.4g} FLOPs (C = 6 N D)")
    print(f"{level} prediction intervals {_ends(n)} and {_ends(d)}, {degrees}, from profiles")
    print(rows_text(found))
    rows = [["profiles", *_cells(found.by_profiles)]]
    if found.by_surface is not None:
        rows.append(["loss surface", *_cells(found.by_surface)])
    columns = ["from", "N* ~ C^b", f"{level} interval", "D* ~ C^(1 - b)", "N*", "interval", "D*", "interval"]
    show_table("Compute-optimal sizes", columns, rows)
    print(_surface_text(found))
    other = ", ".join(f"{name} {format_number(b, 3)}" for name, b in found.others.items())
    if other:
        print(f"exponent of N* by other methods: {other}")
    _show_profiles(found)


def rows_text(found: ComputeOptimal) -> str:
    """How the budgets were grouped, how many the law uses, and which rows were left out."""
    unused = [one for one in found.profiles if not one.used]
    left_out = f" ({sum(one.runs for one in unused)} rows in the others)" if unused else ""
    dropped = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items() if count) or "none"
    return (
        f"{found.grouped}; {len(found.profiles) - len(unused)} used{left_out}, "
        f"{format_interval(*found.budgets, 4)} FLOPs; of {found.rows} rows, dropped: {dropped}"
    )


def _cells(one: Allocation) -> list[str]:
    return [
        format_number(one.exponent.value, 3),
        _ends(one.exponent, 3),
        format_number(one.tokens_exponent.value, 3),
        format_number(one.parameters.value),
        _ends(one.parameters),
        format_number(one.tokens.value),
        _ends(one.tokens),
    ]


def _ends(one: Interval, digits: int = 4) -> str:
    return "-" if one.low is None else format_interval(one.low, one.high, digits)


def _surface_text(found: ComputeOptimal) -> str:
    """How the surface was fitted, what it says about the loss, and whether it agrees with the profiles."""
    one = found.by_surface
    if one is None:
        return f"no loss surface: {found.surface_problem}"
    of_runs = "" if one.runs is None else f" of {one.runs} runs"
    verdict = {None: "", True: "; the two agree", False: "; the two disagree"}[found.agree]
    interval = "" if one.loss.low is None else f" ({_ends(one.loss)})"
    state = "" if one.converged else ", which has not converged"
    bounds = "".join(f"; {line}" for line in one.at_bounds)
    return (
        f"the surface of {one.points} points{of_runs}{state} predicts a loss of {one.loss.value:.4g}"
        f"{interval} there{verdict}{bounds}"
    )


def _show_profiles(found: ComputeOptimal) -> None:
    rows = [
        [
            format_number(one.budget),
            str(one.sizes),
            str(one.runs),
            one.state + ("" if one.used or one.state != "bracketed" else ", not used"),
            format_number(one.parameters),
            "-" if one.low is None else format_interval(one.low, one.high, 4),
            format_number(one.tokens),
            format_number(one.loss, 5),
        ]
        for one in found.profiles
    ]
    level = format_percent(found.level)
    columns = ["budget", "sizes", "runs", "state", "N*", f"{level} interval", "D*", "loss"]
    show_table("Profiles", columns, rows)
    for one in found.profiles:
        if one.reason is not None:
            print(f"budget {one.budget:.4g}: {one.reason}")
