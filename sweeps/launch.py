"""Starting the runs of a plan, on this machine or in Slurm, and taking them back.

`run`, `submit` and `cancel` are the functions of the Python API (`hyperp.sweeps`) that the commands of the
same names call.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hyperp.sweeps.account import add_job_states, last_submissions, status
from hyperp.sweeps.console import warn
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.pool import Event, RunEnded, read_local_launcher
from hyperp.sweeps.local.work import run_with_display
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan, Point
from hyperp.sweeps.plan.run_config import values_of
from hyperp.sweeps.runs.status import (
    DONE,
    UNDER_WAY,
    Run,
    count_statuses,
    final_states,
    join_counts,
    plan_states,
    set_damaged_aside,
    survey_runs,
)
from hyperp.sweeps.slurm import submissions
from hyperp.sweeps.slurm.commands import cancel_jobs, queued_jobs
from hyperp.sweeps.slurm.submissions import Submission
from hyperp.sweeps.slurm.submit import SlurmLauncher, check_rank_batches, read_slurm_launcher, submit_arrays
from hyperp.sweeps.trainers import trainer_of
from hyperp.sweeps.trainers.builtin import check_buildable

WATCH_SECONDS = 5.0  # between two looks at a sweep that is under way


class UnknownJobsError(RuntimeError):
    """Slurm does not say what became of jobs that were submitted before."""


@dataclass(frozen=True)
class Submitted:
    """What `submit` handed over: `run_ids`, to a background `process` or as the jobs of `arrays`.

    `kept` are the plan's other runs: done, or under way already.
    """

    root: Path
    run_ids: tuple[str, ...]
    kept: tuple[Run, ...]
    process: int | None = None
    arrays: tuple[Submission, ...] = ()

    def __str__(self) -> str:
        where = f" to process {self.process} on this machine" if self.process else ""
        if self.arrays:
            jobs = ", ".join(one.job or one.name for one in self.arrays)
            where = f" as {sum(len(one.tasks) for one in self.arrays)} jobs, Slurm's {jobs}"
        before = f" ({join_counts(count_statuses(self.kept))} before)" if self.kept else ""
        total = len(self.run_ids) + len(self.kept)
        return f"submitted {len(self.run_ids)} of {total} runs{where}{before}; {self.root}"


@dataclass(frozen=True)
class Cancelled:
    """What `cancel` stopped: `number` runs of a background `process`, or that many Slurm jobs."""

    root: Path
    number: int = 0
    process: int | None = None
    in_slurm: bool = False

    def __str__(self) -> str:
        plural = "s" * (self.number != 1)
        if self.process is not None:
            return f"cancelled {self.number} run{plural} of process {self.process}; {self.root}"
        if self.in_slurm:
            return f"cancelled {self.number} job{plural}; {self.root}"
        return f"cancelled 0 runs: none is in the background or in Slurm; {self.root}"


def run(plan: Plan) -> list[Run]:
    """Train every run of a plan that has not finished or diverged, several at a time, on this machine.

    Shows progress on standard error and returns when every run has ended. Ctrl-C stops it; calling it again
    goes on from the last checkpoints.

    Returns:
        The runs in the order of the plan, each finished, diverged or failed.

    Raises:
        ValueError: the launcher is not `local`, a run cannot be built here, or runs are under way elsewhere.
        RuntimeError: worker processes cannot start.
    """
    launcher = read_local_launcher(plan)
    before = add_job_states(plan.root, plan_states(plan), warn)
    refuse_under_way(plan, before)
    todo = undone_points(plan, before)
    failures: dict[str, str] = {}

    def note_failure(event: Event) -> None:
        if isinstance(event, RunEnded) and event.status == "failed" and event.reason:
            failures[event.run_id] = event.reason

    with planfile.lock_sweep(plan.root):
        background_pools.close_dead_pool(plan.root)
        set_damaged_aside(plan.root, before, warn)
        planfile.write_plan(plan)
        if todo:
            run_with_display(todo, launcher, note_failure)
    return final_states(plan, failures)


def submit(plan: Plan) -> Submitted:
    """Hand over every run of a plan that is neither done nor under way, and return at once.

    `launcher=local` starts a process in the background of this machine, which outlives the terminal;
    `launcher=slurm` submits arrays of jobs.

    Raises:
        ValueError: the launcher is wrong, a run cannot be built, or a background process has other runs.
        RuntimeError: the background process does not start, or Slurm refuses the jobs or does not answer.
    """
    return _submit_to_background(plan) if is_local(plan) else _submit_to_slurm(plan)


def _submit_to_background(plan: Plan) -> Submitted:
    launcher = read_local_launcher(plan)
    before = add_job_states(plan.root, plan_states(plan), warn)
    active = background_pools.active_pool(plan.root)
    if active is None:
        refuse_under_way(plan, before)
    kept = tuple(run for run in before if run.status in (*DONE, *(UNDER_WAY if active else ())))
    if active and len(kept) == len(before):
        return Submitted(plan.root, (), kept)
    if active:
        raise ValueError(
            f"process {active.process} on {active.host} is at work on {plan.root}: wait for it, or stop it "
            f"with hyperp-sweep cancel {plan.root}; then submit what is left"
        )
    run_ids = tuple(point.run_id for point in undone_points(plan, before))
    with planfile.lock_sweep(plan.root) as held:
        background_pools.close_dead_pool(plan.root)
        set_damaged_aside(plan.root, before, warn)
        planfile.write_plan(plan)
        pool = background_pools.start_pool(plan.root, run_ids, launcher, held) if run_ids else None
    return Submitted(plan.root, run_ids, kept, process=pool.process if pool else None)


def _submit_to_slurm(plan: Plan) -> Submitted:
    launcher = _slurm_launcher(plan)
    with planfile.lock_sweep(plan.root):
        before = add_job_states(plan.root, plan_states(plan), _refuse_unknown)
        kept = tuple(run for run in before if run.status in (*DONE, *UNDER_WAY))
        known = {run.run_id for run in kept}
        todo = [point for point in plan.points if point.run_id not in known]
        check_buildable(todo)
        set_damaged_aside(plan.root, before, warn)
        planfile.write_plan(plan)
        arrays = submit_arrays(plan.root, todo, launcher)
    return Submitted(plan.root, tuple(point.run_id for point in todo), kept, arrays=tuple(arrays))


def submit_and_wait(plan: Plan) -> Submitted:
    """Submit a plan and return when none of its runs is queued or running."""
    submitted = submit(plan)
    while under_way(plan):
        time.sleep(WATCH_SECONDS)
    return submitted


def under_way(plan: Plan) -> bool:
    """Whether runs of a plan are queued or running; true, with a warning, while Slurm does not answer."""
    try:
        runs = add_job_states(plan.root, plan_states(plan), _refuse_unknown)
        return any(run.status in UNDER_WAY for run in runs)
    except UnknownJobsError as error:  # mostly for a while: jobs go on without their controller
        warn(f"{error}; asking again")
        return True


def _refuse_unknown(text: str) -> NoReturn:
    raise UnknownJobsError(text.partition(";")[0])


def cancel(root: str | Path, run_ids: Iterable[str] = ()) -> Cancelled:
    """Stop what was submitted from a sweep's folder; checkpoints are kept, and submitting again goes on.

    `run_ids` picks runs in Slurm; runs that share a job are cancelled together. A background process can only
    be stopped as a whole.

    Raises:
        ValueError: a run id was not submitted, or some were given for a background process.
        RuntimeError: the process is on another machine or does not end, or Slurm does not answer.
    """
    root, wanted = Path(root), list(run_ids)
    pool = background_pools.active_pool(root)
    if pool and wanted:
        raise ValueError(
            f"RUN_IDS must be left out for runs in the background: {root} is cancelled as a whole, "
            f"got {', '.join(wanted)}"
        )
    if pool:
        stopped = [run for run in status(root) if run.job == pool.name and run.status in UNDER_WAY]
        background_pools.stop_pool(root, pool)
        return Cancelled(root, len(stopped), process=pool.process)
    if not (root / submissions.NAME).exists():
        survey_runs(root)  # raises if it is not the folder of a sweep
        return Cancelled(root)
    sent = last_submissions(root, queued_jobs())
    if unknown := sorted(set(wanted) - set(sent)):
        raise ValueError(f"RUN_IDS must be runs that were submitted from {root}, got {', '.join(unknown)}")
    chosen = [one for run_id, one in sent.items() if not wanted or run_id in wanted]
    jobs = sorted({one.job.job_id for one in chosen if one.job and one.in_flight})
    cancel_jobs(jobs)
    return Cancelled(root, len(jobs), in_slurm=True)


def is_local(plan: Plan) -> bool:
    """Whether a plan's launcher is this machine's, and not Slurm."""
    return plan.launcher.get("name") != "slurm"


def check_launcher(plan: Plan) -> None:
    """Raise ValueError for a launcher that `run` and `submit` would refuse."""
    if is_local(plan):
        read_local_launcher(plan)
    else:
        _slurm_launcher(plan)


def _slurm_launcher(plan: Plan) -> SlurmLauncher:
    """The launcher of a plan. Raises ValueError if it is wrong, or cannot do what is left of the plan."""
    launcher = read_slurm_launcher(plan)
    runs = zip(plan.points, plan_states(plan), strict=True)
    check_rank_batches([point for point, run in runs if run.status not in DONE], launcher)
    return launcher


def refuse_under_way(plan: Plan, runs: Sequence[Run]) -> None:
    """Raise ValueError if runs of the plan are under way in Slurm, or in the background."""
    busy = [run for run in runs if run.status in UNDER_WAY and run.job]
    if busy:
        where = "in the background" if background_pools.active_pool(plan.root) else "in Slurm"
        raise ValueError(
            f"{len(busy)} of the runs are queued or running {where}; wait for them, or take them back: "
            f"hyperp-sweep cancel {plan.root}"
        )


def undone_points(plan: Plan, runs: Sequence[Run]) -> list[Point]:
    """The points that are not done. Raises ValueError if this machine cannot train them."""
    todo = [point for point, run in zip(plan.points, runs, strict=True) if run.status not in DONE]
    check_points(todo)
    return todo


def check_points(points: Sequence[Point]) -> None:
    """Raise ValueError for points that their trainer cannot do on this machine; tell what is doubtful."""
    for kind in {type(point.config) for point in points}:
        own = [point for point in points if isinstance(point.config, kind)]
        trainer_of(values_of(own[0].config)).check(own)
