"""Hydra overrides: expanding comma choices, and writing values so that they read back."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from hyperp.suggestions import parse_overrides

PLAIN_STRING = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
NOT_A_STRING = {"true", "false", "null", "nan", "inf"}  # to Hydra's grammar, unless quoted


def expand_choices(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield every combination of comma choices (`seed=0,1`, `seed=range(0,3)`).

    Raises ValueError for a sweep without a finite list of values (`interval`), and for `glob`.
    """
    variants = []
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            variants.append([override.input_line])
            continue
        if not override.is_discrete_sweep() or "glob(" in str(override.input_line):
            raise ValueError(
                f"{override.input_line}: a plan takes lists of values, such as key=a,b or key=range(0,3)"
            )
        key = override.get_key_element()
        variants.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    for combination in itertools.product(*variants):
        yield list(combination)


def format_override(key: str, value: Any) -> str:
    """`key=value`, written so that Hydra reads back the same value and type."""
    return f"{key}={_format_value(value)}"


def _format_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = PLAIN_STRING.fullmatch(value) and value.lower() not in NOT_A_STRING
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(_format_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_format_value(item)}' for key, item in value.items())}}}"
    raise ValueError(f"a value must be a number, text, true, false, null, a list or a mapping, got {value!r}")
