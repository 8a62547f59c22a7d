"""The trainer that is a command: start it, follow it, stop it, and make the record of how it ended."""

import glob
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hyperp.files import HeldError, write_json
from hyperp.rundir import allocation, failure, heartbeat, record
from hyperp.rundir.claim import LOCK, Stopped, claim_run, completed_record
from hyperp.rundir.heartbeat import HeartbeatWriter
from hyperp.rundir.record import Record
from hyperp.sweeps.plan.command_run import CommandRun, git_state
from hyperp.sweeps.plan.placeholders import fill
from hyperp.sweeps.plan.plan import Point
from hyperp.sweeps.plan.run_config import facts_of, run_of, values_of
from hyperp.sweeps.trainers import guard
from hyperp.sweeps.trainers.attempts import Attempts
from hyperp.sweeps.trainers.command_record import failed_exit, make_record, record_of_exit
from hyperp.sweeps.trainers.output import OutputFollower
from hyperp.sweeps.trainers.protocol import Ranks, Report

TICK_SECONDS = 0.2
CLAIM_SECONDS = heartbeat.SILENCE_SECONDS + 10  # after which rank 0 has claimed the run, or never will
MENDABLE = ("killed", "out_of_memory")  # causes that another attempt may not meet


@dataclass(frozen=True)
class EnvironmentRanks:
    """The processes of a run, from the environment: each runs the command, and rank 0 writes the record."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the record."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """This process's number: commands of several processes agree among themselves."""
        return number


def environment_ranks() -> EnvironmentRanks:
    """This process's place among those of its run."""
    return EnvironmentRanks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


class CommandTrainer:
    """Implements `Trainer`; a command needs no torch here."""

    def prepare(self) -> None:
        """Import nothing."""

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError for a working directory or a program that is not there."""
        for point in points:
            run = point.config
            assert isinstance(run, CommandRun)
            if not Path(run.folder).is_dir():
                raise ValueError(f"trainer.cwd must be a folder, got {run.trainer.cwd} ({run.folder})")
            program = self.command(point)[0]
            there = Path(run.folder, program).is_file() if "/" in program else shutil.which(program)
            if not there:
                raise ValueError(
                    f"trainer.command must begin with a program of this machine, got {program!r}; "
                    "{python} is the Python of hyperp-sweep"
                )

    def command(self, point: Point) -> list[str]:
        """The command as it would be started here, from the start."""
        assert isinstance(point.config, CommandRun)
        return point.config.arguments(make_places(point.run_dir.resolve(), point.config))

    @contextmanager
    def join(self, values: Mapping[str, Any]) -> Iterator[Ranks]:  # noqa: ARG002
        """The processes that Slurm started; the command makes them meet."""
        yield environment_ranks()

    def execute(
        self, values: Mapping[str, Any], run_dir: Path, report: Report | None, stop: Callable[[], bool]
    ) -> Record | None:
        """Run the command; see `Trainer`."""
        run, ranks = run_of(values), environment_ranks()
        assert isinstance(run, CommandRun)
        run_dir = run_dir.resolve()  # the command has another working directory
        if not ranks.is_main:
            _execute_beside(run, run_dir, ranks, stop)
            return None
        done = completed_record(run.run_id(), run_dir)
        if done is not None:
            return done
        with ExitStack() as held:
            claimed = claim_run(run.run_id(), values_of(run), run_dir, held)
            if isinstance(claimed, Record):
                return claimed
            if other_code := _other_code(run):
                return self.record_failure(values, run_dir, other_code, None, "raised")
            ended, again = _attempt(run, run_dir, claimed, report, stop), run.trainer.retries
            while ended.cause in MENDABLE and again:
                print(f"failed: {ended.reason}; trying again", file=sys.stderr, flush=True)
                ended, again = _attempt(run, run_dir, claimed, report, stop), again - 1
            record.save(ended, run_dir)
            if ended.status != "failed":
                (run_dir / LOCK).unlink(missing_ok=True)
        return ended

    def record_failure(
        self,
        values: Mapping[str, Any],
        run_dir: Path,
        reason: str,
        environment: dict[str, str] | None,
        cause: str | None,
    ) -> Record:
        """Write a failed record."""
        run = run_of(values)
        assert isinstance(run, CommandRun)
        run_dir.mkdir(parents=True, exist_ok=True)
        where = allocation.slurm_environment() if environment is None else environment
        ended = {"status": "failed", "reason": reason, "cause": cause}
        failed = make_record(run, Attempts.load(run_dir), ended, where)
        record.save(failed, run_dir)
        (run_dir / heartbeat.FILE).unlink(missing_ok=True)
        return failed


def _other_code(run: CommandRun) -> str | None:
    """Why a run cannot be done: its code is at another commit than when it was planned; None if it is not."""
    planned, now = run.trainer.commit, git_state(Path(run.folder))[0]
    if planned is None or now == planned:
        return None
    return f"{run.folder} must be at commit {planned[:12]}, as planned, got {str(now)[:12]}: plan again"


def make_places(run_dir: Path, run: CommandRun) -> dict[str, Any]:
    """The values of PLACES in this process."""
    env = os.environ
    gpus = [one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return {
        "run_dir": run_dir,
        "run_id": run.run_id(),
        "python": sys.executable,
        "gpus": max(1, len(gpus)),
        "threads": run.runtime.threads or max(1, int(env.get("OMP_NUM_THREADS") or 1)),
        "nodes": env.get("SLURM_JOB_NUM_NODES", "1"),
        "node_rank": env.get("SLURM_NODEID", "0"),
        "processes": env.get("WORLD_SIZE", "1"),
        "rank": env.get("RANK", "0"),
        "master_addr": env.get("MASTER_ADDR", "127.0.0.1"),
        "master_port": env.get("MASTER_PORT", "29500"),
    }


def _start(
    run: CommandRun, run_dir: Path, checkpoint: Path | None, held: IO[str] | None
) -> "subprocess.Popen[bytes]":
    """Start the command under its guard, with this process's output, which goes to the run's log."""
    places = make_places(run_dir, run)
    environment = os.environ | {"HYPERP_RUN_DIR": str(run_dir)} | run.environment(places)
    asked = run.trainer.stop
    command = run.arguments(places, checkpoint)
    guarding = [str(os.getpid()), asked.signal, f"{asked.grace:g}", run.folder]
    guarded = [sys.executable, "-I", guard.__file__, *guarding, *command]
    sys.stdout.flush()
    sys.stderr.flush()
    pass_fds = [] if held is None else [held.fileno()]
    return subprocess.Popen(
        guarded, env=environment, stdin=subprocess.DEVNULL, pass_fds=pass_fds, preexec_fn=_ignore_warning
    )


def _ignore_warning() -> None:
    # Slurm sends its warning to every process of a job; only the worker is to act on it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _newest_checkpoint(run: CommandRun, run_dir: Path) -> Path | None:
    """What matches `resume.when` and was changed last; None without a match."""
    resume = run.trainer.resume
    if resume is None:
        return None
    found = glob.glob(fill(resume.when, {**run.values, **make_places(run_dir, run)}))  # noqa: PTH207
    return max(map(Path, found), key=lambda path: path.stat().st_mtime_ns, default=None)


def _attempt(
    run: CommandRun, run_dir: Path, held: IO[str], report: Report | None, stop: Callable[[], bool]
) -> Record:
    """Run the command once, and make the record of how it ended."""
    facts, checkpoint = facts_of(run), _newest_checkpoint(run, run_dir)
    if checkpoint is None:
        _set_results_aside(run, run_dir)
    output = OutputFollower(run_dir / "output.log", run.trainer.progress, facts.steps, facts.tokens)
    attempts, began = (
        Attempts.load(run_dir).begin(run_dir, checkpoint is not None, output.position),
        time.monotonic(),
    )
    output.step = attempts.step if checkpoint else 0

    def progress() -> dict[str, Any]:
        return {"step": output.step, "steps": output.steps, "tokens_per_second": output.speed()}

    process, warned = _start(run, run_dir, checkpoint, held), False
    try:
        with HeartbeatWriter(run_dir, progress) as beat:
            while process.poll() is None:
                if output.update() and report:
                    report(output.step, max(output.steps, output.step), math.nan, output.speed())
                lost = beat.lost or _first_failed_rank(run_dir) is not None
                if (stop() or lost) and not warned:
                    warned = True
                    process.terminate()
                time.sleep(TICK_SECONDS)
            if beat.lost:
                raise HeldError("the run was taken over by another process")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    output.update()
    attempts = attempts.end(run_dir, time.monotonic() - began, output.step)
    elsewhere = _first_failed_rank(run_dir)
    if elsewhere is not None:
        return make_record(run, attempts, {"status": "failed", **elsewhere})
    if warned:
        return _record_of_stopped(run, run_dir, attempts, output, process.returncode)
    if process.returncode == -signal.SIGTERM:  # by somebody who stops everything here, such as Slurm
        ended = {
            "status": "failed",
            "reason": f"ended from outside at step {output.step}",
            "cause": "cancelled",
        }
        return make_record(run, attempts, ended)
    return record_of_exit(run, make_places(run_dir, run), attempts, output, process.returncode)


def _set_results_aside(run: CommandRun, run_dir: Path) -> None:
    """Rename results in the run's folder that an earlier attempt has left: this one begins from nothing."""
    number = Attempts.load(run_dir).started
    places = {**run.values, **make_places(run_dir, run)}
    for source in run.trainer.result.values():
        for found in map(Path, glob.glob(fill(source.place, places)) if source.place else []):  # noqa: PTH207
            if run_dir in found.resolve().parents:
                found.replace(found.with_name(f"{found.name}.{number}.old"))


def _record_of_stopped(
    run: CommandRun, run_dir: Path, attempts: Attempts, output: OutputFollower, code: int
) -> Record:
    """Raise Stopped for a command that ended as it was asked; one that had to be killed has failed.

    What it has saved is known by the time of its newest checkpoint; without one, each stop is at the start.
    """
    asked = run.trainer.stop
    if code == -signal.SIGKILL:
        reason = f"ignored {asked.signal} for {asked.grace:g} s and was killed"
        return make_record(run, attempts, {"status": "failed", "reason": reason, "cause": "timed_out"})
    checkpoint = _newest_checkpoint(run, run_dir)
    raise Stopped(output.step, saved=checkpoint.stat().st_mtime_ns if checkpoint else 0)


def _first_failed_rank(run_dir: Path) -> dict[str, str] | None:
    """Reason and cause of the first other process of the run that has failed; None without one."""
    found = failure.read_failures(run_dir)
    if not found:
        return None
    first = failure.first_failure(found)
    return {"reason": f"rank {first.rank}: {first.reason}", "cause": first.cause}


def _execute_beside(
    run: CommandRun, run_dir: Path, ranks: EnvironmentRanks, stop: Callable[[], bool]
) -> None:
    """Run the command as one of several processes that is not the first; a failure is left for rank 0.

    Raises Stopped if it was asked to stop, and RuntimeError if the command failed.
    """
    log = run_dir / f"output.{ranks.rank}.log"
    output = OutputFollower(log, None, None, None)
    process, warned = _start(run, run_dir, _newest_checkpoint(run, run_dir), None), False
    try:
        while process.poll() is None:
            if stop() and not warned:
                warned = True
                process.terminate()
            time.sleep(TICK_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if warned:
        raise Stopped(0)
    if process.returncode:
        how = failed_exit(process.returncode, output)
        found = failure.Failure(ranks.rank, ranks.size, how["reason"], how["cause"], "", time.time())
        _leave_failure(run_dir, found)
        raise RuntimeError(how["reason"])


def _leave_failure(run_dir: Path, found: failure.Failure) -> None:
    """Write why this process failed, also once rank 0 has claimed the run, which clears older failures."""
    path = run_dir / failure.ERROR_FILE.format(rank=found.rank)
    deadline = time.monotonic() + CLAIM_SECONDS
    while True:
        claimed = (run_dir / heartbeat.FILE).exists() or time.monotonic() > deadline
        with suppress(OSError):
            if not path.exists():
                write_json(path, vars(found))
        if claimed:
            return
        time.sleep(TICK_SECONDS)
