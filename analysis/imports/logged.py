"""Runs as trackers keep them: settings, a state and the course of every metric, of which one value counts."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from hyperp.analysis.errors import argument
from hyperp.validation import Count, validated

STEP_NAMES = ("step", "_step", "global_step", "iteration", "iter", "steps", "training_iteration")


class Point(NamedTuple):
    """A value of a metric and the step that it was logged at."""

    step: float
    value: float


History = Sequence[Point]


@validated
class At:
    """Which value of a metric's course is taken: its last, its lowest, or that at one step."""

    kind: Literal["last", "min", "step"] = "last"
    step: Count = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "last", "min" or "step=1000"; ValueError for anything else."""
        if text in ("last", "min"):
            return cls(text)
        found = re.fullmatch(r"step=(\d+)", text)
        if found is None:
            raise ValueError(f"{argument('at')} must be last, min or step=N, got {text!r}")
        return cls("step", int(found[1]))

    def __str__(self) -> str:
        return f"step={self.step}" if self.kind == "step" else self.kind

    def pick(self, history: History) -> float | None:
        """The value of a course in the order of its steps; None if it has none there."""
        if not history:
            return None
        if self.kind == "last":
            return history[-1].value
        if self.kind == "min":
            return min((p.value for p in history if math.isfinite(p.value)), default=history[-1].value)
        return next((p.value for p in reversed(history) if p.step == self.step), None)


@dataclass(frozen=True)
class LoggedRun:
    """One run of a source.

    Attributes:
        name: what the source calls the run; it ends up as run_id, and nothing is read out of it.
        settings: the configuration with nested keys joined by dots.
        metrics: the names of what it logged.
        history: the course of a metric in the order of steps.
        status: the state in the words of the source; None where it keeps none.
        last: the last values, where the source keeps them apart, which spares reading the course.
        ended_early: whether it stopped before its time, though the source keeps no state that says so.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: Sequence[str]
    history: Callable[[str], History]
    status: str | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    ended_early: bool = False

    def value(self, metric: str, at: At) -> float | None:
        """The value of a metric; None if there is none at this place."""
        if at.kind == "last" and metric in self.last:
            return self.last[metric]
        return at.pick(self.history(metric))

    def blew_up(self, metric: str) -> bool:
        """Whether the last value is NaN or infinite, whatever was lowest before."""
        last = self.value(metric, At())
        return last is not None and not math.isfinite(last)


@dataclass(frozen=True)
class Logs:
    """What a source holds.

    Attributes:
        runs: the runs.
        metric: the metric that the source itself names as its objective, if it does.
        remarks: how it was read, a line each.
        left_out: how many things of the source are not among the runs, by reason.
    """

    runs: Sequence[LoggedRun]
    metric: str | None = None
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def step_key(names: Iterable[str]) -> str | None:
    """The name among these under which loggers keep the step."""
    there = set(names)
    return next((name for name in STEP_NAMES if name in there), None)


def number_or_none(value: Any) -> float | None:
    """A logged value as a number, "NaN" and "Infinity" as text too; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def history_of(rows: Iterable[Mapping[str, Any]], metric: str, step: str | None) -> History:
    """The course of a metric in rows that were logged one after another; without a step they are counted."""
    found = []
    for index, row in enumerate(rows):
        value = number_or_none(row.get(metric))
        at = index if step is None else number_or_none(row.get(step))
        if value is not None and at is not None:
            found.append(Point(at, value))
    return found
