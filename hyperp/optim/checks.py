"""Checks of hyperparameters. Each raises ValueError with the field, what it must be, and its value."""

import math
from collections.abc import Iterable
from numbers import Real

from torch import Tensor


def at_least(name: str, value: float, lowest: float) -> None:
    """Check that a number is finite and at least `lowest`."""
    if not (_is_number(value) and math.isfinite(value) and value >= lowest):
        raise ValueError(f"{name} must be finite and at least {lowest:g}, got {value!r}")


def learning_rate(name: str, value: object) -> None:
    """Check a learning rate: a number, or a tensor that holds one, finite and at least 0."""
    at_least(name, value.item() if isinstance(value, Tensor) and value.numel() == 1 else value, 0)  # pyright: ignore[reportArgumentType]


def positive(name: str, value: float) -> None:
    """Check that a number is finite and greater than 0."""
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and greater than 0, got {value!r}")


def below_one(name: str, value: float) -> None:
    """Check that a decay rate is in [0, 1)."""
    if not (_is_number(value) and 0 <= value < 1):
        raise ValueError(f"{name} must be at least 0 and less than 1, got {value!r}")


def whole_number(name: str, value: int, lowest: int) -> None:
    """Check that a value is an integer of at least `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")


def boolean(name: str, value: bool) -> None:
    """Check that a value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that a value is among the allowed ones."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
