"""Texts with names in braces, such as --lr={lr}: which names a text has, and the text with their values.

A brace that is meant as such is doubled, as in Python's own format strings. Only plain names are allowed,
with a format if need be ({lr:.6g}); no attribute and no index, so that a text can reach nothing but the
values.
"""

from collections.abc import Mapping
from string import Formatter

from hyperp.near_names import close_names, listed_names

Value = str | int | float | bool


def names_in(text: str, field: str) -> set[str]:
    """The names in braces of a text. Raises ValueError, naming `field`, for braces that cannot be read."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{field} must be text with names in braces, got {text!r} ({error})") from None
    names = set()
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or conversion or "{" in (form or ""):
            raise ValueError(
                f"{field} must have plain names in braces, such as {{lr}} or {{lr:.6g}}, got {text!r}; "
                "a brace itself is written twice"
            )
        names.add(name)
    return names


def fill(text: str, values: Mapping[str, Value]) -> str:
    """The text with every name in braces replaced by its value; `names_in` has passed it."""
    shown = {
        name: format_value(value) if isinstance(value, bool) else value for name, value in values.items()
    }
    return text.format_map(shown)


def format_value(value: Value) -> str:
    """A value as a command line has it: true and false in lower case, numbers so that they read back."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def require_known(names: set[str], known: Mapping[str, object], field: str) -> None:
    """Raise ValueError for a name in braces that has no value; close names are suggested."""
    for name in sorted(names - known.keys()):
        near = close_names(name, list(known))
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed_names(sorted(known))}"
        raise ValueError(f"{field} has {{{name}}}, which is no value; {hint}")
