"""`local.json`: the pools that were started in the background, so that any process can find them again.

A pool is a process in a session of its own (`hyperp.sweeps.local.background`). It holds two locks, which the
process that starts it takes and hands over open: the sweep's, as `hyperp-sweep run` does, and `local/.lock`,
which nothing else ever holds. So its own machine knows for sure whether a pool is at work; a process id
alone may by now be another process's. Other machines go by the time of `local/.lock`, which the pool renews,
because their file system may not carry locks.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import TypeAdapter

from hyperp import files
from hyperp.rundir.heartbeat import DEAD_SECONDS
from hyperp.sweeps.local.pool import LocalLauncher
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Point
from hyperp.sweeps.plan.run_config import run_of
from hyperp.sweeps.runs.manifest import Manifest

NAME = "local.json"
FOLDER = "local"  # in the sweep's folder: the lock, and what each pool printed
BEAT_SECONDS = 1.0  # between two renewals of the lock file's time
LOCK_SECONDS = 5.0  # to wait for the lock, which a process that looks at it holds for a moment
STOP_SECONDS = 30.0  # to wait for a pool to end
START_SECONDS = 60.0  # to wait for a pool to note its process


@dataclass(frozen=True)
class PoolFailure:
    """Why a run failed in a pool, for runs that could not leave a record."""

    reason: str | None
    cause: str | None = None


@dataclass(frozen=True)
class BackgroundPool:
    """An entry of local.json; `runs` are ids, in the order of the plan.

    `ended` is null while the pool is at work, and if it was killed. `done`: every run was tried; `cancelled`:
    it was stopped; `broken`: it could not go on; `followed`: it was killed, and another process took up the
    sweep.
    """

    name: str
    submitted: str
    host: str
    process: int | None
    launcher: LocalLauncher
    runs: list[str]
    failed: dict[str, PoolFailure] = field(default_factory=dict)
    ended: Literal["done", "cancelled", "broken", "followed"] | None = None

    def log(self, root: Path) -> Path:
        """The file with what the pool printed."""
        return root / FOLDER / f"{self.name}.log"


MANIFEST = Manifest(
    NAME, "pools", TypeAdapter(list[BackgroundPool]), "started", "no run is under way in the background"
)
read_pools = MANIFEST.read


def note_last_pool(root: Path, pool: BackgroundPool) -> None:
    """Replace the last entry. The caller holds that pool's lock, or the sweep's."""
    MANIFEST.write(root, [*read_pools(root)[:-1], pool])


def close_dead_pool(root: Path, ended: Literal["cancelled", "followed"] = "followed") -> None:
    """Note that a killed pool is gone. The caller holds the lock of the sweep, which the pool held."""
    pools = read_pools(root)
    if pools and pools[-1].ended in (None, "broken"):
        note_last_pool(root, replace(pools[-1], ended=ended))


def active_pool(root: Path) -> BackgroundPool | None:
    """The pool that is at work on a sweep, on any machine, or None."""
    pools = read_pools(root)
    if not pools or pools[-1].ended:
        return None
    path = root / FOLDER / ".lock"
    if files.is_locked(path):
        return pools[-1]
    with contextlib.suppress(FileNotFoundError):
        fresh = time.time() - path.stat().st_mtime < DEAD_SECONDS
        return pools[-1] if fresh and pools[-1].host != socket.gethostname() else None
    return None


def pool_logs(root: Path, run_id: str) -> list[Path]:
    """The log of the last pool that was given a run, in a list; empty without one."""
    return [pool.log(root) for pool in read_pools(root) if run_id in pool.runs][-1:]


def start_pool(root: Path, run_ids: Sequence[str], launcher: LocalLauncher, held: IO[str]) -> BackgroundPool:
    """Start a pool for planned runs, hand it the sweep's lock `held`, and wait until it has begun.

    Raises:
        RuntimeError: the process ended before it noted its id, or did not note it within START_SECONDS.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    pool = BackgroundPool(name, submitted, socket.gethostname(), None, launcher, list(run_ids))
    pool.log(root).parent.mkdir(exist_ok=True)
    with _own_lock(root) as own, pool.log(root).open("ab") as log:
        MANIFEST.write(root, [*read_pools(root), pool])
        locks = (held.fileno(), own.fileno())
        # -P: do not import a folder called hyperp in the working directory.
        command = [sys.executable, "-P", "-m", "hyperp.sweeps.local.background", str(root), *map(str, locks)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=locks, start_new_session=True
        )
    deadline = time.monotonic() + START_SECONDS
    while (noted := read_pools(root)[-1]).process is None:
        ended, late = process.poll() is not None, time.monotonic() > deadline
        if ended and read_pools(root)[-1].process is None:
            raise RuntimeError(f"the background process ended at once; {pool.log(root)} says why")
        if late and read_pools(root)[-1].process is None:
            process.kill()  # it has the locks and could still begin
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            raise RuntimeError(
                f"the background process did not begin within {START_SECONDS:g} s and was killed; "
                f"{pool.log(root)} has what it printed"
            )
        time.sleep(0.02)
    return noted


@contextlib.contextmanager
def _own_lock(root: Path) -> Iterator[IO[str]]:
    deadline = time.monotonic() + LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                file = stack.enter_context(files.lock(root / FOLDER / ".lock", f"{root / FOLDER}"))
                break
            except files.HeldError:  # by a process that looks whether a pool is at work
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield file


def pool_points(root: Path, pool: BackgroundPool) -> list[Point]:
    """The points of a pool's runs, from plan.json."""
    planned = {point.run_id: point for point in planfile.read_plan(root)}
    found = [planned[run_id] for run_id in pool.runs]
    return [
        Point(one.run_id, tuple(one.blocks), tuple(one.words), run_of(one.config), one.lr, one.flops)
        for one in found
    ]


def stop_pool(root: Path, pool: BackgroundPool) -> None:
    """Stop a pool and its workers, and wait until they are gone. Raises RuntimeError if that fails."""
    if pool.host != socket.gethostname():
        raise RuntimeError(
            f"{root} is under way on {pool.host} (process {pool.process}), which this machine cannot reach: "
            "cancel it there"
        )
    deadline = time.monotonic() + STOP_SECONDS
    while (now := active_pool(root)) and now.name == pool.name:
        if now.process is not None:  # the pool holds its lock, so the id is its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(now.process, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {now.process} did not end within {STOP_SECONDS:g} s: kill -9 it")
        time.sleep(0.1)
    with (
        contextlib.suppress(ValueError),
        planfile.lock_sweep(root),
    ):  # another process may have taken up the sweep
        close_dead_pool(root, "cancelled")
