"""A sign of life that other processes read while a run is under way."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperp import allocation
from hyperp.files import write_json

SECONDS = 1.0  # between two signs
FILE = "heartbeat.json"


class Heartbeat:
    """Writes `run_dir`/heartbeat.json from a thread, so that long steps look alive too; the end removes it.

    `news` gives step, steps and tokens_per_second; the file adds time (of the epoch, s), host, process, job.
    """

    def __init__(self, run_dir: Path, news: Callable[[], dict[str, Any]]):
        self.path, self.news = run_dir / FILE, news
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self.stop.wait(SECONDS):
            self._write()

    def _write(self) -> None:
        who = {"host": socket.gethostname(), "process": os.getpid(), "job": allocation.job_id()}
        with contextlib.suppress(OSError):  # a full disk must not end a run for a sign of life
            write_json(self.path, self.news() | {"time": time.time()} | who, durable=False)
