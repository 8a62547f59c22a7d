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
    evaluated = [row for row in rows if row.lr is not None]
    counted = [row for row in evaluated if row.starts_from is None]
    scaled = _scaled_words([row for row in evaluated if row.starts_from is not None])
    opinions = _opinions(counted)
    rates = {row.law.id: row.lr for row in counted if row.lr is not None}
    if not rates:
        which = f"independent law of {plan.optimizer}" if scaled else f"law of {plan.optimizer}"
        words = [f"No {which} could be evaluated; more sizes or a reference may help", *scaled]
        return words + [f"{one.name} says {format_number(one.lr)}" for one in own]
    words = [_spread_words(counted, list(rates.values()), plan.optimizer), *scaled]
    if plan.lr is not None:
        words.append(f"The planned rate of {format_number(plan.lr)} {_place(plan.lr, rates)}")
    for one in own:
        words.append(f"{one.name} says {format_number(one.lr)}, which {_place(one.lr, rates)}")
        inside = sum(all(one.low <= rate <= one.high for rate in of) for of in opinions)
        interval = format_interval(one.low, one.high)
        words.append(f"{inside} of {len(opinions)} lie in the interval of {one.name}, {interval}")
    words += _exponent_words([row.law for row in evaluated])
    far = {row.law.id: row.farthest for row in rows if row.lr is not None and (row.farthest or 0) > FAR}
    if far:
        names = ", ".join(f"{name} ({factor:.3g} times)" for name, factor in far.items())
        words.append(f"More than {FAR:g} times beyond their range: {names}")
    return words


def _opinions(rows: "Sequence[Row]") -> list[list[float]]:
    """The rates of each law by itself, and those of all rules together, as they share one reference."""
    laws = [[row.lr] for row in rows if row.law.kind != "rule" and row.lr is not None]
    rules = [row.lr for row in rows if row.law.kind == "rule" and row.lr is not None]
    return [*laws, rules] if rules else laws


def _spread_words(rows: "Sequence[Row]", rates: Sequence[float], optimizer: str) -> str:
    low, high = min(rates), max(rates)
    rules = sum(row.law.kind == "rule" for row in rows)
    if len(rows) == 1:
        return f"One law of {optimizer} says {format_number(low)}"
    between = f"{format_interval(low, high)}, {high / low:.3g} times apart"
    if rules < 2:
        return f"{len(rows)} laws of {optimizer} say {between}"
    together = f"{rules} rules about one reference, which count as one,"
    laws = len(rows) - rules
    if not laws:
        return f"{together} say {between}"
    return f"{laws} {'law' if laws == 1 else 'laws'} of {optimizer} and {together} say {between}"


def _scaled_words(rows: "Sequence[Row]") -> list[str]:
    """What the rules say that scale an own law, apart, since they would only confirm it."""
    if not rows:
        return []
    rates = [row.lr for row in rows if row.lr is not None]
    names = ", ".join(row.law.id for row in rows)
    low, high = min(rates), max(rates)
    span = format_number(low) if high <= low * SAME else format_interval(low, high)
    return [f"Not counted, since they start from {rows[0].starts_from} itself: {names}, {span}"]


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
