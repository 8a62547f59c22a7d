"""How an analysis ends without an answer: bad input raises ValueError, data that cannot tell a Refusal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Refusal(Exception):  # noqa: N818, a refusal is an answer and no error
    """The data cannot identify what was asked; the commands exit with code 3.

    Args:
        reason: why not, in one line.
        points: runs that would help, each a dict of context, covariates, "lr" (a list of rates), and
            perhaps "factor" (lr/base_lr) and "seeds" (how many).

    Attributes:
        own_points: the points in the columns of a table that is not of a hyperp sweep, else None; see
            `table.own_columns`.
    """

    def __init__(self, reason: str, points: Sequence[dict[str, Any]] = ()):
        super().__init__(reason)
        self.reason = reason
        self.points = list(points)
        self.own_points: list[dict[str, Any]] | None = None

    @property
    def next_points(self) -> "pd.DataFrame":
        """The runs that would change that, as `points_frame` lays them out."""
        return points_frame(self.points if self.own_points is None else self.own_points)


_ON_COMMAND_LINE = ContextVar("on_command_line", default=False)
# Arguments whose option has another name than --argument.
OPTIONS = {
    "runs": "RUNS",
    "mapping": "--map",
    "slice_by": "--slice",
    "count": "--slices",
    "given": "--optima",
}


@contextmanager
def options_in_errors() -> Iterator[None]:
    """Let errors name the options of a command, not the arguments of a Python function."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def argument(name: str, value: object = None, option: str | None = None) -> str:
    """An argument as the user gives it, for the text of an error.

    Args:
        name: the argument of the Python function.
        value: what it is set to, if the text says so: True, text, or a mapping such as {"width": 32}.
        option: the option of the command, where it is neither --name nor in OPTIONS.

    Returns:
        such as `where={'width': 32}`, or within `options_in_errors` `--where width=32`.
    """
    if not _ON_COMMAND_LINE.get():
        return name if value is None else f"{name}={value!r}"
    option = option or OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if isinstance(value, Mapping):
        return " ".join(f"{option} {_quoted(f'{key}={one}')}" for key, one in value.items())
    return option if value is None or value is True else f"{option} {value}"


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


def points_frame(points: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Suggested runs as a table with a row for each slice and rate; empty if there are none."""
    import pandas as pd

    if not points:
        return pd.DataFrame()
    frame = pd.DataFrame(points)
    rates = [name for name, value in points[0].items() if isinstance(value, list)]
    return frame.explode(rates, ignore_index=True).astype(dict.fromkeys(rates, float))
