"""Warnings on standard error, and signals that stop a command as Ctrl-C does."""

import sys
from typing import NoReturn


def warn(text: str) -> None:
    """Print `hyperp-sweep: warning: text` to standard error."""
    print(f"hyperp-sweep: warning: {text}", file=sys.stderr)


def raise_keyboard_interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    """A signal handler: raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt
