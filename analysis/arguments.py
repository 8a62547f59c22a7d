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


def prior_values(prior: Mapping[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]]:
    """A prior's mean and standard deviation by covariate.

    Raises:
        ValueError: not a dict, or a value that is not two numbers.
    """
    found = {}
    for key, value in require_dict("prior", prior, "{'tokens': (-0.32, 0.15)}").items():
        pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
        if len(pair) != 2 or not all(isinstance(number, Real) for number in pair):
            raise ValueError(f"prior must give {key} a mean and a standard deviation, got {value!r}")
        found[key] = (float(pair[0]), float(pair[1]))
    return found


def require_dict(name: str, given: Mapping[str, Any] | None, example: str) -> Mapping[str, Any]:
    """The mapping, empty for None; ValueError for anything else."""
    if not isinstance(given or {}, Mapping):
        raise ValueError(f"{name} must be a dict such as {example}, got {given!r}")
    return given or {}
