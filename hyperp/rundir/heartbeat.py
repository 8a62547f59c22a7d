"""The heartbeat of a run: a file that changes while a process works on the run, and so claims it.

The lock of a run's folder keeps two processes of one machine apart, and two machines only where their shared
file system supports locks. Elsewhere the heartbeat decides: a process that finds one that still changes
leaves the run alone; a process that finds another's in place of its own was taken for dead, and stops.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hyperp.files import HeldError, write_json
from hyperp.rundir import allocation

FILE = "heartbeat.json"
BEAT_SECONDS = 1.0  # between two beats
SILENCE_SECONDS = 30.0  # without a new beat, after which a process on another machine is taken for dead
STALE_SECONDS = 900.0  # by the clocks of two machines: too old to be worth watching
DEAD_SECONDS = 60.0  # a heartbeat older than this is of a process that is gone
DOUBTFUL_SECONDS = 5.0  # older than this, its own machine is asked whether the process exists


class Heartbeat(BaseModel):
    """What heartbeat.json says; `time` is in seconds of the epoch, `job` the Slurm job if there is one."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    step: int
    steps: int
    tokens_per_second: float
    time: float
    host: str | None = None
    process: int | None = None
    job: str | None = None

    def is_fresh(self) -> bool:
        """Whether the process that wrote it is taken to be alive."""
        age = time.time() - self.time
        if age > DOUBTFUL_SECONDS and self.process and self.host == socket.gethostname():
            return age < DEAD_SECONDS and not process_is_gone(self.process)
        return age < DEAD_SECONDS


def process_is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, even if its parent has not reaped it yet.

    In a container whose first process reaps no orphans, a dead process is never reaped.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's process
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # not Linux
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


class HeartbeatWriter:
    """Writes `run_dir`/heartbeat.json from a thread, so also during long steps, and removes it at the end.

    `progress` returns step, steps and tokens_per_second. `lost` says whether another process has taken the
    run over: then this one writes no more, and leaves the other's file alone.
    """

    def __init__(self, run_dir: Path, progress: Callable[[], dict[str, Any]]):
        self.run_dir, self.progress = run_dir, progress
        self.who = {"host": socket.gethostname(), "process": os.getpid(), "job": allocation.job_id()}
        self.lost = False
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "HeartbeatWriter":
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        if self.lost:
            return
        with contextlib.suppress(OSError):
            (self.run_dir / FILE).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self.stop.wait(BEAT_SECONDS):
            found = read_heartbeat(self.run_dir)
            if found is not None and any(getattr(found, key) != value for key, value in self.who.items()):
                self.lost = True
                return
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end a run because of its heartbeat
            beat = self.progress() | {"time": time.time()} | self.who
            write_json(self.run_dir / FILE, beat, durable=False)


def read_heartbeat(run_dir: Path) -> Heartbeat | None:
    """The last heartbeat of a run; None if there is none that can be read."""
    try:
        return Heartbeat.model_validate_json((run_dir / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def wait_for_silence(run_dir: Path, what: str) -> None:
    """Return once no process of another machine has a heartbeat here; call it under the run's lock.

    Waits SILENCE_SECONDS if there is a recent heartbeat, measured by this machine's clock alone. Raises
    HeldError as soon as the heartbeat changes; `what` names the run in its text.
    """
    first = read_heartbeat(run_dir)
    if first is None or first.host == socket.gethostname():  # on this machine the lock has decided
        return
    if abs(time.time() - first.time) > STALE_SECONDS:
        return
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 2)
        now = read_heartbeat(run_dir)
        if now is None:
            return
        if now != first:
            raise HeldError(f"{what} is held by process {now.process} on {now.host}")
