"""How an analysis ends without an answer: bad input raises ValueError, data that cannot tell a Refusal."""

from collections.abc import Sequence
from typing import Any


class Refusal(Exception):  # noqa: N818, a refusal is an answer and no error
    """The data cannot identify what was asked; the commands exit with code 3.

    Args:
        reason: why not, in one line.
        next_points: runs that would help, each a dict of context, covariates, "lr" (a list of rates), and
            perhaps "factor" (lr/base_lr) and "seeds" (how many).
    """

    def __init__(self, reason: str, next_points: Sequence[dict[str, Any]] = ()):
        super().__init__(reason)
        self.reason = reason
        self.next_points = list(next_points)
