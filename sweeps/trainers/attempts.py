"""`attempts.json`: how often a command was started for a run, and for how long, over all attempts."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hyperp.files import write_json

FILE = "attempts.json"


@dataclass(frozen=True)
class Attempts:
    """How often a run was started, how often of these from a checkpoint, its seconds, and its last step."""

    started: int = 0
    resumed: int = 0
    seconds: float = 0.0
    step: int = 0

    @classmethod
    def load(cls, run_dir: Path) -> "Attempts":
        """Those of a run folder; a file that is missing or damaged counts as none."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((run_dir / FILE).read_text()))
        return cls()

    def begin(self, run_dir: Path, resuming: bool) -> "Attempts":
        """Note one more start."""
        now = replace(self, started=self.started + 1, resumed=self.resumed + resuming)
        write_json(run_dir / FILE, asdict(now))
        return now

    def end(self, run_dir: Path, seconds: float, step: int) -> "Attempts":
        """Note how long the last one took and how far it came; a full disk must not hide how it ended."""
        now = replace(self, seconds=self.seconds + seconds, step=max(step, self.step))
        with suppress(OSError):
            write_json(run_dir / FILE, asdict(now))
        return now
