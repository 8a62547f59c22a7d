"""What `hyperp-sweep run` shows on standard error: bars on a terminal, elsewhere a line every few seconds."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from hyperp.sweeps.local.pool import Event, RunEnded, RunProgressed, RunStarted
from hyperp.sweeps.plan.plan import Point

LINE_SECONDS = 10.0


class Tally:
    """The share of the work that is done, weighted by FLOPs, and how the runs ended."""

    def __init__(self, points: Sequence[Point]):
        self.points = {point.run_id: point for point in points}
        self.total = sum(point.flops for point in points)
        self.fractions: dict[str, float] = {}
        self.ended: Counter[str] = Counter()
        self.start = time.monotonic()

    def update(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, RunProgressed):
            self.fractions[event.run_id] = event.step / event.steps
        elif isinstance(event, RunEnded):
            self.fractions[event.run_id] = 1.0
            self.ended[event.status] += 1

    def done(self) -> float:
        """The fraction of the FLOPs that is done."""
        return sum(self.points[run_id].flops * f for run_id, f in self.fractions.items()) / self.total

    def time_left(self) -> str:
        """`about 3 min left`, from the mean speed so far."""
        done = self.done()
        if done < 0.005:
            return "time left unknown"
        seconds = (time.monotonic() - self.start) * (1 - done) / done
        return f"about {format_duration(seconds)} left"

    def line(self) -> str:
        """`12 of 58 runs: 11 finished, 1 diverged, 0 failed`."""
        ended = ", ".join(f"{self.ended[status]} {status}" for status in ("finished", "diverged", "failed"))
        return f"{self.ended.total()} of {len(self.points)} runs: {ended}"

    def label(self, run_id: str) -> str:
        """The block and learning rate of a run."""
        point = self.points[run_id]
        return f"{point.blocks[0] if point.blocks else 'run'}  lr {point.lr:.4g}"


class Display(Protocol):
    """Shows events; a context manager that leaves the terminal as it found it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def show(self, event: Event) -> None:
        """Take in one event."""
        ...


def make_display(points: Sequence[Point]) -> Display:
    """BarDisplay if standard error is a terminal, lines if not."""
    console = Console(stderr=True)
    return BarDisplay(points, console) if console.is_terminal else LineDisplay(points)


class LineDisplay:
    """Prints a line every LINE_SECONDS, without escape codes."""

    def __init__(self, points: Sequence[Point]):
        self.tally = Tally(points)
        self.last = time.monotonic()

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(self, *exception: object) -> None:
        self.print(f"{self.tally.line()}; {format_duration(time.monotonic() - self.tally.start)}")

    def show(self, event: Event) -> None:
        """Take in one event."""
        self.tally.update(event)
        if isinstance(event, RunEnded) and event.status == "failed":
            self.print(f"failed {event.run_id} ({self.tally.label(event.run_id)}): {event.reason}")
        if time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            self.print(f"{self.tally.line()}; {self.tally.done():.0%} of the work, {self.tally.time_left()}")

    def print(self, text: str) -> None:
        """Print a line and flush it, also into a file."""
        print(text, file=sys.stderr, flush=True)


class BarDisplay:
    """Shows one bar for all runs, and one for the current run of each worker."""

    def __init__(self, points: Sequence[Point], console: Console):
        self.tally = Tally(points)
        self.overall = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.workers = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=20),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[speed]:,.0f} tokens/s"),
        )
        self.bar = self.overall.add_task(self.tally.line(), total=1.0, left="")
        self.tasks: dict[int, TaskID] = {}
        self.live = Live(Group(self.overall, self.workers), console=console, refresh_per_second=4)

    def __enter__(self) -> "BarDisplay":
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for task in self.tasks.values():
            self.workers.remove_task(task)
        self.overall.update(self.bar, left=format_duration(time.monotonic() - self.tally.start))
        self.live.stop()

    def show(self, event: Event) -> None:
        """Take in one event."""
        self.tally.update(event)
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, RunProgressed):
            task, speed = self.tasks[event.worker], event.tokens_per_second
            self.workers.update(task, completed=event.step, total=event.steps, speed=speed)
        elif isinstance(event, RunEnded):
            self.workers.update(self.tasks[event.worker], visible=False)
            if event.status == "failed":
                text = f"failed {event.run_id} ({self.tally.label(event.run_id)}): {event.reason}"
                self.live.console.print(text, markup=False, highlight=False)
        left, line = self.tally.time_left(), self.tally.line()
        self.overall.update(self.bar, completed=self.tally.done(), description=line, left=left)

    def _start(self, event: RunStarted) -> None:
        label, steps = self.tally.label(event.run_id), self.tally.points[event.run_id].facts.steps
        if event.worker not in self.tasks:
            self.tasks[event.worker] = self.workers.add_task(label, total=steps, speed=0.0)
        self.workers.reset(self.tasks[event.worker], total=steps, description=label, visible=True, speed=0.0)


def format_duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
