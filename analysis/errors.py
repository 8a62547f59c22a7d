"""The two ways an analysis ends without an answer: bad input is a ValueError, a refusal is a Refusal."""

from collections.abc import Sequence
from typing import Any


class Refusal(Exception):  # noqa: N818, it is an answer
    """The data cannot identify what was asked (exit code 3).

    Args:
        reason: one line, why not.
        next_points: the runs that would change that, each a dict of context, covariates and "lr" (rates).
    """

    def __init__(self, reason: str, next_points: Sequence[dict[str, Any]] = ()):
        super().__init__(reason)
        self.reason = reason
        self.next_points = list(next_points)
