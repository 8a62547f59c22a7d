"""Print a loss law and a compute-efficiency leverage."""

from hyperp.analysis.loss.leverage import Comparison, Leverage
from hyperp.analysis.loss.schema import LossLaw, ProfileRow
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.vocabulary import LEVEL
from hyperp.analysis.wording import format_interval, format_number, format_percent


def show_loss(law: LossLaw) -> None:
    """Print a loss law, its status, and how sensitive it is to its floor."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in law.dropped.items()) or "none"
    print(f"{law.formula}, {law.metric}; Huber({law.delta:g}) on ln L")
    print(f"{_rows_text(law)}, dropped: {dropped}; {len(law.points)} points: {_points_text(law)}")
    rows = [
        [
            n,
            format_number(p.value, 5),
            "pinned" if p.pinned else format_interval(p.low, p.high, 4) if law.resampling else "-",
        ]
        for n, p in law.parameters.items()
    ]
    level = format_percent(LEVEL if law.resampling is None else law.resampling.level)
    show_table("Parameters", ["parameter", "value", f"{level} interval"], rows)
    print(f"status: {law.status}; {law.agree} of {law.starts} starting basins lead to this optimum")
    for words in law.at_bounds:
        print(f"at a bound: {words}")
    print(f"objective {law.objective:.7g}; scatter about the law {100 * law.scatter:.3g}% of the loss")
    if law.resampling is not None:
        how = law.resampling
        what = _resampled_text(law, how.kind)
        lost = f", {how.not_converged} not converged" if how.not_converged else ""
        print(f"intervals: {how.count} resamples, {what}, seed {how.seed}{lost}")
    if law.edges:
        print(
            f"warning: {law.edges} of {len(law.points)} points have their best rate at the edge of the rates "
            "tried, so their losses are too high"
        )
    _show_floor_profile(law)


def loss_warnings(law: LossLaw) -> list[str]:
    """The law's warnings, and a line each if the fit or more than 1% of its resamples did not converge."""
    lines = list(law.warnings)
    if law.status != "converged":
        lines.insert(
            0, "the fit has not converged: do not rely on its parameters, they are not the best ones"
        )
    how = law.resampling
    if how is not None and how.not_converged > 0.01 * how.count:
        lines.append(
            f"{how.not_converged} of {how.count} resamples have not converged: the intervals are rough"
        )
    return lines


def _rows_text(law: LossLaw) -> str:
    """The number of rows, and where it is known that of the runs, with how their residuals correlate."""
    if law.clusters is None:
        return f"{law.rows} rows"
    related = law.cluster_correlation
    alike = "" if related is None else f", residuals of one run correlate by {related:.2f}"
    joined = "" if law.runs == law.clusters else f" in {law.clusters} groups that share no point"
    return f"{law.rows} rows of {law.runs} runs{joined} ({law.cluster}{alike})"


def _points_text(law: LossLaw) -> str:
    if law.all_rows:
        return "every row"
    rows = sum(p.runs for p in law.points)
    if rows == len(law.points):
        return "one row each"
    return f"from {rows} rows, each the lowest mean-over-seeds loss among its rates"


def _resampled_text(law: LossLaw, kind: str) -> str:
    if law.clusters is None:
        return (
            "points drawn with replacement"
            if kind == "pairs"
            else "new noise about the law, from Student's t"
        )
    if kind == "pairs":
        return "whole runs drawn with replacement"
    return "the residuals of each run with a random sign, from Student's t"


def _show_floor_profile(law: LossLaw) -> None:
    for data in dict.fromkeys(row.data for row in law.profile):
        _show_floor(law, data)


def _show_floor(law: LossLaw, data: str | None) -> None:
    """The profile of the floor of a data set, of the only one if that is None."""
    name = "E" if data is None else f"E[{data}]"
    floor = law.parameters[name]
    profile = [row for row in law.profile if row.data == data]
    best = min(profile, key=lambda row: abs(row.E - floor.value))
    ends = [min(profile, key=lambda row: abs(row.E - e)) for e in (floor.low, floor.high) if e is not None]
    spread = profile[:: max(1, len(profile) // 6)]
    shown = {row.E: row for row in [*spread, best, *ends]}
    names = list(best.exponents)
    at = ", ".join(f"{name} {value:.3g}" for name, value in law.extrapolated_at.items())
    rows = [
        [
            format_number(r.E),
            _objective_text(r),
            *(format_number(e, 3) for e in r.exponents.values()),
            format_number(r.extrapolated),
        ]
        for r in sorted(shown.values(), key=lambda r: r.E)
    ]
    show_table(
        f"Sensitivity to the floor {name}", [f"{name} held", "objective", *names, f"loss at {at}"], rows
    )
    if ends:
        print(
            f"at ten times the largest compute the loss is {best.extrapolated:.4g}; with {name} held at the "
            f"ends of its interval, {ends[0].extrapolated:.4g} and {ends[-1].extrapolated:.4g}"
        )


def _objective_text(row: ProfileRow) -> str:
    return format_number(row.objective) if row.rise_percent is None else f"+{row.rise_percent:.2f}%"


def show_leverage(answer: Leverage) -> None:
    """Print each curve and its leverage over the baseline."""
    curves = [answer.baseline, *(c.other for c in answer.comparisons)]
    runs = any(c.runs is not None for c in curves)
    rows = [
        [
            c.name,
            *(format_number(c.parameters[n]) for n in ("E", "A", "b")),
            f"{100 * c.scatter:.2g}%",
            str(c.points),
            *([format_number(c.runs)] if runs else []),
            format_interval(*c.flops),
            format_interval(*c.losses, 4),
        ]
        for c in curves
    ]
    counts = ["points", "runs"] if runs else ["points"]
    columns = [answer.over, "E", "A", "b", "scatter", *counts, "FLOPs", "losses"]
    show_table(f"L(C) = E + A C^-b of each {answer.over}, {answer.metric}", columns, rows)
    for c in curves:
        dropped = ", ".join(f"{count} {reason}" for reason, count in c.dropped.items())
        edge = f"{c.edges} best rates at the edge of those tried" if c.edges else ""
        bound = "; ".join(c.at_bounds)
        status = "" if c.converged else "not converged"
        for words in filter(None, (dropped and f"dropped {dropped}", edge, bound, status)):
            print(f"{c.name}: {words}")
    for problem in answer.unfitted:
        print(f"not fitted: {problem}")
    for comparison in answer.comparisons:
        _show_comparison(answer, comparison)


def _show_comparison(answer: Leverage, found: Comparison) -> None:
    if found.at_largest is None:
        print(f"{found.other.name}: no leverage: {found.problem}")
        return
    title = f"Leverage of {found.other.name} over {answer.baseline.name}, where both were measured"
    columns = ["loss", f"FLOPs of {answer.baseline.name}", f"FLOPs of {found.other.name}", "leverage"]
    shown = found.rows[:: (len(found.rows) - 1) // 4]
    rows = [
        [format_number(r.loss), *(format_number(v, 3) for v in (r.baseline_flops, r.other_flops, r.leverage))]
        for r in shown
    ]
    for row, r in zip(rows, shown, strict=True):
        row.append(format_interval(r.low, r.high))
    show_table(title, [*columns, f"{format_percent(answer.level)} interval"], rows)
    r = found.at_largest
    sure = r.low is not None and r.high is not None and not r.low <= 1 <= r.high
    verdict = "" if sure else "; the interval includes 1, so the two cannot be told apart"
    print(
        f"at the largest common compute, {r.baseline_flops:.3g} FLOPs of {answer.baseline.name}, "
        f"{found.other.name} has leverage {r.leverage:.3g} ({format_interval(r.low, r.high)}){verdict}"
    )
