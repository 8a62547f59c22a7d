"""How each answer looks when a person asked for it."""

import math
from typing import TYPE_CHECKING

from hyperp.analysis.console import interval, number, percent, show_table
from hyperp.analysis.law import Law, SliceRecord
from hyperp.analysis.recommend import Recommendation, published_lines

if TYPE_CHECKING:  # these pull in pandas, which a recommendation does without
    from hyperp.analysis.check import Check
    from hyperp.analysis.transfer import Transfer
    from hyperp.analysis.validate import Validation

PUBLISHED = "published, not used"
STATE_WORDS = {
    "bracketed": "bracketed",
    "edge_low": "edge low",
    "edge_high": "edge high",
    "too_few_rates": "too few rates",
    "not_convex": "not convex",
}


def changing_columns(slices: list[SliceRecord]) -> list[str]:
    """Context columns and covariates with more than one value among the slices."""
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
            optimum = [number(o.lr), "unknown" if o.se is None else interval(o.low, o.high)]
        counts = [str(len(s.points)), str(max((p.seeds for p in s.points), default=0)), dropped]
        rows.append([*(str(values[n]) for n in names), *counts, STATE_WORDS[s.state], *optimum])
    return rows


SLICE_COLUMNS = ["rates", "seeds", "dropped", "state", "optimum", "95% interval"]


def show_check(answer: "Check") -> None:
    """Print what `check` found."""
    print(
        f"{answer.records}: {answer.rows} rows: " + ", ".join(f"{n} {s}" for s, n in answer.statuses.items())
    )
    names = changing_columns(answer.slices)
    show_table(f"{len(answer.slices)} slices", [*names, *SLICE_COLUMNS], slice_rows(answer.slices, names))
    for s in (s for s in answer.slices if s.optimum is None):
        values = {**s.context, **s.covariates}
        where = ", ".join(f"{n} {values[n]}" for n in names) or "the slice"
        add = f"; add the rates {', '.join(number(r) for r in s.next_rates)}" if s.next_rates else ""
        print(f"{where}: {s.reason}{add}")
    rows = [
        [v.covariate, "yes" if v.identified else "no", "; ".join(v.groups) if v.identified else str(v.reason)]
        for v in answer.identifiable
    ]
    show_table(
        "Exponents that --by could fit", ["covariate", "identified", "groups of slices, or why not"], rows
    )


def exponent_rows(law: Law) -> list[list[str]]:
    """One row a covariate: measured or fixed exponent, interval, and what was published."""
    rows = []
    for name in law.ranges:
        e = law.exponents.get(name)
        measured = (
            [f"{law.fixed[name]:g} (fixed)", "-", "-"]
            if e is None
            else [f"{e.value:.3f}", f"{e.se:.3f}", f"{e.low:.3f} to {e.high:.3f}"]
        )
        low, high = law.ranges[name]
        rows.append([name, *measured, f"{low} to {high}", "; ".join(published_lines(name)) or "-"])
    return rows


def exponent_columns(law: Law) -> list[str]:
    """The header of exponent_rows."""
    ends = f"{percent(law.level)} interval"
    return ["covariate", "exponent", "SE", ends, "fitted range", PUBLISHED]


def formula(law: Law) -> str:
    """The law with its numbers, such as lr = 3.1 tokens^-0.52."""
    exponents = {**{n: law.exponents[n].value for n in law.covariates}, **law.fixed}
    return f"lr = {math.exp(law.a.value):.4g} " + " ".join(f"{n}^{b:.3f}" for n, b in exponents.items())


def scatter_line(law: Law) -> str:
    """The three scatters of a law in one line."""
    between, own, total = (f"{v:.3f}" for v in (law.tau, law.slice_sd, law.residual_sd))
    return (
        f"Scatter in ln(lr): between slices {between}, of one slice's optimum {own}, about the line {total}."
    )


def excluded_rows(law: Law, names: list[str]) -> list[list[str]]:
    """One row a slice that the law does not use: what tells it apart, its state, and why."""
    out = [s for s in law.slices if not s.used]
    values = [{**s.context, **s.covariates} for s in out]
    return [
        [*(str(v[n]) for n in names), STATE_WORDS[s.state], str(s.reason)]
        for s, v in zip(out, values, strict=True)
    ]


def show_law(law: Law) -> None:
    """Print a fitted law and what it excluded."""
    used = [s for s in law.slices if s.used]
    print(f"{formula(law)}   ({', '.join(law.context.values())})")
    print(f"{len(used)} slices, {law.df} degrees of freedom, window {law.window:g} octaves each side\n")
    show_table("Exponents", exponent_columns(law), exponent_rows(law))
    names = changing_columns(used)
    show_table("Slices used", [*names, *SLICE_COLUMNS], slice_rows(used, names))
    names = changing_columns(law.slices)
    excluded = excluded_rows(law, names)
    if excluded:
        show_table("Slices excluded", [*names, "state", "reason"], excluded)
    print(scatter_line(law))


FACTOR_COLUMNS = ["factor", "value", "exponent", "interval", "contribution", "fitted range", PUBLISHED]


def factor_rows(answer: Recommendation) -> list[list[str]]:
    """One row a factor of a recommended rate; the rate is the product of the contributions."""
    rows = []
    for f in answer.factors:
        exponent = "-" if f.exponent is None else f"{f.exponent:.3f}" + (" (fixed)" if f.fixed else "")
        out = next((e.factor for e in answer.extrapolation if e.covariate == f.name), None)
        reach = "-" if out is None else ("inside" if out == 1 else f"{out:.3g} x outside")
        ends = "-" if f.low is None else interval(f.low, f.high)
        published = "; ".join(f.published) or "-"
        rows.append([f.name, str(f.value or "-"), exponent, ends, number(f.contribution), reach, published])
    return rows


def recommendation_lines(law: Law, answer: Recommendation) -> list[str]:
    """The rate, its interval, and the base rate where that is known."""
    target = ", ".join(f"{n}={answer.target[n]}" for n in law.ranges)
    ends = f"{answer.low:.4g} to {answer.high:.4g}"
    lines = [
        f"lr = {answer.lr:.4g}   for {target}; {', '.join(answer.context.values())}",
        f"{percent(answer.level)} prediction interval {ends}, {answer.df} degrees of freedom",
    ]
    if answer.base_lr is not None:
        factor = "every factor is 1" if answer.rate_factor == 1 else f"lr/base_lr = {answer.rate_factor:g}"
        lines.append(
            f"base_lr = {answer.base_lr:.4g} in the parametrization of the fitted runs, where {factor}"
        )
    return lines


def show_recommendation(law: Law, answer: Recommendation) -> None:
    """Print a recommended rate with its interval and factors."""
    print("\n".join(recommendation_lines(law, answer)) + "\n")
    title = f"Factors; the rate is the product of the contributions; intervals {percent(answer.level)}"
    show_table(title, FACTOR_COLUMNS, factor_rows(answer))


TRANSFER_COLUMNS = [
    "optimizer",
    "parametrization",
    "held",
    "optima",
    "octaves per doubling",
    "95% interval",
    "loss penalty",
]


def transfer_rows(answers: "list[Transfer]") -> list[list[str]]:
    """One row a context: optima along the axis, drift with interval, penalty."""
    rows = []
    for t in answers:
        optima = ", ".join(f"{p.value}: {number(p.lr) if p.lr else STATE_WORDS[p.state]}" for p in t.points)
        d, p = t.drift, t.penalty
        drift = [str(t.problem), "-"]
        if d is not None:
            ends = "unknown" if d.low is None or d.high is None else f"{d.low:+.2f} to {d.high:+.2f}"
            drift = [f"{d.octaves_per_doubling:+.2f}", ends]
        penalty = "-" if p is None else f"{p.nats:.4f} nats ({p.percent:.2f}%)"
        held = ", ".join(f"{n} {t.held[n]}" for n in ("width", "depth", "tokens") if n in t.held)
        rows.append([t.context["optimizer"], t.context["parametrization"], held, optima, *drift, penalty])
    return rows


def show_transfer(over: str, answers: "list[Transfer]") -> None:
    """Print drift and penalty for every context."""
    show_table(f"Transfer over {over}", TRANSFER_COLUMNS, transfer_rows(answers))
    print(f"Loss penalty: what training at the largest {over} costs with the optimum of the smallest.")


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
        sds = [number(r.loss_sd, 2), number(r.difference, 3), number(r.allowed, 2)]
        rows.append([number(r.lr), mark, str(r.seeds), loss, *sds, r.note])
    return rows


def show_validation(answer: "Validation") -> None:
    """Print the losses at each rate and the verdict."""
    show_table("Mean losses", VALIDATION_COLUMNS, validation_rows(answer))
    print(f"Rule: {answer.rule}; spread from {answer.spread_from}.")
    print(answer.verdict)
