"""Read a configuration of the user's own, by a map from what the doctor knows to its keys.

A map is YAML, flat or nested: `batch_tokens: train.batch * train.seq`, `lr: {hidden: optim.lr}`. A number
may be arithmetic on keys, with + - * / **, parentheses, sqrt, log and exp; a word or a switch is the key that
holds it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from hyperp.analysis.registry.run_config import RunConfig
from hyperp.analysis.registry.target import OPTIMIZERS, WORDS, Target, require_known
from hyperp.expression import parse_expression
from hyperp.validation import invalid_field

SIZES = tuple(Target.model_fields)
NUMBERS = ("steps", "base_width", "warmup_steps", "decay_steps")
TEXTS: Mapping[str, tuple[str, ...] | None] = {**WORDS, "embedding_optimizer": OPTIMIZERS, "scheduler": None}
SWITCH = "tied_embeddings"
GROUPED = {"lr": "rates", "min_lr": "floors", "weight_decay": "weight_decay"}
GROUPS = ("hidden", "embedding", "unembedding", "vectors", "router", "experts")
NAMES = (
    *SIZES,
    *NUMBERS,
    *TEXTS,
    SWITCH,
    *(f"{name}.{group}" for name in GROUPED for group in GROUPS),
)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys. Raises ValueError for what is no mapping."""
    if not isinstance(values, Mapping):
        raise ValueError(f"a configuration must be a mapping, got {type(values).__name__}")
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        found |= flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def read_own(path: str | Path, values: Mapping[str, Any], keys: Mapping[str, Any] | None) -> RunConfig:
    """The run of an own configuration.

    Args:
        path: its file, for errors.
        values: its values by dotted key.
        keys: for each of NAMES the key or the arithmetic that gives it; a configuration without a map has
            to use these names itself.

    Raises:
        ValueError: an unknown name or key, a value that is no number where one is needed, or none at all.
    """
    if keys is None:
        keys = {name: f"`{name}`" for name in NAMES if name in values}
        if not keys:
            raise ValueError(
                f"{path} must have some of the keys {', '.join(NAMES[:6])}, ..., or a map of its own keys "
                "(--keys), got none of them"
            )
    fields: dict[str, Any] = {"trainer": "own", "target": {}}
    for name, source in keys.items():
        require_known("keys", name, NAMES)
        _place(fields, name, _value(name, str(source), values))
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        raise ValueError(invalid_field(error, str(path))) from None


def _value(name: str, source: str, values: Mapping[str, Any]) -> Any:
    """The value of one name: a word, a switch or a number."""
    if name in TEXTS or name == SWITCH:
        key = source.strip("`")
        if key not in values:
            require_known(f"the key of {name}", key, list(values))
        return _word(name, values[key])
    expression = parse_expression(source, list(values), f"keys: {name}: {source}")
    number = float(expression(lambda key: np.float64(_number(name, key, values[key]))))
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number} from {source}")
    return number


def _number(name: str, key: str, value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must come from numbers, got {key} = {value!r}") from None


def _word(name: str, value: Any) -> Any:
    if name == SWITCH:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        return value
    known = TEXTS[name]
    if known is not None:
        require_known(name, str(value).lower(), known)
        return str(value).lower()
    return str(value)


def _place(fields: dict[str, Any], name: str, value: Any) -> None:
    """Put a value where RunConfig has it."""
    head, _, group = name.partition(".")
    if group:
        fields.setdefault(GROUPED[head], {})[group] = value
    elif name in SIZES:
        fields["target"][name] = value
    else:
        fields[name] = value
