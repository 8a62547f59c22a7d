"""How each answer looks when a person asked for it."""

import math
from typing import TYPE_CHECKING

from hyperp.analysis.law.schema import Law, SliceRecord
from hyperp.analysis.queries.recommend import Recommendation, published_exponents
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.wording import format_degrees, format_interval, format_number, format_percent

if TYPE_CHECKING:  # these pull in pandas, which a recommendation does without
    from hyperp.analysis.queries.check import TableCheck
    from hyperp.analysis.queries.next_runs import NextRuns
    from hyperp.analysis.queries.validate import Validation

PUBLISHED = "published, not used"
STATE_WORDS = {
    "bracketed": "bracketed",
    "edge_low": "edge low",
    "edge_high": "edge high",
    "too_few_rates": "too few rates",
    "not_convex": "not convex",
}


def cell(value: float | str) -> str:
    """A size without an exponent where that reads well."""
    if isinstance(value, float):
        return f"{value:.0f}" if value == value // 1 and abs(value) < 1e6 else f"{value:.6g}"
    return str(value)


def changing_columns(slices: list[SliceRecord]) -> list[str]:
    """Context columns and covariates with more than one value among the slices."""
    if not slices:
        return []
    names = [*slices[0].context, *slices[0].covariates]
    values = [{**s.context, **s.covariates} for s in slices]
    return [n for n in names if len({v[n] for v in values}) > 1]


def slice_rows(slices: list[SliceRecord], names: list[str]) -> list[list[str]]:
    """One row a slice: what tells it apart, counts, state, optimum with interval."""
    rows = []
    for s in slices:
        values = {**s.context, **s.covariates}
        dropped = ", ".join(f"{count} {status}" for status, count in s.dropped.items()) or "-"
        o = s.optimum
        optimum = ["-", "-"]
        if o is not None:
            optimum = [format_number(o.lr), "unknown" if o.se is None else format_interval(o.low, o.high)]
        counts = [
            str(len({p.lr for p in s.points})),
            str(max((p.seeds for p in s.points), default=0)),
            dropped,
        ]
        rows.append([*(cell(values[n]) for n in names), *counts, STATE_WORDS[s.state], *optimum])
    return rows


SLICE_COLUMNS = ["rates", "seeds", "dropped", "state", "optimum", f"{format_percent()} interval"]


def show_check(answer: "TableCheck") -> None:
    """Print what `check` found."""
    print(
        f"{answer.records}: {answer.rows} rows: " + ", ".join(f"{n} {s}" for s, n in answer.statuses.items())
    )
    names = changing_columns(answer.slices)
    count = len(answer.slices)
    show_table(
        f"{count} slice{'' if count == 1 else 's'}",
        [*names, *SLICE_COLUMNS],
        slice_rows(answer.slices, names),
    )
    for s in (s for s in answer.slices if s.optimum is None):
        values = {**s.context, **s.covariates}
        where = ", ".join(f"{n} {values[n]}" for n in names) or "the slice"
        add = f"; add the rates {', '.join(format_number(r) for r in s.next_rates)}" if s.next_rates else ""
        print(f"{where}: {s.reason}{add}")
    rows = [
        [v.covariate, "yes" if v.identified else "no", "; ".join(v.groups) if v.identified else str(v.reason)]
        for v in answer.identifiable
    ]
    for line in answer.warnings:
        print(f"warning: {line}")
    show_table(
        "Exponents that --by could fit", ["covariate", "identified", "groups of slices, or why not"], rows
    )


def exponent_rows(law: Law) -> list[list[str]]:
    """One row a covariate: measured or fixed exponent, interval, and what was published."""
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
            [name, *measured, f"{cell(low)} to {cell(high)}", "; ".join(published_exponents(name)) or "-"]
        )
    return rows


def exponent_columns(law: Law) -> list[str]:
    """The header of exponent_rows."""
    ends = f"{format_percent(law.level)} interval"
    return ["covariate", "exponent", "SE", ends, "fitted range", PUBLISHED]


def formula(law: Law, response: str = "lr") -> str:
    """The law with its numbers, such as lr = 3.1 tokens^-0.52."""
    found = law if response == "lr" else law.also[response]
    exponents = {n: e.value for n, e in found.exponents.items()}
    exponents |= law.fixed if response == "lr" else {}
    powers = " ".join(f"{n}^{b:.3f}" for n, b in exponents.items())
    return f"{response} = {math.exp(found.a.value):.4g} {powers}"


def context_text(context: dict[str, str]) -> str:
    """The context columns that say something, or that none does."""
    return ", ".join(v for v in context.values() if v) or "runs that are not told apart"


def also_rows(law: Law) -> list[list[str]]:
    """One row an exponent of what was tuned beside the rate."""
    return [
        [name, n, f"{e.value:.3f}", f"{e.se:.3f}", f"{e.low:.3f} to {e.high:.3f}"]
        for name, found in law.also.items()
        for n, e in found.exponents.items()
    ]


def also_columns(law: Law) -> list[str]:
    """The header of also_rows."""
    return ["tuned beside lr", "covariate", "exponent", "SE", f"{format_percent(law.level)} interval"]


def beside_rows(law: Law) -> list[list[str]]:
    """One row a method: its exponents and its rate in the middle of the law's slices."""
    own = [law.method, str(sum(s.used for s in law.slices))]
    own += [f"{law.exponents[n].value:.3f}" for n in law.covariates]
    rows = [[*own, format_number(_middle_rate(law)), "this law"]]
    for other in law.beside:
        exponents = [f"{other.exponents[n]:.3f}" if n in other.exponents else "-" for n in law.covariates]
        rows.append(
            [other.method, str(other.slices), *exponents, format_number(other.lr), other.problem or ""]
        )
    return rows


def _middle_rate(law: Law) -> float:
    return law.interval_at(law.middle)[0]


def beside_columns(law: Law) -> list[str]:
    """The header of beside_rows."""
    return ["method", "slices", *law.covariates, "lr in the middle", ""]


def test_lines(law: Law) -> list[str]:
    """What was tested: fixed exponents, curvature, and each slice left out."""
    lines = []
    for name, t in law.fixed_tests.items():
        if t.free is None or t.p_value is None:
            lines.append(f"{name}^{t.fixed:g} is held and cannot be tested: {t.problem}")
            continue
        verdict = "the data speak against it" if t.p_value < 1 - law.level else "the data allow it"
        lines.append(
            f"{name}^{t.fixed:g} is held; free it would be {t.free.value:.3f} "
            f"({t.free.low:.3f} to {t.free.high:.3f}), p = {t.p_value:.3g}: {verdict}"
        )
    for name, c in law.curvature_tests.items():
        verdict = "a power law may be too simple" if c.p_value < 1 - law.level else "no sign of a bend"
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
            f"{seeds.low:.3f} to {seeds.high:.3f})"
        )
    if law.leave_one_out:
        lines.append(left_out_line(law))
    return lines


def left_out_line(law: Law) -> str:
    """Median and largest error of predicting a slice from the others, in the rate and in the loss."""
    errors = sorted(abs(math.expm1(o.error)) for o in law.leave_one_out)
    text = (
        f"Each slice predicted from the others: rate off by {100 * _median(errors):.1f}% in the median, "
        f"{100 * errors[-1]:.1f}% at most"
    )
    costs = sorted(o.loss_penalty for o in law.leave_one_out if o.loss_penalty is not None)
    if costs:
        middle, worst = 100 * _median(costs), 100 * costs[-1]
        text += f"; that costs {middle:.3f}% of the loss in the median, {worst:.3f}% at most"
    return text


def _median(values: list[float]) -> float:
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def scatter_line(law: Law) -> str:
    """The three scatters of a law in one line."""
    between, own, total = (f"{v:.3f}" for v in (law.tau, law.slice_sd, law.residual_sd))
    if law.rate_sd is not None:
        return f"Fitted in linear space: the rates scatter about the curve by {law.rate_sd:.3g}."
    return (
        f"Scatter in ln(lr): between slices {between}, of one slice's optimum {own}, about the line {total}."
    )


def excluded_rows(law: Law, names: list[str]) -> list[list[str]]:
    """One row a slice that the law does not use: what tells it apart, its state, and why."""
    out = [s for s in law.slices if not s.used]
    values = [{**s.context, **s.covariates} for s in out]
    return [
        [*(cell(v[n]) for n in names), STATE_WORDS[s.state], str(s.reason)]
        for s, v in zip(out, values, strict=True)
    ]


def show_law(law: Law) -> None:
    """Print a fitted law, what tests it, and what it excluded."""
    used = [s for s in law.slices if s.used]
    print(f"{formula(law)}   ({context_text(law.context)})")
    for name in law.also:
        print(formula(law, name))
    window = f", window {law.window:g} octaves each side" if law.method == "two-stage" else ""
    print(f"{len(used)} slices, {format_degrees(law.df)}, {law.method} in {law.space} space{window}\n")
    show_table("Exponents", exponent_columns(law), exponent_rows(law))
    if law.also:
        show_table("Exponents of what was tuned beside the rate", also_columns(law), also_rows(law))
    if law.beside:
        show_table("Beside other methods", beside_columns(law), beside_rows(law))
    names = changing_columns(used)
    show_table("Slices used", [*names, *SLICE_COLUMNS], slice_rows(used, names))
    names = changing_columns(law.slices)
    excluded = excluded_rows(law, names)
    if excluded:
        show_table("Slices excluded", [*names, "state", "reason"], excluded)
    print("\n".join([scatter_line(law), *test_lines(law)]))
    for line in law.warnings:
        print(f"warning: {line}")


FACTOR_COLUMNS = ["factor", "value", "exponent", "interval", "contribution", "fitted range", PUBLISHED]


def factor_rows(answer: Recommendation) -> list[list[str]]:
    """One row a factor of a recommended rate; the rate is the product of the contributions."""
    rows = []
    for f in answer.factors:
        exponent = "-" if f.exponent is None else f"{f.exponent:.3f}" + (" (fixed)" if f.fixed else "")
        out = next((e.factor for e in answer.extrapolation if e.covariate == f.name), None)
        reach = "-" if out is None else ("inside" if out == 1 else f"{out:.3g} x outside")
        ends = "-" if f.low is None else format_interval(f.low, f.high)
        published = "; ".join(f.published) or "-"
        value = "-" if f.value is None else cell(f.value)
        rows.append([f.name, value, exponent, ends, format_number(f.contribution), reach, published])
    return rows


def recommendation_lines(law: Law, answer: Recommendation) -> list[str]:
    """The rate, its interval, and the base rate where that is known."""
    target = ", ".join(f"{n}={cell(answer.target[n])}" for n in law.ranges)
    ends = f"{answer.low:.4g} to {answer.high:.4g}"
    lines = [
        f"lr = {answer.lr:.4g}   for {target}; {context_text(answer.context)}",
        f"{format_percent(answer.level)} prediction interval {ends}, {format_degrees(answer.df)}",
    ]
    for name, b in answer.also.items():
        lines.append(f"{name} = {b.value:.4g}, interval {b.low:.4g} to {b.high:.4g}")
    if answer.penalty_low is not None and answer.penalty_high is not None:
        low, high = (f"{100 * p:.2g}%" for p in (answer.penalty_low, answer.penalty_high))
        lines.append(
            f"This rate costs {low} of the loss if the best one lies at the lower end, {high} at the upper"
        )
    if answer.base_lr is not None:
        factor = "every factor is 1" if answer.rate_factor == 1 else f"lr/base_lr = {answer.rate_factor:g}"
        lines.append(
            f"base_lr = {answer.base_lr:.4g} in the parametrization of the fitted runs, where {factor}"
        )
    return lines


def show_recommendation(law: Law, answer: Recommendation) -> None:
    """Print a recommended rate with its interval and factors."""
    print("\n".join(recommendation_lines(law, answer)) + "\n")
    title = f"Factors; the rate is the product of the contributions; intervals {format_percent(answer.level)}"
    show_table(title, FACTOR_COLUMNS, factor_rows(answer))


def show_next(law: Law, answer: "NextRuns") -> None:
    """Print the slices to run and what they would do to the interval at the target."""
    target = ", ".join(f"{n}={cell(v)}" for n, v in answer.target.items())
    print(f"At {target} the {format_percent(law.level)} interval now spans a factor of {answer.width:.3g}.")
    for point in answer.bracket:
        sizes = ", ".join(f"{n} {cell(point[n])}" for n in law.ranges)
        print(f"{sizes} has no optimum yet; add the rates {', '.join(format_number(r) for r in point['lr'])}")
    rows = [
        [
            *(cell(c.covariates[n]) for n in law.covariates),
            f"{format_number(c.rates[0])} to {format_number(c.rates[-1])}, {len(c.rates)} rates",
            str(c.seeds),
            "-" if c.cost is None else f"{c.cost:.3g}",
            f"{c.width:.3g}",
        ]
        for c in answer.choices
    ]
    columns = [
        *law.covariates,
        "rates",
        "seeds",
        "cost, in the dearest slice's",
        "interval then, a factor of",
    ]
    show_table("Slices to run next", columns, rows)


VALIDATION_COLUMNS = [
    "lr",
    "rate",
    "seeds",
    "mean loss",
    "SD over seeds",
    "recommended less this",
    "allowed",
    "",
]


def validation_rows(answer: "Validation") -> list[list[str]]:
    """One row a rate: its mean loss and the comparison with the recommended one."""
    rows = []
    for r in answer.rows:
        mark = "recommended" if r.recommended else f"{r.ratio:.3g} x"
        loss = "-" if r.mean_loss is None else f"{r.mean_loss:.4f}"
        sds = [format_number(r.loss_sd, 2), format_number(r.difference, 3), format_number(r.allowed, 2)]
        rows.append([format_number(r.lr), mark, str(r.seeds), loss, *sds, r.note])
    return rows


def show_validation(answer: "Validation") -> None:
    """Print the losses at each rate and the verdict."""
    show_table("Mean losses", VALIDATION_COLUMNS, validation_rows(answer))
    print(f"Rule: {answer.rule}; spread from {answer.spread_from}.")
    print(answer.verdict)
