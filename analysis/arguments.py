"""Arguments that several functions of the Python API take, in the forms that they may be given in."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

Names = str | Sequence[str]


def split_names(names: Names) -> tuple[str, ...]:
    """The names in a list, or in one string such as "N,D"."""
    listed = names.split(",") if isinstance(names, str) else names
    return tuple(name.strip() for name in listed if name.strip())


def where_as_text(where: Mapping[str, Any] | None) -> dict[str, str]:
    """A selection of rows with its values as text; ValueError where a column has several."""
    for name, value in require_dict("where", where, "{'optimizer': 'muonh'}").items():
        if isinstance(value, (list, tuple, set)):
            raise ValueError(f"where must give {name} one value, got {value!r}")
    return {name: str(value) for name, value in (where or {}).items()}


def held_values(name: str, held: Mapping[str, float] | None, example: str) -> dict[str, float]:
    """Values to hold by name; ValueError where one is no number. `name` and `example` are for its text."""
    for key, value in require_dict(name, held, example).items():
        if not isinstance(value, Real):
            raise ValueError(f"{name} must give {key} a number, got {value!r}")
    return dict(held or {})


def require_dict(name: str, given: Mapping[str, Any] | None, example: str) -> Mapping[str, Any]:
    """The mapping, empty for None; ValueError for anything else."""
    if not isinstance(given or {}, Mapping):
        raise ValueError(f"{name} must be a dict such as {example}, got {given!r}")
    return given or {}
