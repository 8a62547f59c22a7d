"""How an analysis ends without an answer: bad input raises ValueError, data that cannot tell a Refusal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Refusal(Exception):  # noqa: N818, a refusal is an answer and no error
    """The data cannot identify what was asked; the commands exit with code 3.

    Args:
        reason: why not, in one line.
        points: runs that would help, each a dict of context, covariates, "lr" (a list of rates), and
            perhaps "factor" (lr/base_lr) and "seeds" (how many).
    """

    def __init__(self, reason: str, points: Sequence[dict[str, Any]] = ()):
        super().__init__(reason)
        self.reason = reason
        self.points = list(points)

    @property
    def next_points(self) -> "pd.DataFrame":
        """The runs that would change that, as `points_frame` lays them out."""
        return points_frame(self.points)


def points_frame(points: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Suggested runs as a table with a row for each slice and rate; empty if there are none."""
    import pandas as pd

    if not points:
        return pd.DataFrame()
    return pd.DataFrame(points).explode("lr", ignore_index=True).astype({"lr": float})
