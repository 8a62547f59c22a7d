"""Frozen dataclasses that check their fields: a wrong value is a ValueError of one line.

    @validated
    class Sizes:
        width: Whole
        clip: NonNegative = 1.0

`Sizes(width=0)` raises "width must be a whole number of at least 1, got 0". Pydantic checks every field by
its type and by what `must` adds to it; conditions on several fields together belong into `__post_init__`.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial, wraps
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def validated(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose constructor raises ValueError in one line for a wrong field.

    A field that is itself such a dataclass takes an instance or a mapping of its fields.
    """
    made: Any = pydantic_dataclass(cls, frozen=True, config=ConfigDict(extra="forbid"))
    construct = made.__init__

    @wraps(construct)
    def construct_or_explain(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_first_error(error, [field.name for field in fields(made)])) from None

    made.__init__ = construct_or_explain
    return made


def _first_error(error: ValidationError, names: list[str]) -> str:
    """`field must be X, got Y` for the first wrong field; pydantic numbers those that came by position."""
    first = error.errors(include_url=False)[0]
    path = list(first["loc"])
    if path and isinstance(path[0], int):
        path[0] = names[path[0]]
    field, text = ".".join(map(str, path)), first["msg"]
    if first["type"] == "missing":
        return f"{field} must be given"
    if first["type"] == "unexpected_keyword_argument":
        return f"{field} is not a known field, got {first['input']!r}"
    if first["type"] == "value_error":  # of `must`, or of a `__post_init__`, which names the field itself
        text = text.removeprefix("Value error, ")
        return f"{field} {text}" if text.startswith("must ") else f"{field}.{text}".removeprefix(".")
    text = (
        text.replace("Input should be", "must be")
        .replace("a valid boolean", "true or false")
        .replace("'", "")
    )
    return f"{field} {text}, got {first['input']!r}"


def must(allowed: str, holds: Callable[[Any], bool]) -> BeforeValidator:
    """For Annotated: a field whose value is not what `allowed` says, so that `holds` is false, is refused."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {allowed}, got {value!r}")
        return value

    return BeforeValidator(check)


def is_finite(value: Any) -> bool:
    """Whether `value` is a number, and neither nan nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    """Whether `value` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1, from a whole float such as 1e6 too; `name` is for the error text."""
    allowed = f"{name} must be a whole number of at least 1, got {value!r}".lstrip()
    if isinstance(value, (bool, str, bytes)):
        raise ValueError(allowed)
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):  # None, nan and inf
        raise ValueError(allowed) from None
    if whole != value or whole < 1:
        raise ValueError(allowed)
    return whole


Whole = Annotated[int, BeforeValidator(partial(positive_int, ""))]
Count = Annotated[int, must("at least 0", lambda value: is_integer(value) and value >= 0)]
Finite = Annotated[float, must("finite", is_finite)]
Positive = Annotated[float, must("finite and positive", lambda value: is_finite(value) and value > 0)]
NonNegative = Annotated[float, must("finite and at least 0", lambda value: is_finite(value) and value >= 0)]
