"""A sign of life that other processes read while a run is under way, and the lease that it is.

The lock of a run's folder keeps two processes of one machine apart, and two machines only where their shared
file system carries locks. Elsewhere the sign of life decides: who finds one that still changes leaves the run
alone, and who finds another's in place of its own has been taken for dead and stops.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperp.files import HeldError, write_json
from hyperp.rundir import allocation

SECONDS = 1.0  # between two signs
SILENCE_SECONDS = 30.0  # without a new one, after which a process on another machine is taken for dead
OLD_SECONDS = 900.0  # by the clocks of two machines: too old to watch
FILE = "heartbeat.json"


class Heartbeat:
    """Writes `run_dir`/heartbeat.json from a thread, so that long steps look alive too; the end removes it.

    `news` gives step, steps and tokens_per_second; the file adds time (of the epoch, s), host, process, job.
    """

    def __init__(self, run_dir: Path, news: Callable[[], dict[str, Any]]):
        self.path, self.news = run_dir / FILE, news
        self.who = {"host": socket.gethostname(), "process": os.getpid(), "job": allocation.job_id()}
        self.lost = False  # whether another process does the run now
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        if self.lost:
            return
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise HeldError if another process has taken the run over."""
        if self.lost:
            raise HeldError(f"{self.path.parent} was taken over by another process")

    def _beat(self) -> None:
        while not self.stop.wait(SECONDS):
            found = read(self.path.parent)
            if found is not None and any(found.get(key) != value for key, value in self.who.items()):
                self.lost = True
                return
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end a run for a sign of life
            write_json(self.path, self.news() | {"time": time.time()} | self.who, durable=False)


def read(run_dir: Path) -> dict[str, Any] | None:
    """The last sign of life; None without one that can be read."""
    try:
        found = json.loads((run_dir / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def wait_for_silence(run_dir: Path, what: str) -> None:
    """Return once no process of another machine gives signs of life; to be called under the run's lock.

    Waits SILENCE_SECONDS if there is a recent one, by this machine's clock alone. Raises HeldError as soon
    as it changes; `what` names the run in its text.
    """
    first = read(run_dir)
    if first is None or first.get("host") == socket.gethostname():  # here the lock has decided
        return
    written = first.get("time")
    if not isinstance(written, int | float) or abs(time.time() - written) > OLD_SECONDS:
        return
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(SECONDS / 2)
        now = read(run_dir)
        if now is None:
            return
        if now != first:
            raise HeldError(f"{what} is held by process {now.get('process')} on {now.get('host')}")
