"""JSON lines with an object for each run, read as a CSV is: nested objects become columns with dots."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from hyperp.analysis.table.stored import Stored, decoded


def read_json_lines(stored: Stored) -> pd.DataFrame:
    """A row for each line; a key that a line lacks is an absent value there.

    Raises:
        ValueError: names the line that is no JSON object, or a key that is given twice in it.
    """
    rows = []
    for number, line in enumerate(decoded(stored).splitlines(), start=1):
        if line.strip():
            rows.append(flattened(parse_object(line, f"{stored.name}: line {number}")))
    if not rows:
        raise ValueError(f"{stored.name} is empty; it must have a JSON object for each run")
    return pd.DataFrame(rows).infer_objects()


def parse_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object of a text; ValueError begins with `place`. NaN and Infinity are numbers."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}, character {error.colno} is not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{place} {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place} must be a JSON object, got {text.strip()[:40]!r}")
    return found


def flattened(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 0.1}} as {"optim.lr": 0.1}; a list stays one value, as its JSON text."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{name}.")
        elif isinstance(value, list | tuple):
            flat[name] = json.dumps(value, default=str)
        else:
            flat[name] = value
    return flat


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"names the key {twice} twice; each may appear once")
    return found
