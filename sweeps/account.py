"""What became of every run: what the runs wrote, and where they are silent, what Slurm says of their jobs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperp.files import HeldError, lock
from hyperp.rundir.failure import RANK_LOST
from hyperp.rundir.record import Record
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.background_pools import BackgroundPool
from hyperp.sweeps.runs.status import DONE, Run, run_state, survey_runs
from hyperp.sweeps.slurm import commands, submissions
from hyperp.sweeps.slurm.commands import SlurmError, SlurmJob
from hyperp.sweeps.slurm.job import STOPPED, UNWRITTEN
from hyperp.sweeps.slurm.submissions import Submission

Warn = Callable[[str], None]


@dataclass(frozen=True)
class SubmittedRun:
    """Where a run was sent last: its task of a submission, and the job, once Slurm has named it."""

    submission: Submission
    task: int
    job_id: str | None
    job: SlurmJob | None = None


def last_submissions(root: Path, jobs: dict[str, SlurmJob]) -> dict[str, SubmittedRun]:
    """The last task that each run was part of, by run id; `jobs` are those of the queue."""
    found = {}
    numbers = {job.name: job_id.partition("_")[0] for job_id, job in jobs.items()}
    for submission in submissions.read_submissions(root):
        if submission.job is None and submission.name in numbers:  # its submitter died in between
            submission = replace(submission, job=numbers[submission.name])
        for task, run_ids in enumerate(submission.tasks):
            job_id = submission.job_id(task)
            job = jobs.get(job_id) if job_id else None
            if job and job.name != submission.name:  # ids begin again when a cluster is set up anew
                job = None
            found |= dict.fromkeys(run_ids, SubmittedRun(submission, task, job_id, job))
    return found


def account(root: Path, warn: Warn) -> list[Run]:
    """Every run below `root`, with what Slurm says of it. Deaths without a record get one.

    Where Slurm does not answer, `warn` is told so, and what the runs wrote stands alone; so it is of a pool
    in the background that is gone before its time.
    """
    runs = add_job_states(root, survey_runs(root), warn)
    pools = background_pools.read_pools(root)
    left = {run.run_id for run in runs if run.status not in DONE}
    if (
        pools
        and pools[-1].ended in (None, "broken")
        and left & set(pools[-1].runs)
        and not background_pools.active_pool(root)
    ):
        pool = pools[-1]
        warn(
            f"process {pool.process} on {pool.host}, which did the runs in the background, is gone before "
            f"its time; submit again to go on ({pool.log(root)} has what it said)"
        )
    return runs


def add_job_states(root: Path, runs: Sequence[Run], warn: Warn) -> list[Run]:
    """The runs with what the pool in the background and Slurm say of them."""
    runs, busy = _with_pools(root, runs)
    if not (root / submissions.NAME).exists():
        return runs
    try:
        jobs = commands.queued_jobs()
    except SlurmError as error:
        warn(f"{error}; this is what the runs wrote")
        return runs
    sent = last_submissions(root, jobs)
    records = {run.run_id: run.record for run in runs}
    over = {
        run.run_id: sent[run.run_id]
        for run in runs
        if run.run_id in sent
        and run.run_id not in busy
        and run.status not in DONE
        and not _in_flight(sent[run.run_id])
    }
    unknown = {one.job_id for run_id, one in over.items() if one.job_id and not _sure(records[run_id], one)}
    failed = {one.job.job_id for one in over.values() if one.job and one.job.state == "FAILED"}
    accounts = commands.accounted_jobs(unknown, failed & unknown)
    return [run if run.run_id in busy else _merge(root, run, sent.get(run.run_id), accounts) for run in runs]


def _with_pools(root: Path, runs: Sequence[Run]) -> tuple[list[Run], set[str]]:
    """The runs with what pools in the background noted of them, and the ids of those of the pool at work."""
    pools = background_pools.read_pools(root)
    pool = background_pools.active_pool(root) if pools else None
    last = {run_id: one for one in pools for run_id in one.runs}
    busy = set(pool.runs) if pool else set()
    found = []
    for run in runs:
        if run.run_id not in last:
            found.append(run)
            continue
        # The pool may have done it, and ended, since the run was looked at.
        now = run_state(root, run.run_id, run.planned) if pool is None and run.status not in DONE else run
        found.append(_of_pool(now, last[run.run_id], pool))
    return found, busy


def _of_pool(run: Run, last: BackgroundPool, at_work: BackgroundPool | None) -> Run:
    """A run that the pool `last` was the last to do. A failed record is an earlier try's unless noted."""
    failure = last.failed.get(run.run_id)
    if at_work and last.name == at_work.name:
        run = replace(run, job=last.name)
        if run.status not in (*DONE, "running") and failure is None:
            return replace(run, status="queued", reason=None, cause=None, record=None)
    if run.damaged and failure is not None:
        return replace(run, cause=failure.cause)
    if run.status == "planned" and failure is not None:  # it could not even leave a record
        return replace(run, status="failed", reason=failure.reason, cause=failure.cause)
    return run


def _in_flight(sent: SubmittedRun) -> bool:
    return sent.job is not None and sent.job.in_flight


def _by(record: Record | None, sent: SubmittedRun) -> bool:
    """Whether a record was written by, or about, this job."""
    return record is not None and record.environment.get("slurm_job_id") == sent.job_id


def _sure(record: Record | None, sent: SubmittedRun) -> bool:
    """Whether a record says by itself how this job ended; of a process that was lost, it can but guess."""
    return _by(record, sent) and record is not None and record.cause != RANK_LOST


def _merge(root: Path, run: Run, sent: SubmittedRun | None, accounts: dict[str, SlurmJob]) -> Run:
    if sent is None or run.status in DONE:
        return replace(run, job=sent.job_id) if sent else run
    run = replace(run, job=sent.job_id)
    if sent.job is not None and sent.job.in_flight:
        return _flying(run, sent.job)
    if run.status == "running" and run.beat_job != sent.job_id:  # on its own, outside of Slurm
        return run
    if run.status == "failed" and (_sure(run.record, sent) or run.damaged):
        return run
    job = accounts.get(sent.job_id or "")
    if (
        job is None or job.name != sent.submission.name or job.end_reason is None
    ):  # the accounting may be late
        job = sent.job
    if _by(run.record, sent) and (job is None or job.cause in (None, "exited")):
        return run  # Slurm has seen no more than the processes that were left
    if job is None:
        if sent.job_id is None:  # sbatch never saw it
            return replace(run, status=run.status if run.status == "failed" else "planned")
        reason = f"Slurm no longer knows its job {sent.job_id}, and it has no record"
        return run if run.status == "running" else replace(run, status="lost", reason=reason)
    return _dead(root, run, replace(job, restarts=_restarts(run.record, sent)))


def _restarts(record: Record | None, sent: SubmittedRun) -> int:
    """Of a job that is over: the accounting does not say."""
    if sent.job is not None:
        return sent.job.restarts
    counted = record.environment.get("slurm_restart_count") if record and _by(record, sent) else None
    return int(counted or 0)


def _flying(run: Run, job: SlurmJob) -> Run:
    """A run whose job is in the queue or on a node. A failed record or heartbeat is of an earlier try."""
    reached = f"goes on from step {run.step}" if run.step and run.record is None else None
    if job.pending:
        why = ", ".join(filter(None, (job.pending_reason, reached)))
        reason = f"waits for {why}" if why else None
        return replace(run, status="queued", reason=reason, cause=None, record=None)
    if run.status == "running":
        return replace(run, time_left=job.time_left)
    reason = reached or "starting"
    return replace(run, status="running", reason=reason, cause=None, record=None, time_left=job.time_left)


def _dead(root: Path, run: Run, job: SlurmJob) -> Run:
    """A run whose job is over and left no record: one is written, unless somebody holds the run."""
    at = f" at step {run.step} of {run.steps}" if run.step is not None and run.record is None else ""
    reason = f"{job.end_reason}{at} (Slurm job {job.job_id})"
    if job.end_reason == f"exit code {UNWRITTEN}":
        reason = f"no record could be written{at}, such as on a full disk (Slurm job {job.job_id})"
    if job.end_reason == f"exit code {STOPPED}":
        reason = f"saved{at}, but job {job.job_id} could not go back into the queue"
    if job.end_reason in (commands.END_CAUSES["CANCELLED"][0], f"exit code {STOPPED}"):
        return replace(run, status="planned", reason=reason, cause=None, record=None)
    failed = replace(run, status="failed", reason=reason, cause=job.cause)
    if run.planned is None:
        return failed
    from hyperp.sweeps.runs.run import record_dead_run

    run_dir = root / run.run_id
    with contextlib.suppress(OSError, HeldError):
        run_dir.mkdir(exist_ok=True)
        with lock(run_dir / ".lock", f"run {run.run_id}"):
            where = {"slurm_job_id": job.job_id, "slurm_restart_count": str(job.restarts)}
            ended = record_dead_run(run.planned.config, str(run_dir), reason, where, job.cause)
        if ended["status"] in DONE:
            return replace(
                run, status=ended["status"], reason=ended["reason"], cause=None, record=Record(**ended)
            )
    return failed
