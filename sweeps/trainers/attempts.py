"""`attempts.json`: how often a command was started for a run, and for how long, over all attempts."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hyperp.files import write_json
from hyperp.rundir.heartbeat import read_heartbeat

FILE = "attempts.json"


@dataclass(frozen=True)
class Attempts:
    """How often a run was started, how often of these from a checkpoint, its seconds, and its last step.

    `began` is when the attempt that has not ended began, in seconds of the epoch. `output_from` is where in
    the output the last attempt that began from nothing begins.
    """

    started: int = 0
    resumed: int = 0
    seconds: float = 0.0
    step: int = 0
    began: float | None = None
    output_from: int = 0

    @classmethod
    def load(cls, run_dir: Path) -> "Attempts":
        """Those of a run folder; a file that is missing or damaged counts as none."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((run_dir / FILE).read_text()))
        return cls()

    def begin(self, run_dir: Path, resuming: bool, output_from: int = 0) -> "Attempts":
        """Note one more start, whose output begins at `output_from`."""
        before = self._with_killed(run_dir)
        now = replace(before, started=self.started + 1, resumed=self.resumed + resuming, began=time.time())
        now = now if resuming else replace(now, output_from=output_from)
        write_json(run_dir / FILE, asdict(now))
        return now

    def end(self, run_dir: Path, seconds: float, step: int) -> "Attempts":
        """Note how long the last one took and how far it came; a full disk must not hide how it ended."""
        now = replace(self, seconds=self.seconds + seconds, step=max(step, self.step), began=None)
        with suppress(OSError):
            write_json(run_dir / FILE, asdict(now))
        return now

    def _with_killed(self, run_dir: Path) -> "Attempts":
        """With the time and step of an attempt that was killed together with its worker.

        Nothing noted its end, but the heartbeat that it left behind is a second older at most.
        """
        beat = read_heartbeat(run_dir)
        if self.began is None or beat is None or beat.time < self.began:
            return self
        return replace(
            self, seconds=self.seconds + beat.time - self.began, step=max(beat.step, self.step), began=None
        )
