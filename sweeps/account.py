"""What became of every run: what the runs wrote, and where they are silent, what Slurm says of their jobs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperp.files import HeldError, lock
from hyperp.record import Record
from hyperp.sweeps import slurm, submissions
from hyperp.sweeps.slurm import Job, SlurmError
from hyperp.sweeps.status import DONE, Run, survey
from hyperp.sweeps.submissions import Submission
from hyperp.sweeps.task import STOPPED, UNWRITTEN

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

    Where Slurm does not answer, `warn` is told so, and what the runs wrote stands alone.
    """
    return with_jobs(root, survey(root), warn)


def with_jobs(root: Path, runs: Sequence[Run], warn: Warn) -> list[Run]:
    """The runs with what Slurm says of their jobs."""
    if not (root / submissions.NAME).exists():
        return list(runs)
    try:
        jobs = slurm.queue()
    except SlurmError as error:
        warn(f"{error}; this is what the runs wrote")
        return list(runs)
    sent = last_sent(root, jobs)
    records = {run.run_id: run.record for run in runs}
    over = {
        run.run_id: sent[run.run_id]
        for run in runs
        if run.run_id in sent and run.status not in DONE and not _in_flight(sent[run.run_id])
    }
    unknown = {one.job_id for run_id, one in over.items() if one.job_id and not _by(records[run_id], one)}
    failed = {one.job.job_id for one in over.values() if one.job and one.job.state == "FAILED"}
    accounts = slurm.accounts(unknown, failed & unknown)
    return [_merge(root, run, sent.get(run.run_id), accounts) for run in runs]


def _in_flight(sent: Sent) -> bool:
    return sent.job is not None and sent.job.in_flight


def _by(record: Record | None, sent: Sent) -> bool:
    """Whether a record was written by, or about, this job."""
    return record is not None and record.environment.get("slurm_job_id") == sent.job_id


def _merge(root: Path, run: Run, sent: Sent | None, accounts: dict[str, Job]) -> Run:
    if sent is None or run.status in DONE:
        return replace(run, job=sent.job_id) if sent else run
    run = replace(run, job=sent.job_id)
    if sent.job is not None and sent.job.in_flight:
        return _flying(run, sent.job)
    if run.status == "running" and run.beat_job != sent.job_id:  # on its own, outside of Slurm
        return run
    if run.status == "failed" and (_by(run.record, sent) or run.damaged):
        return run
    job = accounts.get(sent.job_id or "")
    if job is None or job.name != sent.submission.name or job.why is None:  # the accounting may be late
        job = sent.job
    if job is None:
        if sent.job_id is None:  # sbatch never saw it
            return replace(run, status=run.status if run.status == "failed" else "planned")
        reason = f"Slurm no longer knows its job {sent.job_id}, and it has no record"
        return run if run.status == "running" else replace(run, status="lost", reason=reason)
    return _dead(root, run, job)


def _flying(run: Run, job: Job) -> Run:
    """A run whose job is in the queue or on a node. A failed record or heartbeat is of an earlier try."""
    reached = f"goes on from step {run.step}" if run.step and run.record is None else None
    if job.pending:
        why = ", ".join(filter(None, (job.waits, reached)))
        return replace(run, status="queued", reason=f"waits for {why}" if why else None, record=None)
    if run.status == "running":
        return replace(run, time_left=job.time_left)
    return replace(run, status="running", reason=reached or "starting", record=None, time_left=job.time_left)


def _dead(root: Path, run: Run, job: Job) -> Run:
    """A run whose job is over and left no record: one is written, unless somebody holds the run."""
    at = f" at step {run.step} of {run.steps}" if run.step is not None and run.record is None else ""
    reason = f"{job.why}{at} (Slurm job {job.job_id})"
    if job.why == f"exit code {UNWRITTEN}":
        reason = f"no record could be written{at}, such as on a full disk (Slurm job {job.job_id})"
    if job.why == f"exit code {STOPPED}":
        reason = f"saved{at}, but job {job.job_id} could not go back into the queue"
    if job.why in (slurm.WHY["CANCELLED"], f"exit code {STOPPED}"):
        return replace(run, status="planned", reason=reason, record=None)
    if run.planned is None:
        return replace(run, status="failed", reason=reason)
    from hyperp.sweeps.job import record_failure

    run_dir = root / run.run_id
    with contextlib.suppress(OSError, HeldError):
        run_dir.mkdir(exist_ok=True)
        with lock(run_dir / ".lock", f"run {run.run_id}"):
            where = {"slurm_job_id": job.job_id, "slurm_restart_count": str(job.restarts)}
            ended = record_failure(run.planned.config, str(run_dir), reason, where)
        if ended["status"] in DONE:
            return replace(run, status=ended["status"], reason=ended["reason"], record=Record(**ended))
    return replace(run, status="failed", reason=reason)
