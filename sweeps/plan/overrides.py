"""Hydra overrides: parsing, comma choices, suggestions for unknown keys, and writing values."""

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

# Composes overrides to a configuration, or raises ValueError in one line.
Compose = Callable[[Sequence[str]], DictConfig]

PLAIN_STRING = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
MEANT = "; did you mean "
NOT_A_STRING = {"true", "false", "null", "nan", "inf"}  # to Hydra's grammar, unless quoted


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar. Raises ValueError for one that does not parse."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(one_line(error)) from None


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


def compose_with_hint(overrides: Sequence[str], compose: Compose) -> DictConfig:
    """Compose a configuration. A ValueError about an unknown key suggests the known key that is closest."""
    try:
        return compose(overrides)
    except ValueError as error:
        wrong = [one for one in parse_overrides(overrides) if one.key_or_group in str(error)]
        hint = next(filter(None, (_suggest_key(one, overrides, compose) for one in wrong)), "")
        raise ValueError(f"{error}{hint}") from None


def _suggest_key(wrong: Override, overrides: Sequence[str], compose: Compose) -> str:
    """`did_you_mean` for a wrong override, if it composes with that key beside the right overrides."""
    rest: list[str] = []
    for override in overrides:
        if override != wrong.input_line and _composes([*rest, override], compose):
            rest.append(override)
    hint = did_you_mean(wrong.key_or_group, compose(rest))
    known = hint.removeprefix(MEANT).removesuffix("?")
    corrected = str(wrong.input_line).replace(wrong.key_or_group, known, 1)
    return hint if hint and _composes([*rest, corrected], compose) else ""


def _composes(overrides: Sequence[str], compose: Compose) -> bool:
    try:
        compose(overrides)
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


def format_override(key: str, value: Any) -> str:
    """`key=value`, written so that Hydra reads back the same value and type."""
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
