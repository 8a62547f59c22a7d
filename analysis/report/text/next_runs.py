"""Print the runs that would narrow an interval, and what they are worth."""

from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.next_runs import NextRuns
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.report.text.slices import format_value
from hyperp.analysis.wording import format_number, format_percent

VALUE_COLUMNS = [
    "saves of the loss",
    "FLOPs",
    "saves for 1e18 FLOPs",
    "the same FLOPs in the run itself save",
    "worth it",
]


def show_next_runs(law: Law, answer: NextRuns) -> None:
    """Print the slices to run next and the interval at the target that each would leave."""
    target = ", ".join(f"{n}={format_value(v)}" for n, v in answer.target.items())
    print(f"At {target} the {format_percent(law.level)} interval now spans a factor of {answer.width:.3g}.")
    for point in answer.bracket:
        sizes = ", ".join(f"{n} {format_value(point[n])}" for n in law.ranges)
        print(f"{sizes} has no optimum yet; add the rates {', '.join(format_number(r) for r in point['lr'])}")
    rows = [
        [
            *(format_value(c.covariates[n]) for n in law.covariates),
            f"{format_number(c.rates[0])} to {format_number(c.rates[-1])}, {len(c.rates)} rates",
            *(format_value(v) for v in c.also.values()),
            str(c.seeds),
            "-" if c.cost is None else f"{c.cost:.3g}",
            f"{c.width:.3g}",
        ]
        for c in answer.choices
    ]
    columns = [
        *law.covariates,
        "rates",
        *law.also,
        "seeds",
        "cost (dearest slice = 1)",
        "interval afterwards, a factor of",
    ]
    show_table("Slices to run next", columns, rows)


def require_value(law: Law, answer: NextRuns) -> None:
    """Raise ValueError if the law has no basin, so that no saving in loss is known."""
    if answer.value is None:
        raise ValueError(
            "--value needs a law with a basin, as of runs with losses, which says what a miss costs; got a "
            f"law of method {law.method} without one"
        )


def value_lines(answer: NextRuns) -> list[str]:
    """What is to be saved at the target, and whether the slices are worth it."""
    total = answer.value
    if total is None:
        return []
    lines = [
        f"The recommended rate is expected to cost {_percent(total.excess)} of the loss at the target; "
        f"{_percent(total.scatter)} of it is scatter of that optimum, which no slice can save."
    ]
    worth = [c.value.worth for c in answer.choices if c.value is not None]
    if any(one is None for one in worth):
        lines.append(
            "Whether a slice is worth its FLOPs is not known, since the law's sizes do not tell them: that "
            "needs tokens, and parameters or width."
        )
    elif worth and not any(worth):
        lines.append(
            f"No slice is worth its FLOPs for one run at the target: added to that run ({total.flops:.3g} "
            f"FLOPs) they would save more, if its loss falls as compute^-{total.gain:g} (--gain)."
        )
    elif worth:
        lines.append(
            "A slice is worth its FLOPs if they would save less when added to one run at the target "
            f"({total.flops:.3g} FLOPs), whose loss is taken to fall as compute^-{total.gain:g} (--gain)."
        )
    return lines


def value_rows(law: Law, answer: NextRuns) -> list[list[str]]:
    """One row for each slice: its sizes, and what it saves after those before it."""
    rows = []
    for choice in answer.choices:
        if (v := choice.value) is None:
            continue
        nats = "" if v.saving_nats is None else f" (about {v.saving_nats:.2g} nats)"
        rows.append(
            [
                *(format_value(choice.covariates[n]) for n in law.covariates),
                _percent(v.saving) + nats,
                "-" if v.flops is None else f"{v.flops:.3g}",
                "-" if v.saving_per_1e18 is None else _percent(v.saving_per_1e18),
                "-" if v.same_flops is None else _percent(v.same_flops),
                {True: "yes", False: "no", None: "not known"}[v.worth],
            ]
        )
    return rows


def show_value(law: Law, answer: NextRuns) -> None:
    """Print what the slices are worth."""
    show_table("Expected saving at the target", [*law.covariates, *VALUE_COLUMNS], value_rows(law, answer))
    print("\n".join(value_lines(answer)))


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
