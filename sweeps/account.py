"""What became of every run: what the runs wrote, and where they are silent, what Slurm says of their jobs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperp.files import HeldError, lock
from hyperp.rundir.failure import RANK_LOST
from hyperp.rundir.record import Record
from hyperp.sweeps.local import background_pools as local
from hyperp.sweeps.local.background_pools import Pool
from hyperp.sweeps.runs.status import DONE, Run, state_of, survey
from hyperp.sweeps.slurm import commands as slurm
from hyperp.sweeps.slurm import submissions
from hyperp.sweeps.slurm.commands import Job, SlurmError
from hyperp.sweeps.slurm.job import STOPPED, UNWRITTEN
from hyperp.sweeps.slurm.submissions import Submission

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Sent:
    """Where a run was sent last: its task of a submission, and the job, once Slurm has named it."""

    submission: Submission
    task: int
    job_id: str | None
    job: Job | None = None


def last_sent(root: Path, jobs: dict[str, Job]) -> dict[str, Sent]:
    """The last task that each run was part of, by run id; `jobs` are those of the queue."""
    found = {}
    numbers = {job.name: job_id.partition("_")[0] for job_id, job in jobs.items()}
    for submission in submissions.read(root):
        if submission.job is None and submission.name in numbers:  # its submitter died in between
            submission = replace(submission, job=numbers[submission.name])
        for task, run_ids in enumerate(submission.tasks):
            job_id = submission.job_id(task)
            job = jobs.get(job_id) if job_id else None
            if job and job.name != submission.name:  # ids begin again when a cluster is set up anew
                job = None
            found |= dict.fromkeys(run_ids, Sent(submission, task, job_id, job))
    return found


def account(root: Path, warn: Warn) -> list[Run]:
    """Every run below `root`, as `survey` has them, with what Slurm says. Deaths without a record get one.

    Where Slurm does not answer, `warn` is told so, and what the runs wrote stands alone; so it is of a pool
    in the background that is gone before its time.
    """
    runs = with_jobs(root, survey(root), warn)
    pools = local.read(root)
    left = {run.run_id for run in runs if run.status not in DONE}
    if (
        pools
        and pools[-1].ended in (None, "broken")
        and left & set(pools[-1].runs)
        and not local.at_work(root)
    ):
        pool = pools[-1]
        warn(
            f"process {pool.process} on {pool.host}, which did the runs in the background, is gone before "
            f"its time; submit again to go on ({pool.log(root)} has what it said)"
        )
    return runs


def with_jobs(root: Path, runs: Sequence[Run], warn: Warn) -> list[Run]:
    """The runs with what the pool in the background and Slurm say of them."""
    runs, busy = _with_pools(root, runs)
    if not (root / submissions.NAME).exists():
        return runs
    try:
        jobs = slurm.queue()
    except SlurmError as error:
        warn(f"{error}; this is what the runs wrote")
        return runs
    sent = last_sent(root, jobs)
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
    accounts = slurm.accounts(unknown, failed & unknown)
    return [run if run.run_id in busy else _merge(root, run, sent.get(run.run_id), accounts) for run in runs]


def _with_pools(root: Path, runs: Sequence[Run]) -> tuple[list[Run], set[str]]:
    """The runs with what pools in the background noted of them, and the ids of those of the pool at work."""
    pools = local.read(root)
    pool = local.at_work(root) if pools else None
    last = {run_id: one for one in pools for run_id in one.runs}
    busy = set(pool.runs) if pool else set()
    found = []
    for run in runs:
        if run.run_id not in last:
            found.append(run)
            continue
        # The pool may have done it, and ended, since the run was looked at.
        now = state_of(root, run.run_id, run.planned) if pool is None and run.status not in DONE else run
        found.append(_of_pool(now, last[run.run_id], pool))
    return found, busy


def _of_pool(run: Run, last: Pool, at_work: Pool | None) -> Run:
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


def _in_flight(sent: Sent) -> bool:
    return sent.job is not None and sent.job.in_flight


def _by(record: Record | None, sent: Sent) -> bool:
    """Whether a record was written by, or about, this job."""
    return record is not None and record.environment.get("slurm_job_id") == sent.job_id


def _sure(record: Record | None, sent: Sent) -> bool:
    """Whether a record says by itself how this job ended; of a process that was lost, it can but guess."""
    return _by(record, sent) and record is not None and record.cause != RANK_LOST


def _merge(root: Path, run: Run, sent: Sent | None, accounts: dict[str, Job]) -> Run:
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
    if job is None or job.name != sent.submission.name or job.why is None:  # the accounting may be late
        job = sent.job
    if _by(run.record, sent) and (job is None or job.cause in (None, "exited")):
        return run  # Slurm has seen no more than the processes that were left
    if job is None:
        if sent.job_id is None:  # sbatch never saw it
            return replace(run, status=run.status if run.status == "failed" else "planned")
        reason = f"Slurm no longer knows its job {sent.job_id}, and it has no record"
        return run if run.status == "running" else replace(run, status="lost", reason=reason)
    return _dead(root, run, replace(job, restarts=_restarts(run.record, sent)))


def _restarts(record: Record | None, sent: Sent) -> int:
    """Of a job that is over: the accounting does not say."""
    if sent.job is not None:
        return sent.job.restarts
    counted = record.environment.get("slurm_restart_count") if record and _by(record, sent) else None
    return int(counted or 0)


def _flying(run: Run, job: Job) -> Run:
    """A run whose job is in the queue or on a node. A failed record or heartbeat is of an earlier try."""
    reached = f"goes on from step {run.step}" if run.step and run.record is None else None
    if job.pending:
        why = ", ".join(filter(None, (job.waits, reached)))
        reason = f"waits for {why}" if why else None
        return replace(run, status="queued", reason=reason, cause=None, record=None)
    if run.status == "running":
        return replace(run, time_left=job.time_left)
    reason = reached or "starting"
    return replace(run, status="running", reason=reason, cause=None, record=None, time_left=job.time_left)


def _dead(root: Path, run: Run, job: Job) -> Run:
    """A run whose job is over and left no record: one is written, unless somebody holds the run."""
    at = f" at step {run.step} of {run.steps}" if run.step is not None and run.record is None else ""
    reason = f"{job.why}{at} (Slurm job {job.job_id})"
    if job.why == f"exit code {UNWRITTEN}":
        reason = f"no record could be written{at}, such as on a full disk (Slurm job {job.job_id})"
    if job.why == f"exit code {STOPPED}":
        reason = f"saved{at}, but job {job.job_id} could not go back into the queue"
    if job.why in (slurm.WHY["CANCELLED"][0], f"exit code {STOPPED}"):
        return replace(run, status="planned", reason=reason, cause=None, record=None)
    failed = replace(run, status="failed", reason=reason, cause=job.cause)
    if run.planned is None:
        return failed
    from hyperp.sweeps.runs.run import record_failure

    run_dir = root / run.run_id
    with contextlib.suppress(OSError, HeldError):
        run_dir.mkdir(exist_ok=True)
        with lock(run_dir / ".lock", f"run {run.run_id}"):
            where = {"slurm_job_id": job.job_id, "slurm_restart_count": str(job.restarts)}
            ended = record_failure(run.planned.config, str(run_dir), reason, where, job.cause)
        if ended["status"] in DONE:
            return replace(
                run, status=ended["status"], reason=ended["reason"], cause=None, record=Record(**ended)
            )
    return failed
