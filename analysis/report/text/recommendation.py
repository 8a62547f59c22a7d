"""Print a recommended rate, and whether it held."""

from typing import TYPE_CHECKING

from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import Recommendation
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.report.text.law import PUBLISHED_COLUMN, context_text
from hyperp.analysis.report.text.slices import format_value
from hyperp.analysis.wording import format_degrees, format_interval, format_number, format_percent

if TYPE_CHECKING:  # imports pandas, which a recommendation does without
    from hyperp.analysis.queries.validate import Validation

FACTOR_COLUMNS = ["factor", "value", "exponent", "interval", "contribution", "fitted range", PUBLISHED_COLUMN]

SHARE_NAMES = {
    "coefficients": "the power law's coefficients",
    "scatter": "scatter of slices about it",
    "bend": "how far the law may bend",
    "shape": "basin and noise",
}


def factor_rows(answer: Recommendation) -> list[list[str]]:
    """One row per factor of a recommended rate; the rate is the product of the contributions."""
    rows = []
    for f in answer.factors:
        exponent = "-" if f.exponent is None else f"{f.exponent:.3f}" + (" (fixed)" if f.fixed else "")
        out = next((e.factor for e in answer.extrapolation if e.covariate == f.name), None)
        reach = "-" if out is None else ("inside" if out == 1 else f"{out:.3g} x outside")
        ends = "-" if f.low is None else format_interval(f.low, f.high)
        published = "; ".join(f.published) or "-"
        value = "-" if f.value is None else format_value(f.value)
        rows.append([f.name, value, exponent, ends, format_number(f.contribution), reach, published])
    return rows


def recommendation_lines(law: Law, answer: Recommendation) -> list[str]:
    """The rate, its interval, its cost at the ends of the interval, and the base rate where that is known."""
    target = ", ".join(f"{n}={format_value(answer.target[n])}" for n in law.ranges)
    ends = f"{answer.low:.4g} to {answer.high:.4g}"
    slices = sum(s.used for s in law.slices)
    known = f"{slices} slices" if law.posterior is not None else format_degrees(answer.df)
    lines = [
        f"lr = {answer.lr:.4g}   for {target}; {context_text(answer.context)}",
        f"{format_percent(answer.level)} prediction interval {ends}, {known}",
    ]
    for name, b in answer.also.items():
        lines.append(f"{name} = {b.value:.4g}, interval {b.low:.4g} to {b.high:.4g}")
    if answer.penalty_low is not None and answer.penalty_high is not None:
        low, high = (f"{100 * p:.2g}%" for p in (answer.penalty_low, answer.penalty_high))
        lines.append(
            f"This rate costs {low} of the loss if the best one lies at the lower end, {high} at the upper"
        )
    if answer.shares is not None:
        parts = ", ".join(f"{SHARE_NAMES[n]} {100 * share:.0f}%" for n, share in answer.shares.items())
        lines.append(f"Where the width of the interval comes from: {parts}")
    for name, factor in answer.form_decides.items():
        lines.append(
            f"Beyond {factor:.3g} times the range in {name} the form of the law, not the data, decides"
        )
    if answer.without_priors is not None:
        p = answer.without_priors
        priors = ", ".join(f"{n}={r.mean:g}:{r.sd:g}" for n, r in law.priors.items())
        lines.append(
            f"Without the prior {priors} the rate is {p.value:.4g} ({p.low:.4g} to {p.high:.4g}): "
            f"the prior moved it by a factor of {answer.lr / p.value:.3g}"
        )
    others = {role: one.lr for role, one in answer.groups.known.items() if one.lr != answer.lr}
    if others:
        rates = ", ".join(f"{role} {lr:.4g}" for role, lr in others.items())
        lines.append(f"This is the rate of the hidden matrices; by the parametrization, {rates}")
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


VALIDATION_COLUMNS = [
    "lr",
    "rate",
    "seeds",
    "mean loss",
    "SD over seeds",
    "recommended minus this",
    "allowed",
    "",
]


def validation_rows(answer: "Validation") -> list[list[str]]:
    """One row per rate: its mean loss and the comparison with the recommended one."""
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
