"""One Slurm job: a few runs, one by one or side by side, that survive time limits and preemption.

Slurm sends a signal some time before it takes a job's node away. The training then finishes its step and
saves, and the job puts itself back into the queue. submitit would do that inside its signal handler, in the
middle of a step, and would count a preemption as a time-out if the limit is short; here the handler only sets
a flag.
"""

import contextlib
import json
import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from hyperp.files import HeldError, write_json
from hyperp.rundir import allocation
from hyperp.rundir.claim import Stopped
from hyperp.sweeps.runs.run import (
    execute_run,
    forget_rank,
    output_file_name,
    record_dead_run,
    redirect_output,
)
from hyperp.sweeps.slurm import commands
from hyperp.sweeps.trainers import trainer_of
from hyperp.sweeps.trainers.protocol import Ranks

WARNING = signal.SIGUSR2  # submitit's choice, which SUBMITIT_PREEMPT_SIGNAL would change
UNWRITTEN = 74  # exit code if no record could be written: EX_IOERR of sysexits.h
STOPPED = 75  # exit code if the run was stopped and saved: EX_TEMPFAIL of sysexits.h
STOPS = "stops.json"
MOST_STOPS = 5  # in a row at the same step
WAIT_SECONDS = 60.0  # for rank 0 of a run to requeue the job, which ends this process
HELD_SECONDS = 60.0  # to wait for another process that holds the run, before the job is requeued
RunArguments = tuple[dict[str, Any], str]  # configuration and folder of a run


class StopSignal:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(WARNING, self._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [WARNING])

    def __call__(self) -> bool:
        """True once the signal has come."""
        return self.asked

    def _ask(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.asked = True


class Task:
    """What submitit pickles and calls with the runs of one job. `several`: several processes do one run."""

    def __init__(self, side_by_side: bool = False, several: bool = False):
        self.side_by_side, self.several = side_by_side, several

    def __call__(self, runs: list[RunArguments]) -> list[str]:
        """Do the runs; return how each ended. Exits with code 1 if one failed, so that Slurm shows it too."""
        stop = StopSignal()
        export_rank(self.several)
        alone = not self.side_by_side or len(runs) == 1
        ended = (
            [do_run(config, run_dir, stop) for config, run_dir in runs]
            if alone
            else run_side_by_side(runs, stop)
        )
        if "waits" in ended:
            time.sleep(WAIT_SECONDS)
            sys.exit(STOPPED)
        if "stopped" in ended:
            requeue_and_exit(
                [run_dir for (_, run_dir), how in zip(runs, ended, strict=True) if how == "stopped"]
            )
        if "unwritten" in ended:
            sys.exit(UNWRITTEN)
        if "failed" in ended:
            sys.exit(1)
        return ended

    def checkpoint(self, runs: list[RunArguments]) -> Any:
        """Submit the same job again, for a signal that comes before the first line of `__call__`."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, runs)


def export_rank(several: bool) -> None:
    """Set the variables that tell torch its rank, if Slurm started `several` processes for the run."""
    forget_rank()  # Slurm hands on the variables of the shell that submitted the job
    if several:
        from submitit.helpers import TorchDistributedEnvironment

        # Slurm has chosen the devices; LOCAL_RANK counts among those.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def do_run(config: dict[str, Any], run_dir: str, stop: StopSignal) -> str:
    """Do one run; return its record's status, `stopped` if it was stopped, `unwritten` without a record."""
    rank = os.environ.get("RANK")
    if stop() and rank is None:  # several processes stop together, after a step
        return "stopped"
    try:
        redirect_output(Path(run_dir), output_file_name(int(rank or 0)))
        return _do_with_ranks(config, run_dir, stop)
    except OSError as error:  # mostly a full disk: the training could not even record its failure
        with contextlib.suppress(OSError):  # output goes to the same disk
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "unwritten"
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


def _do_with_ranks(config: dict[str, Any], run_dir: str, stop: StopSignal) -> str:
    with trainer_of(config).join(config) as ranks:
        return _train_when_free(config, run_dir, stop, ranks)


def _train_when_free(config: dict[str, Any], run_dir: str, stop: StopSignal, ranks: Ranks) -> str:
    deadline = time.monotonic() + HELD_SECONDS
    while True:
        try:
            ended = execute_run(config, run_dir, stop=stop)["status"]
            (Path(run_dir) / STOPS).unlink(missing_ok=True)
            return ended
        except Stopped as stopped:
            if not ranks.is_main:
                return "waits"
            if count_stops(Path(run_dir), stopped.saved) <= MOST_STOPS:
                return "stopped"
            reason = f"stopped {MOST_STOPS} times in a row at step {stopped.step}: launcher.time is too short"
            return record_dead_run(config, run_dir, reason, cause="timed_out")["status"]
        except HeldError as error:  # a job whose node looked dead may still be at work
            print(error, file=sys.stderr, flush=True)
            if ranks.largest(stop() or time.monotonic() > deadline):
                return "stopped" if ranks.is_main else "waits"
            time.sleep(1)


def count_stops(run_dir: Path, saved: int) -> int:
    """How many times in a row the run was stopped with the same `saved`, now included; updates stops.json."""
    path = run_dir / STOPS
    try:
        before = json.loads(path.read_text())
        times = before["times"] + 1 if before["step"] == saved else 1
    except (OSError, ValueError, KeyError, TypeError):
        times = 1
    write_json(path, {"step": saved, "times": times})
    return times


def run_side_by_side(runs: list[RunArguments], stop: StopSignal) -> list[str]:
    """Do the runs at the same time, each in a process of its own."""
    context = get_context("spawn")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    shares = [gpus[i % len(gpus)] for i in range(len(runs))]
    processes = [
        context.Process(target=run_alone, args=(*run, gpu)) for run, gpu in zip(runs, shares, strict=True)
    ]
    # Blocked in a new process until it can handle the signal, which by default would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [WARNING])
    for process in processes:
        process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [WARNING])
    warned = False
    while any(process.is_alive() for process in processes):
        if stop() and not warned:  # Slurm may have signalled only the job's first process
            warned = True
            for process in processes:
                if process.pid and process.is_alive():
                    os.kill(process.pid, WARNING)
        time.sleep(0.1)
    return [
        outcome_of_exit(*run, process.exitcode or 0) for run, process in zip(runs, processes, strict=True)
    ]


def run_alone(config: dict[str, Any], run_dir: str, gpu: str) -> NoReturn:
    """The main function of a process for one run; it sees one of the job's GPUs, if there are any."""
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    ended = do_run(config, run_dir, StopSignal())
    os._exit({"stopped": STOPPED, "unwritten": UNWRITTEN, "failed": 1}.get(ended, 0))


def outcome_of_exit(config: dict[str, Any], run_dir: str, code: int) -> str:
    """How a run ended, from its process's exit code; writes a failed record if the process died."""
    if code in (0, 1, STOPPED, UNWRITTEN):
        return {0: "finished", 1: "failed", STOPPED: "stopped", UNWRITTEN: "unwritten"}[code]
    reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return record_dead_run(config, run_dir, reason, cause="killed" if code < 0 else "exited")["status"]


def requeue_and_exit(run_dirs: list[str]) -> NoReturn:
    """Put this job back into the queue and exit; note it in the runs' logs if Slurm refuses."""
    job = allocation.job_id()
    assert job is not None
    sys.stdout.flush()
    try:
        commands.requeue_job(job)
    except commands.SlurmError as error:  # such as for a job with --no-requeue
        for run_dir in run_dirs:
            log = Path(run_dir) / "output.log"
            with log.open("a") as file:
                file.write(f"saved, but job {job} could not go back into the queue: {error}\n")
    sys.exit(STOPPED)
