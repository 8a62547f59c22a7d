"""A fitted law, as people read it."""

import math
from statistics import median

from hyperp.analysis.law.records import BasinRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import published_exponents
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.report.text.slices import (
    changing_columns,
    excluded_rows,
    format_value,
    has_shares,
    slice_columns,
    slice_rows,
)
from hyperp.analysis.wording import format_degrees, format_interval, format_number, format_percent

PUBLISHED_COLUMN = "published, not used"


def exponent_rows(law: Law) -> list[list[str]]:
    """One row per covariate: measured or fixed exponent, interval, and what was published."""
    a = law.a
    ends = format_interval(math.exp(min(a.low, 700)), math.exp(min(a.high, 700)))
    rows = [["exp(a)", f"{math.exp(a.value):.4g} (factor)", "-", ends, "-", "-"]]
    for name in law.ranges:
        e = law.exponents.get(name)
        measured = (
            [f"{law.fixed[name]:g} (fixed)", "-", "-"]
            if e is None
            else [f"{e.value:.3f}", f"{e.se:.3f}", f"{e.low:.3f} to {e.high:.3f}"]
        )
        low, high = law.ranges[name]
        rows.append(
            [
                name,
                *measured,
                f"{format_value(low)} to {format_value(high)}",
                "; ".join(published_exponents(name)) or "-",
            ]
        )
    return rows


def exponent_columns(law: Law) -> list[str]:
    """The header of exponent_rows."""
    ends = f"{format_percent(law.level)} interval"
    return ["covariate", "exponent", "SE", ends, "fitted range", PUBLISHED_COLUMN]


def formula(law: Law, response: str = "lr") -> str:
    """The law with its numbers, such as lr = 3.1 tokens^-0.52."""
    found = law if response == "lr" else law.also[response]
    exponents = {n: e.value for n, e in found.exponents.items()}
    exponents |= law.fixed if response == "lr" else {}
    powers = " ".join(f"{n}^{b:.3f}" for n, b in exponents.items())
    return f"{response} = {math.exp(found.a.value):.4g} {powers}"


def context_text(context: dict[str, str]) -> str:
    """The values of the context columns that are not empty."""
    return ", ".join(v for v in context.values() if v) or "runs without a context"


def tuned_with_lr_rows(law: Law) -> list[list[str]]:
    """One row per exponent of what was tuned together with the rate."""
    return [
        [name, n, f"{e.value:.3f}", f"{e.se:.3f}", f"{e.low:.3f} to {e.high:.3f}"]
        for name, found in law.also.items()
        for n, e in found.exponents.items()
    ]


def tuned_with_lr_columns(law: Law) -> list[str]:
    """The header of tuned_with_lr_rows."""
    return ["tuned with lr", "covariate", "exponent", "SE", f"{format_percent(law.level)} interval"]


def other_method_rows(law: Law) -> list[list[str]]:
    """One row per method: its exponents, and its rate in the middle of the law's slices."""
    own = [law.method, str(sum(s.used for s in law.slices))]
    own += [f"{e.value:.3f}" + _ends((e.low, e.high)) for e in (law.exponents[n] for n in law.covariates)]
    rows = [[*own, format_number(law.interval_at(law.middle)[0]), "this law"]]
    for other in law.beside:
        exponents = [
            f"{other.exponents[n]:.3f}" + _ends(other.intervals.get(n)) if n in other.exponents else "-"
            for n in law.covariates
        ]
        rows.append(
            [other.method, str(other.slices), *exponents, format_number(other.lr), other.problem or ""]
        )
    return rows


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def other_method_columns(law: Law) -> list[str]:
    """The header of other_method_rows."""
    return ["method", "slices", *law.covariates, "lr in the middle", ""]


def diagnostic_lines(law: Law) -> list[str]:
    """What is known of a law's priors, basin and bends, and the tests of the law, a line each."""
    return [*prior_lines(law), *basin_lines(law), *bend_lines(law), *evidence_lines(law)]


def evidence_lines(law: Law) -> list[str]:
    """The tests of a law, a line each: fixed exponents, curvature, seeds alone, and slices left out."""
    lines = []
    for name, t in law.fixed_tests.items():
        if t.free is None or t.p_value is None:
            lines.append(f"{name}^{t.fixed:g} is fixed and cannot be tested: {t.problem}")
            continue
        verdict = "the data contradict it" if t.p_value < 1 - law.level else "the data allow it"
        lines.append(
            f"{name}^{t.fixed:g} is fixed; fitted freely it is {t.free.value:.3f} "
            f"({t.free.low:.3f} to {t.free.high:.3f}), p = {t.p_value:.3g}: {verdict}"
        )
    for name, c in law.curvature_tests.items():
        verdict = "a power law may be too simple" if c.p_value < 1 - law.level else "no sign of curvature"
        lines.append(
            f"Curvature in log {name}: {c.value:+.3f} +- {c.se:.3f}, p = {c.p_value:.3g}, "
            f"{format_degrees(c.df)}: {verdict}"
        )
    for name, seeds in law.by_seed.items():
        count = f"{len(seeds.values)} of {seeds.of}" if seeds.of > len(seeds.values) else f"{seeds.of}"
        ends = f"{min(seeds.values.values()):.3f} to {max(seeds.values.values()):.3f}"
        lines.append(
            f"Exponent of {name} from each of {count} seeds alone: {ends}, "
            f"mean {seeds.mean:.3f} ({format_percent(law.level)} interval "
            f"{seeds.low:.3f} to {seeds.high:.3f}, by seed noise alone, without the scatter of slices)"
        )
    if law.leave_one_out:
        lines.append(leave_one_out_line(law))
    return lines


def bend_lines(law: Law) -> list[str]:
    """The bends of the law, a line each."""
    lines = []
    for response, found in {"lr": law, **law.also}.items():
        of = "" if response == "lr" else f" of {response}"
        for name, b in found.bends.items():
            data = (
                "the data alone say nothing"
                if b.data_value is None
                else f"by the data alone {b.data_value:+.3f} +- {b.data_se:.3f}"
            )
            lines.append(
                f"Bend{of} in {name}: {b.value:+.4f} ({b.low:+.4f} to {b.high:+.4f}) per natural log "
                f"squared, prior +- {b.prior_sd:.2g}; {data}"
            )
    return lines


def prior_lines(law: Law) -> list[str]:
    """What each prior on an exponent did to it."""
    return [
        f"Prior {name}={p.mean:g}:{p.sd:g} (a flat part of {format_percent(p.flat_part)}) moved the "
        f"exponent from {p.without:.3f} ({p.without_low:.3f} to {p.without_high:.3f}) to "
        f"{law.exponents[name].value:.3f}"
        for name, p in law.priors.items()
    ]


def basin_lines(law: Law) -> list[str]:
    """The skewed basin in octaves, how its curvature follows the sizes, and the noise of a run."""
    b = law.basin
    if b is None or b.skew is None:
        return []
    octave = math.log(2.0)
    error = b.errors.get("curvature", 0.0)
    curvature = 100 * b.coef[0] * octave**2
    lines = [
        f"Basin: {curvature:.3g}% of the loss at one octave by curvature alone (+- {100 * error:.2g}% of "
        f"that), skew {b.skew * octave:+.2f} +- {b.errors.get('skew', 0.0) * octave:.2f} an octave"
    ]
    if b.bend:
        lines.append(f"Its curvature changes as {curvature_growth(b)}, and so does what a wrong rate costs")
    if b.noise is not None:
        error = b.errors.get("noise", 0.0)
        lines.append(f"Noise of one run: {100 * b.noise:.2g}% of the loss (+- {100 * error:.2g}% of that)")
    return lines


def curvature_growth(basin: BasinRecord) -> str:
    """The powers of the sizes that the curvature follows, with their standard errors where known."""
    return ", ".join(
        f"{n}^{e:.2f}" + (f" +- {basin.bend_errors[n]:.2f}" if n in basin.bend_errors else "")
        for n, (e, _) in basin.bend.items()
    )


def leave_one_out_line(law: Law) -> str:
    """Median and largest error of predicting a slice from the others, in the rate and in the loss."""
    errors = sorted(abs(math.expm1(o.error)) for o in law.leave_one_out)
    text = (
        "Each slice predicted from the others: the rate is off by "
        f"{100 * median(errors):.1f}% in the median, {100 * errors[-1]:.1f}% at most"
    )
    costs = sorted(o.loss_penalty for o in law.leave_one_out if o.loss_penalty is not None)
    if costs:
        middle, worst = 100 * median(costs), 100 * costs[-1]
        text += f"; this costs {middle:.3f}% of the loss in the median, {worst:.3f}% at most"
    return text


def scatter_line(law: Law) -> str:
    """The scatter of a law in one line: between slices, of one slice's optimum, and about the line."""
    between, own, total = (f"{v:.3f}" for v in (law.tau, law.slice_sd, law.residual_sd))
    if law.rate_sd is not None:
        return f"Fitted in linear space: the rates scatter about the curve by {law.rate_sd:.3g}."
    if law.tau_interval is not None:
        low, high = law.tau_interval
        between += f" ({low:.3f} to {high:.3f})"
    return (
        f"Scatter in ln(lr): between slices {between}, of one slice's optimum {own}, about the line {total}."
    )


def count_line(law: Law) -> str:
    """How many slices the law uses, and how many of them are one-sided, or its degrees of freedom."""
    used = sum(s.used for s in law.slices)
    if law.posterior is None:
        return f"{used} slices, {format_degrees(law.df)}"
    sided = sum(s.one_sided for s in law.slices)
    return f"{used} slices" + (f", {sided} of them one-sided" if sided else "")


def show_law(law: Law) -> None:
    """Print a fitted law, what tests it, and what it excluded."""
    used = [s for s in law.slices if s.used]
    print(f"{formula(law)}   ({context_text(law.context)})")
    for name in law.also:
        print(formula(law, name))
    window = f", window {law.window:g} octaves each side" if law.method == "two-stage" else ""
    print(f"{count_line(law)}, {law.method} in {law.space} space{window}\n")
    show_table("Exponents", exponent_columns(law), exponent_rows(law))
    if law.also:
        show_table(
            "Exponents of what was tuned together with the rate",
            tuned_with_lr_columns(law),
            tuned_with_lr_rows(law),
        )
    if law.beside:
        show_table("Other methods on the same slices", other_method_columns(law), other_method_rows(law))
    names = changing_columns(used)
    columns = slice_columns(names, law.level, law.over[1:], has_shares(used))
    show_table("Slices used", columns, slice_rows(used, names))
    names = changing_columns(law.slices)
    excluded = excluded_rows(law, names)
    if excluded:
        show_table("Slices excluded", [*names, "state", "reason"], excluded)
    print("\n".join([scatter_line(law), *diagnostic_lines(law)]))
    for line in law.warnings:
        print(f"warning: {line}")
