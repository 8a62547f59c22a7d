"""Hydra's override words: expanding comma choices, and writing values so that they read back."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from hyperp.terminal import one_line

# Turns words into a composed configuration, or raises ValueError in one line.
Compose = Callable[[Sequence[str]], DictConfig]

PLAIN_STRING = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
MEANT = "; did you mean "
NOT_A_STRING = {"true", "false", "null", "nan", "inf"}  # to Hydra's grammar, unless quoted


def parse(words: Sequence[str]) -> list[Override]:
    """The words as Hydra understands them. Raises ValueError for one that it does not."""
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise ValueError(one_line(error)) from None


def choices(words: Sequence[str]) -> Iterator[list[str]]:
    """Every combination of comma choices (`seed=0,1`, `seed=range(0,3)`); the words themselves without any.

    Raises ValueError for a sweep without a finite list of values (`interval`), and for `glob`.
    """
    variants = []
    for override in parse(words):
        if not override.is_sweep_override():
            variants.append([override.input_line])
            continue
        if not override.is_discrete_sweep() or "glob(" in str(override.input_line):
            raise ValueError(
                f"{override.input_line}: a plan takes lists of values, such as key=a,b or range(0,3)"
            )
        key = override.get_key_element()
        variants.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    for combination in itertools.product(*variants):
        yield list(combination)


def composed(words: Sequence[str], compose: Compose) -> DictConfig:
    """What the words compose. A ValueError for a word of an unknown key names the known one that is close."""
    try:
        return compose(words)
    except ValueError as error:
        wrong = [override for override in parse(words) if override.key_or_group in str(error)]
        hint = next(filter(None, (_hint(one, words, compose) for one in wrong)), "")
        raise ValueError(f"{error}{hint}") from None


def _hint(wrong: Override, words: Sequence[str], compose: Compose) -> str:
    """`did_you_mean` for one of the words, if it composes so with those of the others that are right."""
    rest: list[str] = []
    for word in words:
        if word != wrong.input_line and _composes([*rest, word], compose):
            rest.append(word)
    hint = did_you_mean(wrong.key_or_group, compose(rest))
    known = hint.removeprefix(MEANT).removesuffix("?")
    corrected = str(wrong.input_line).replace(wrong.key_or_group, known, 1)
    return hint if hint and _composes([*rest, corrected], compose) else ""


def _composes(words: Sequence[str], compose: Compose) -> bool:
    try:
        compose(words)
    except ValueError:
        return False
    return True


def did_you_mean(key: str, cfg: DictConfig) -> str:
    """`; did you mean scale.width?` for a key that `cfg` lacks if it has one that is close, else nothing."""
    known = list(_keys(OmegaConf.to_container(cfg, resolve=False)))
    close = [] if key in known else difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return f"{MEANT}{close[0]}?" if close else ""


def _keys(section: Any) -> Iterator[str]:
    if isinstance(section, Mapping):
        for name, value in section.items():
            yield str(name)
            yield from (f"{name}.{key}" for key in _keys(value))


def word(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as the same value."""
    return f"{key}={_value(value)}"


def _value(value: Any) -> str:
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
        return f"[{','.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_value(item)}' for key, item in value.items())}}}"
    raise ValueError(f"a value must be a number, text, true, false, null, a list or a mapping, got {value!r}")
