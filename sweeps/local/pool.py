"""The local launcher: trains runs on this machine, several at a time, each in a worker with cores and a GPU.

Workers are spawned once and do run after run, so that each imports torch once. If a worker dies, its run is
`failed` and another worker takes its place; if this process dies, its workers end too.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hyperp.sweeps.local.resources import core_shares, usable_cores
from hyperp.sweeps.plan.plan import Plan, Point
from hyperp.sweeps.plan.run_config import values_of
from hyperp.sweeps.runs.run import (
    execute_run,
    forget_rank,
    record_dead_run,
    redirect_output,
    remove_heartbeat,
)
from hyperp.sweeps.trainers import trainer_of
from hyperp.validation import Strict, invalid_field

TICK_SECONDS = 0.5  # between two events while nothing happens
MESSAGE_SECONDS = 0.25  # between two progress messages of a worker
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalLauncher(Strict):
    """The `launcher` section. `workers=0` is one for each GPU, or one for every `threads` usable cores."""

    name: Literal["local"]
    workers: int = Field(ge=0)
    threads: int = Field(ge=1)


@dataclass(frozen=True)
class RunStarted:
    """A worker began a run."""

    worker: int
    run_id: str


@dataclass(frozen=True)
class RunProgressed:
    """A run reached `step` of `steps`."""

    worker: int
    run_id: str
    step: int
    steps: int
    tokens_per_second: float


@dataclass(frozen=True)
class RunEnded:
    """A run ended with this status; `failed` also if its worker died."""

    worker: int
    run_id: str
    status: str
    reason: str | None
    cause: str | None = None


@dataclass(frozen=True)
class Idle:
    """Nothing happened for TICK_SECONDS."""


Event = RunStarted | RunProgressed | RunEnded | Idle


def read_local_launcher(plan: Plan) -> LocalLauncher:
    """The launcher of a plan. Raises ValueError, naming the field."""
    try:
        return LocalLauncher.model_validate(plan.launcher)
    except ValidationError as error:
        raise ValueError(invalid_field(error, "launcher")) from None


def run_pool(
    points: Sequence[Point], launcher: LocalLauncher, gpus: Sequence[str] = ()
) -> Generator[Event, None, None]:
    """Do the runs, longest first, and yield what happens. Closing the generator stops the workers at once.

    Workers get one of `gpus` each, in turn, and see no other; without any, all see the same. A run that is
    stopped by closing leaves no record and goes on from its checkpoint next time. Call this from the main
    thread, which alone can shield the workers from Ctrl-C.

    Raises:
        RuntimeError: a worker died before it could take a run.
    """
    pool = _Pool(points, launcher, gpus)
    try:
        yield from pool.events()
    finally:
        pool.stop()


@dataclass(frozen=True)
class WorkerShare:
    """A worker's share of the machine: `cores` None is unpinned, `gpu` None is every GPU of this process."""

    cores: list[int] | None
    threads: int
    gpu: str | None = None


def worker_shares(launcher: LocalLauncher, runs: int, gpus: Sequence[str]) -> list[WorkerShare]:
    """The share of each worker; there are never more workers than runs."""
    cores, usable = usable_cores()
    workers = min(launcher.workers or len(gpus) or max(1, usable // launcher.threads), runs)
    pinned = core_shares(cores, usable, workers, launcher.threads)
    return [
        WorkerShare(own, launcher.threads, gpus[i % len(gpus)] if gpus else None)
        for i, own in enumerate(pinned)
    ]


class _Worker:
    """A spawned process and this end of its pipe."""

    def __init__(self, index: int, share: WorkerShare, prepare: Callable[[], None]):
        self.index, self.share, self.prepare = index, share, prepare
        self.task: Point | None = None
        self.ready = False
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=run_worker, args=(other, share, prepare), name=f"worker {index}"
        )
        # The worker inherits this, so that Ctrl-C in a terminal reaches only this process.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        other.close()  # so that the pipe ends when the worker does

    def give(self, point: Point) -> None:
        self.task = point
        config = values_of(point.config)
        config["runtime"]["threads"] = self.share.threads
        self.pipe.send((config, str(point.run_dir)))

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    def __init__(self, points: Sequence[Point], launcher: LocalLauncher, gpus: Sequence[str]):
        self.queue = deque(sorted(points, key=lambda point: -point.flops))
        self.workers: list[_Worker] = []
        self.shares = worker_shares(launcher, len(points), gpus)
        self.prepare = trainer_of(values_of(self.queue[0].config)).prepare if self.queue else _prepare_nothing

    def events(self) -> Iterator[Event]:
        if not self.queue:
            return
        for index, share in enumerate(self.shares):
            self.workers.append(_Worker(index, share, self.prepare))
        while self.queue or any(worker.task for worker in self.workers):
            ready = wait([worker.pipe for worker in self.workers], timeout=TICK_SECONDS)
            if not ready:
                yield Idle()
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                yield from self.receive(worker)

    def receive(self, worker: _Worker) -> Iterator[Event]:
        try:
            kind, *values = worker.pipe.recv()
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message
            yield from self.replace(worker)
            return
        run_id = worker.task.run_id if worker.task else ""
        if kind == "step":
            yield RunProgressed(worker.index, run_id, *values)
            return
        if kind == "ended":
            worker.task = None
            yield RunEnded(worker.index, run_id, *values)
        worker.ready = True
        if self.queue:
            yield from self.assign(worker)

    def assign(self, worker: _Worker) -> Iterator[Event]:
        point = self.queue.popleft()
        try:
            worker.give(point)
        except OSError:  # it has just died; the end of its pipe will say so
            self.queue.appendleft(point)
            worker.task = None
            return
        yield RunStarted(worker.index, point.run_id)

    def replace(self, worker: _Worker) -> Iterator[Event]:
        """Record the run of a worker that died, and start another worker if there is more to do."""
        worker.process.join()
        code = worker.process.exitcode or 0
        reason = f"worker killed by signal {-code}" if code < 0 else f"worker exited with code {code}"
        if not worker.ready:
            raise RuntimeError(f"{reason} before it could take a run; see what it printed above")
        worker.pipe.close()
        if worker.task:
            how = _note_failure(worker.task, reason, "killed" if code < 0 else "exited")
            yield RunEnded(worker.index, worker.task.run_id, *how)
        self.workers.remove(worker)
        if self.queue:
            self.workers.append(_Worker(worker.index, worker.share, self.prepare))

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
            if worker.task:
                remove_heartbeat(worker.task.run_dir)


def _note_failure(point: Point, reason: str, cause: str) -> tuple[str, str | None, str | None]:
    """Status, reason and cause of a run whose worker died; a full disk must not end the other runs."""
    try:
        ended = record_dead_run(values_of(point.config), str(point.run_dir), reason, cause=cause)
    except OSError as error:
        return "failed", f"{reason}; no record could be written: {error}", cause
    return ended["status"], ended["reason"], ended["cause"]


def _prepare_nothing() -> None: ...


def run_worker(pipe: Connection, share: WorkerShare, prepare: Callable[[], None]) -> None:
    """The main function of a worker process: do the runs that come through the pipe, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if share.cores is not None:
        os.sched_setaffinity(0, share.cores)
    for name in THREAD_VARIABLES:  # torch reads them when it is imported, below
        os.environ[name] = str(share.threads)
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    threading.Thread(target=_follow_parent, daemon=True).start()
    forget_rank()
    prepare()
    pipe.send(("ready",))
    while True:
        try:
            config, run_dir = pipe.recv()
        except EOFError:
            return
        pipe.send(("ended", *_train_in_worker(config, run_dir, pipe)))


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_in_worker(
    config: dict[str, Any], run_dir: str, pipe: Connection
) -> tuple[str, str | None, str | None]:
    last = 0.0

    def report(step: int, steps: int, loss: float, tokens_per_second: float) -> None:  # noqa: ARG001
        nonlocal last
        if time.monotonic() - last >= MESSAGE_SECONDS:
            last = time.monotonic()
            try:
                pipe.send(("step", step, steps, tokens_per_second))
            except OSError:  # the parent is gone, which is no failure of this run
                os._exit(1)

    try:
        redirect_output(Path(run_dir))
        result = execute_run(config, run_dir, report)
    except Exception as error:  # mostly a full disk: the training records its own failures
        return "failed", f"{type(error).__name__}: {error}".splitlines()[0], "raised"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return result["status"], result["reason"], result["cause"]
