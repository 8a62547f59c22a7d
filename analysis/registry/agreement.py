"""What published laws of one optimizer say together, in words: their spread, and where they agree."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hyperp.analysis.wording import format_interval, format_number

if TYPE_CHECKING:
    from hyperp.analysis.registry.law import PublishedLaw
    from hyperp.analysis.registry.opinion import OwnRate, Plan, Row

SAME = 1.02  # rates within this factor count as the same
FAR = 10.0  # laws that are used further beyond their range than this are named


def opinion_words(rows: "Sequence[Row]", plan: "Plan", own: "Sequence[OwnRate]") -> list[str]:
    """The spread of these rows, where plan and own laws stand in it, and what their exponents agree on."""
    rates = {row.law.id: row.lr for row in rows if row.lr is not None}
    if not rates:
        words = [f"No law of {plan.optimizer} could be evaluated; more sizes or a reference may help"]
        return words + [f"{one.name} says {format_number(one.lr)}" for one in own]
    low, high = min(rates.values()), max(rates.values())
    if len(rates) == 1:
        words = [f"One law of {plan.optimizer} says {format_number(low)}"]
    else:
        between = f"{format_interval(low, high)}, {high / low:.3g} times apart"
        words = [f"{len(rates)} laws of {plan.optimizer} say {between}"]
    if plan.lr is not None:
        words.append(f"The planned rate of {format_number(plan.lr)} {_place(plan.lr, rates)}")
    for one in own:
        words.append(f"{one.name} says {format_number(one.lr)}, which {_place(one.lr, rates)}")
        inside = sum(one.low <= rate <= one.high for rate in rates.values())
        interval = format_interval(one.low, one.high)
        words.append(f"{inside} of {len(rates)} lie in the interval of {one.name}, {interval}")
    words += _exponent_words([row.law for row in rows if row.lr is not None])
    far = {row.law.id: row.farthest for row in rows if row.lr is not None and (row.farthest or 0) > FAR}
    if far:
        names = ", ".join(f"{name} ({factor:.3g} times)" for name, factor in far.items())
        words.append(f"More than {FAR:g} times beyond their range: {names}")
    return words


def _place(rate: float, rates: Mapping[str, float]) -> str:
    """Where a rate lies among these, in words."""
    low, high = min(rates.values()), max(rates.values())
    if rate < low / SAME:
        return f"is {low / rate:.3g} times below {'it' if len(rates) == 1 else 'the lowest of them'}"
    if rate > high * SAME:
        return f"is {rate / high:.3g} times above {'it' if len(rates) == 1 else 'the highest of them'}"
    return "agrees with it" if len(rates) == 1 else "lies among them"


def _exponent_words(laws: "Sequence[PublishedLaw]") -> list[str]:
    """A sentence for each quantity: whether the laws agree on its sign, and which do not have it."""
    if len(laws) < 2:
        return []
    names = dict.fromkeys(name for law in laws for name in law.exponents)
    return [_one_quantity(name, {law.id: law.exponents.get(name) for law in laws}) for name in names]


def _one_quantity(name: str, exponents: "Mapping[str, float | None]") -> str:
    """Such as "All agree that the rate falls with tokens, with exponents from -0.395 to -0.32"."""
    having = {law: exponent for law, exponent in exponents.items() if exponent is not None}
    low, high = min(having.values()), max(having.values())
    which = f"exponent {low:.3g}" if low == high else f"exponents from {low:.3g} to {high:.3g}"
    way = "rises" if low > 0 else "falls"
    if low < 0 < high:
        return f"They disagree on {name}: {which}"
    if len(having) == len(exponents):
        return f"All agree that the rate {way} with {name}, {which}"
    depend = "depends" if len(having) == 1 else "depend"
    return f"Only {' and '.join(having)} {depend} on {name}: the rate {way}, {which}"
