"""What somebody who mistyped an override of Hydra may have meant."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from hyperp.terminal import one_line

# Turns overrides into a composed configuration, or raises ValueError in one line.
Compose = Callable[[Sequence[str]], DictConfig]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides as Hydra understands them. Raises ValueError for one that it does not."""
    return [_parse_override(one) for one in overrides]


@lru_cache(maxsize=256)  # Hydra's parser takes seconds for a grid of thousands of values, needed three times
def _parse_override(override: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except HydraException as error:
        raise ValueError(one_line(error)) from None


def compose_with_hint(overrides: Sequence[str], compose: Compose) -> DictConfig:
    """Compose a configuration. A ValueError about an unknown key or option suggests the closest known one."""
    try:
        return compose(overrides)
    except ValueError as error:
        wrong = [one for one in parse_overrides(overrides) if one.key_or_group in str(error)]
        hint = next(filter(None, (_suggest_override(one, overrides, compose) for one in wrong)), "")
        raise ValueError(f"{error}{hint}") from None


def _suggest_override(wrong: Override, overrides: Sequence[str], compose: Compose) -> str:
    """The hint for one override: a close key or group option with which it composes beside the right ones."""
    rest: list[str] = []
    for override in overrides:
        if override != wrong.input_line and _composes([*rest, override], compose):
            rest.append(override)
    line, group, option = str(wrong.input_line), wrong.key_or_group, str(wrong.value())
    key = closest_key(group, compose(rest))
    if key and _composes([*rest, line.replace(group, key, 1)], compose):
        return did_you_mean(key)
    known = _closest(option, _group_options(group))
    corrected = f"{line.partition('=')[0]}={known}"
    return did_you_mean(corrected) if known and _composes([*rest, corrected], compose) else ""


def _composes(overrides: Sequence[str], compose: Compose) -> bool:
    try:
        compose(overrides)
    except ValueError:
        return False
    return True


def did_you_mean(known: str | None) -> str:
    """`; did you mean scale.width?` to append to an error; empty for None."""
    return f"; did you mean {known}?" if known else ""


def closest_key(key: str, cfg: DictConfig) -> str | None:
    """The key of `cfg` that is most like `key`; None if `cfg` has that key, or none that is close."""
    return _closest(key, list(_keys(OmegaConf.to_container(cfg, resolve=False))))


def _closest(word: str, known: Sequence[str]) -> str | None:
    return (
        None if word in known else next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.7)), None)
    )


def _keys(section: Any) -> Iterator[str]:
    if isinstance(section, Mapping):
        for name, value in section.items():
            yield str(name)
            yield from (f"{name}.{key}" for key in _keys(value))


def _group_options(group: str) -> list[str]:
    """The options of a config group, such as adamw for optim or token_law/small for experiment."""
    conf = Path(str(files("hyperp.conf"))) / group
    return sorted(path.relative_to(conf).with_suffix("").as_posix() for path in conf.rglob("*.yaml"))
