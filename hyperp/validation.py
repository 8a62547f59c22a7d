"""Frozen dataclasses that check their fields: a wrong value is a ValueError of one line.

    @validated
    class Sizes:
        width: Whole
        clip: NonNegative = 1.0

`Sizes(width=0)` raises "width must be a whole number of at least 1, got 0". Pydantic checks every field by
its type and by what `must` adds to it; conditions on several fields together belong into `__post_init__`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial, wraps
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")

LONGEST_INPUT = 60  # characters of a wrong value that an error repeats
PYDANTIC_WORDS = {  # what pydantic writes, and what errors say here
    "Input should be": "must be",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid dictionary": "a mapping",
    "a valid list": "a list",
    "'": "",
}


class Strict(BaseModel):
    """A frozen model that rejects unknown fields, NaN and infinity; for what is read from files and plans."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
            names = [field.name for field in fields(made)]
            raise ValueError(invalid_field(error, names=names, separator=".")) from None

    made.__init__ = construct_or_explain
    return made


def invalid_field(
    error: ValidationError, section: str = "", names: Sequence[str] = (), separator: str = ": "
) -> str:
    """`field must be X, got Y` for the first thing that pydantic found wrong, in one line.

    Args:
        error: what pydantic raised.
        section: what the fields belong to, such as "launcher"; it goes before their names.
        names: the fields' names in order, for arguments that came by position, which pydantic numbers.
        separator: between a field and the text of an error that one of our own validators raised.
    """
    first = error.errors(include_url=False)[0]
    path = list(first["loc"])
    if path and names and isinstance(path[0], int):
        path[0] = names[path[0]]
    field = ".".join(map(str, [section, *path] if section else path))
    kind, text = first["type"], first["msg"]
    value = repr(first["input"])
    got = f"got {value if len(value) <= LONGEST_INPUT else f'{value[: LONGEST_INPUT - 3]}...'}"
    if kind == "missing":
        return f"{field} must be given"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{field} is not a known field, {got}"
    if kind == "value_error":  # of `must`, or of a validator that names the field itself
        text = text.removeprefix("Value error, ")
        between = " " if text.startswith("must ") else separator
        return f"{field}{between}{text}" if field else text
    for theirs, ours in PYDANTIC_WORDS.items():
        text = text.replace(theirs, ours)
    return f"{field or 'it'} {text}, {got}"


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
