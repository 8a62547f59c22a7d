"""Names that are close to what somebody typed, and names as text."""

import difflib
from collections.abc import Sequence

SHOWN = 40  # names that an error lists


def close_names(typed: str, known: Sequence[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Up to `count` known names that are close to the one typed, case and separators aside."""
    plain = {name: letters_of(name) for name in known}
    near = difflib.get_close_matches(letters_of(typed), list(plain.values()), n=count, cutoff=cutoff)
    found = [name for letters in dict.fromkeys(near) for name, own in plain.items() if own == letters]
    return found[:count]


def listed_names(known: Sequence[str]) -> str:
    """The names as text, cut after SHOWN of them."""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(map(str, known[:SHOWN])) + more


def letters_of(name: str) -> str:
    """The letters and digits of a name in lower case, by which two spellings of it are equal."""
    return "".join(c for c in str(name).casefold() if c.isalnum())
