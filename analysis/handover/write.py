"""Write what a trainer takes: a bash array, TOML or YAML, with a comment where each number comes from.

A comment is for all settings below it, down to the next.
"""

import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from hyperp import __version__
from hyperp.analysis.handover import hf, megatron, nanochat, torchtitan
from hyperp.analysis.handover.base import Handover, Setting, Translation
from hyperp.analysis.handover.facts import Facts, trainer_facts

TRANSLATORS: dict[str, Callable[[Handover], Translation]] = {
    "megatron": megatron.translate,
    "torchtitan": torchtitan.translate,
    "nanochat": nanochat.translate,
    "hf": hf.translate,
}
COLUMNS = 110


def trainer_text(trainer: str, handover: Handover) -> str:
    """The settings of a trainer of TRANSLATORS, with a comment for each, and what it could not take."""
    facts, found = trainer_facts()[trainer], TRANSLATORS[trainer](handover)
    lines = [*_header(facts, handover), ""]
    if trainer == "torchtitan":
        lines += _toml(found.settings)
    elif trainer == "hf":
        lines += _yaml(found.settings)
    else:
        lines += _bash_array(found.settings)
    if found.untranslated:
        lines += ["", "# Not translated:"]
        for line in found.untranslated:
            lines += [f"#   {line}"] if line.startswith("  ") else _comment(line, "# - ")
    return "\n".join(lines)


def _header(facts: Facts, handover: Handover) -> list[str]:
    sizes = ", ".join(f"{name}={value:.10g}" for name, value in handover.sizes.items())
    context = ", ".join(value for value in handover.context.values() if value)
    lines = [
        f"For {facts.title} {facts.version}, by hyperp {__version__}",
        f"Names and defaults are from {facts.source}",
        f"{handover.headline}, at {sizes}",
        f"The law is for {context}" if context else "The law does not say what it is for",
        *(f"warning: {line}" for line in handover.warnings),
    ]
    return [text for line in lines for text in _comment(line, "# ")]


def _comment(text: str, start: str, indent: str = "") -> list[str]:
    after = "#" + " " * (len(start) - 1)
    width = COLUMNS - len(indent)
    folded = textwrap.wrap(text, width, initial_indent=start, subsequent_indent=after, break_long_words=False)
    return [indent + line for line in folded]


def _bash_array(settings: tuple[Setting, ...]) -> Iterator[str]:
    yield "ARGUMENTS=("
    for one, comment in _with_comments(settings, "  "):
        yield from comment
        word = one.name if one.value is True else f"{one.name} {_number(one.value)}"
        yield f"  {'' if one.active else '#'}{word}"
    yield ")"


def _toml(settings: tuple[Setting, ...]) -> Iterator[str]:
    section = None
    for one, comment in _with_comments(settings):
        table, key = one.name.split(".")
        if table != section:
            section = table
            yield f"[{table}]"
        yield from comment
        value = json.dumps(one.value) if isinstance(one.value, str) else _number(one.value)
        yield f"{'' if one.active else '#'}{key} = {value}"


def _yaml(settings: tuple[Setting, ...]) -> Iterator[str]:
    for one, comment in _with_comments(settings):
        yield from comment
        value = json.dumps(one.value) if isinstance(one.value, dict) else _number(one.value)
        yield f"{'' if one.active else '#'}{one.name}: {value}"


def _with_comments(settings: tuple[Setting, ...], indent: str = "") -> Iterator[tuple[Setting, list[str]]]:
    """Every setting with its comment, which is left out where it is that of the setting before."""
    before = None
    for one in settings:
        yield one, [] if one.comment == before else _comment(one.comment, "# ", indent)
        before = one.comment


def _number(value: Any) -> str:
    """A number that bash, TOML and YAML 1.1 all read as one, with six digits if it is not whole."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    digits, _, exponent = text.partition("e")
    whole = digits if "." in digits else f"{digits}.0"
    return f"{whole}e{exponent}" if exponent else whole
