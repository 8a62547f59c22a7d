"""What launchers ask of a trainer, and the exceptions and ranks that both trainers share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from hyperp.rundir.record import Record
from hyperp.sweeps.plan.plan import Point

# Called as report(step, steps, training loss in nats per token or nan, tokens per second).
Report = Callable[[int, int, float, float], None]


class Ranks(Protocol):
    """The processes that do one run together, as one of them sees them."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the record."""
        ...

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers, where they must agree."""
        ...


class Trainer(Protocol):
    """A way to do runs. Every method takes the plain values of a run, as plan.json has them."""

    def prepare(self) -> None:
        """Import what every run needs, once for each worker."""
        ...

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError for points that cannot be done on this machine. Starts and writes nothing."""
        ...

    def command(self, point: Point) -> list[str]:
        """A command line that does the run by itself."""
        ...

    def join(self, values: Mapping[str, Any]) -> AbstractContextManager[Ranks]:
        """The processes of a Slurm job that do the run together."""
        ...

    def execute(
        self, values: Mapping[str, Any], run_dir: Path, report: Report | None, stop: Callable[[], bool]
    ) -> Record | None:
        """Do the run, or what is left of it, and return its record, which a failure leaves too.

        Returns None in a process of several that has done its part and writes no record.

        Raises:
            HeldError: another process is doing the run.
            Stopped: `stop` returned true, and the run can go on later.
            OSError: no record could be written.
        """
        ...

    def record_failure(
        self,
        values: Mapping[str, Any],
        run_dir: Path,
        reason: str,
        environment: dict[str, str] | None,
        cause: str | None,
    ) -> Record:
        """Write the record of a run whose process died. `environment` is where it was; None means here."""
        ...
