"""What became of every run, from its own files and from what the background pool or Slurm knows about it.

Two tables decide where these differ: POOL_DECISIONS for a run that a background pool was given, and
SLURM_DECISIONS for a run that was submitted to Slurm. A row is what the run's files say, a column what the
pool or Slurm says of the run's last job.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperp.files import HeldError, lock
from hyperp.rundir.failure import RANK_LOST
from hyperp.rundir.record import Record
from hyperp.sweeps import console
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.background_pools import BackgroundPool
from hyperp.sweeps.runs.run import record_dead_run
from hyperp.sweeps.runs.status import DONE, Run, run_state, survey_runs
from hyperp.sweeps.slurm import submissions
from hyperp.sweeps.slurm.commands import (
    END_CAUSES,
    SlurmError,
    SlurmJob,
    accounted_jobs,
    queued_jobs,
)
from hyperp.sweeps.slurm.job import STOPPED, UNWRITTEN
from hyperp.sweeps.slurm.submissions import Submission

Warn = Callable[[str], None]
Table = dict[str, dict[str, str]]

# What is decided of a run.
KEEP = "keep"  # its status is what its files say
QUEUED = "queued"
RUNNING = "running"
PLANNED = "planned"  # again: submitting the sweep once more takes it up
FAILED = "failed"  # with a record, written now
LOST = "lost"  # nobody knows: no record, and Slurm has forgotten the job


def _decision_table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    return {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}


# fmt: off
POOL_DECISIONS = _decision_table(
    # `waits`: the pool is at work and noted no failure; `noted`: it noted a failure; `over`: neither.
    ("waits", "noted", "over"),
    {
        "done":    (KEEP,   KEEP,   KEEP),  # a record: finished or diverged
        "running": (KEEP,   KEEP,   KEEP),  # a fresh heartbeat
        "failed":  (QUEUED, KEEP,   KEEP),  # a failed record; of an earlier try, unless the pool noted it
        "damaged": (QUEUED, KEEP,   KEEP),  # a record that cannot be read
        "planned": (QUEUED, FAILED, KEEP),  # nothing, or what a stopped try left
    },
)
SLURM_DECISIONS = _decision_table(
    # `no job`: sbatch never took it. `pending`, `active`: in the queue, on a node. `forgotten`: Slurm does
    # not know the job. `exited`: an exit code, or completed. `stopped`: saved, but not requeued. `cancelled`.
    # `killed`: a signal, a limit, a lost node.
    ("no job", "pending", "active", "forgotten", "exited", "stopped", "cancelled", "killed"),
    {
        # A record: finished or diverged.
        "done":          (KEEP, KEEP,   KEEP,    KEEP, KEEP,   KEEP,    KEEP,    KEEP),
        # A fresh heartbeat of a process outside this job, and one of this job.
        "runs outside":  (KEEP, QUEUED, RUNNING, KEEP, KEEP,   KEEP,    KEEP,    KEEP),
        "runs":          (KEEP, QUEUED, RUNNING, KEEP, FAILED, PLANNED, PLANNED, FAILED),
        # A failed record of this job that says why, or one that cannot be read.
        "failed":        (KEEP, QUEUED, RUNNING, KEEP, KEEP,   KEEP,    KEEP,    KEEP),
        # A failed record of this job by a process that lost another one, or whose command was ended from
        # outside, and that can only guess why.
        "lost a rank":   (KEEP, QUEUED, RUNNING, KEEP, KEEP,   KEEP,    PLANNED, FAILED),
        # A failed record of an earlier try; nothing, or what a stopped try left.
        "failed before": (KEEP, QUEUED, RUNNING, LOST, FAILED, PLANNED, PLANNED, FAILED),
        "planned":       (KEEP, QUEUED, RUNNING, LOST, FAILED, PLANNED, PLANNED, FAILED),
    },
)
# fmt: on
ENDED = ("forgotten", "exited", "stopped", "cancelled", "killed")
# Only how the job ended settles these, so the accounting is asked.
OPEN = tuple(files for files, row in SLURM_DECISIONS.items() if len({row[end] for end in ENDED}) > 1)


@dataclass(frozen=True)
class SubmittedRun:
    """Where a run was submitted last: a task of a submission, and its job if squeue still lists it."""

    submission: Submission
    task: int
    job_id: str | None
    job: SlurmJob | None = None

    @property
    def in_flight(self) -> bool:
        """Whether the job is in the queue or on a node."""
        return self.job is not None and self.job.in_flight

    def wrote(self, record: Record | None) -> bool:
        """Whether a record was written by, or about, this job."""
        return record is not None and record.environment.get("slurm_job_id") == self.job_id


def last_submissions(root: Path, jobs: dict[str, SlurmJob]) -> dict[str, SubmittedRun]:
    """The last submission of each run, by run id; `jobs` are those that squeue lists."""
    found = {}
    numbers = {job.name: job_id.partition("_")[0] for job_id, job in jobs.items()}
    for submission in submissions.read_submissions(root):
        if submission.job is None and submission.name in numbers:  # its submitter died in between
            submission = replace(submission, job=numbers[submission.name])
        for task, run_ids in enumerate(submission.tasks):
            job_id = submission.job_id(task)
            job = jobs.get(job_id) if job_id else None
            if job and job.name != submission.name:  # ids start over when a cluster is set up anew
                job = None
            found |= dict.fromkeys(run_ids, SubmittedRun(submission, task, job_id, job))
    return found


def status(root: str | Path, *, warn: Warn = console.warn) -> list[Run]:
    """The status of every run below `root`, the folder of a sweep.

    A run whose Slurm job died without leaving a record gets one that says why. If Slurm does not answer, or
    a background pool died before its work was done, `warn` is called with a line that says so.

    Returns:
        The runs in the order of the plan, then runs that no plan names. `Run.status` is one of planned,
        queued, running, finished, diverged, failed, lost.

    Raises:
        ValueError: `root` holds neither a plan nor runs, or its plan, jobs.json or local.json is damaged.
    """
    root = Path(root)
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
            f"process {pool.process} on {pool.host}, which worked in the background, ended before its runs "
            f"were done; submit again to go on ({pool.log(root)} has what it printed)"
        )
    return runs


def add_job_states(root: Path, runs: Sequence[Run], warn: Warn) -> list[Run]:
    """The runs with what the background pool and Slurm say of them."""
    runs, busy = _add_pool_states(root, runs)
    if not (root / submissions.NAME).exists():
        return runs
    try:
        jobs = queued_jobs()
    except SlurmError as error:
        warn(f"{error}; this is what the runs wrote")
        return runs
    sent = {run_id: one for run_id, one in last_submissions(root, jobs).items() if run_id not in busy}
    accounts = _ask_accounting((run, sent[run.run_id]) for run in runs if run.run_id in sent)
    return [
        _decide_by_slurm(root, run, sent[run.run_id], accounts) if run.run_id in sent else run for run in runs
    ]


def _add_pool_states(root: Path, runs: Sequence[Run]) -> tuple[list[Run], set[str]]:
    """The runs with what background pools noted, and the ids of the runs of the pool that is at work."""
    pools = background_pools.read_pools(root)
    active = background_pools.active_pool(root) if pools else None
    last = {run_id: pool for pool in pools for run_id in pool.runs}
    found = []
    for run in runs:
        if run.run_id not in last:
            found.append(run)
            continue
        # The pool may have finished the run, and ended, since the run's files were read.
        now = run_state(root, run.run_id, run.planned) if active is None and run.status not in DONE else run
        found.append(_decide_by_pool(now, last[run.run_id], active))
    return found, set(active.runs) if active else set()


def _decide_by_pool(run: Run, last: BackgroundPool, active: BackgroundPool | None) -> Run:
    """A run that the pool `last` was the last to be given."""
    failure, at_work = last.failed.get(run.run_id), active is not None and last.name == active.name
    files = "done" if run.status in DONE else "damaged" if run.damaged else run.status
    decision = POOL_DECISIONS[files]["noted" if failure else "waits" if at_work else "over"]
    if at_work:
        run = replace(run, job=last.name)
    if decision == QUEUED:
        return replace(run, status=QUEUED, reason=None, cause=None, record=None)
    if decision == FAILED and failure:  # it could not even leave a record
        return replace(run, status=FAILED, reason=failure.reason, cause=failure.cause)
    return replace(run, cause=failure.cause) if failure and run.damaged else run


def files_say(run: Run, sent: SubmittedRun) -> str:
    """The row of SLURM_DECISIONS for a run that was submitted last as `sent`."""
    if run.status in DONE:
        return "done"
    if run.status == "running":
        return "runs" if run.beat_job is not None and run.beat_job == sent.job_id else "runs outside"
    if run.damaged:
        return "failed"
    if run.status == "failed":
        guess = run.record is not None and run.record.cause in (RANK_LOST, "cancelled")
        return ("lost a rank" if guess else "failed") if sent.wrote(run.record) else "failed before"
    return "planned"


def slurm_says(sent: SubmittedRun, job: SlurmJob | None) -> str:
    """The column of SLURM_DECISIONS; `job` is how the job ended, as far as Slurm still knows."""
    if sent.job is not None and sent.job.in_flight:
        return "pending" if sent.job.pending else "active"
    if job is None:
        return "no job" if sent.job_id is None else "forgotten"
    if job.end_reason == END_CAUSES["CANCELLED"][0]:
        return "cancelled"
    if job.end_reason == f"exit code {STOPPED}":
        return "stopped"
    return "exited" if job.cause in (None, "exited") else "killed"


def _ask_accounting(submitted: Iterable[tuple[Run, SubmittedRun]]) -> dict[str, SlurmJob]:
    """What sacct says of the jobs that are over and whose runs' files do not settle what happened."""
    over = [one for run, one in submitted if not one.in_flight and files_say(run, one) in OPEN]
    unknown = {one.job_id for one in over if one.job_id}
    failed = {one.job.job_id for one in over if one.job and one.job.state == "FAILED"}
    return accounted_jobs(unknown, failed & unknown)


def _decide_by_slurm(root: Path, run: Run, sent: SubmittedRun, accounts: dict[str, SlurmJob]) -> Run:
    """A submitted run as SLURM_DECISIONS has it; writes a record where the decision is `failed`."""
    job = accounts.get(sent.job_id or "")
    if job is None or job.name != sent.submission.name or job.end_reason is None:  # sacct may lag behind
        job = sent.job
    decision = SLURM_DECISIONS[files_say(run, sent)][slurm_says(sent, job)]
    run = replace(run, job=sent.job_id)
    if decision in (QUEUED, RUNNING) and sent.job:
        return _in_flight_run(run, sent.job)
    if decision in (PLANNED, FAILED) and job:
        return _ended_run(root, run, replace(job, restarts=_requeue_count(run.record, sent)), decision)
    if decision == LOST:
        reason = f"Slurm no longer knows its job {sent.job_id}, and it has no record"
        return replace(run, status=LOST, reason=reason)
    return run


def _in_flight_run(run: Run, job: SlurmJob) -> Run:
    """A run whose job is in the queue or on a node; a failed record or old heartbeat is of an earlier try."""
    reached = f"goes on from step {run.step}" if run.step and run.record is None else None
    if job.pending:
        waits_for = ", ".join(filter(None, (job.pending_reason, reached)))
        reason = f"waits for {waits_for}" if waits_for else None
        return replace(run, status=QUEUED, reason=reason, cause=None, record=None)
    if run.status == RUNNING:
        return replace(run, time_left=job.time_left)
    reason = reached or "starting"
    return replace(run, status=RUNNING, reason=reason, cause=None, record=None, time_left=job.time_left)


def _requeue_count(record: Record | None, sent: SubmittedRun) -> int:
    """How often a job that is over had been requeued, from squeue or the record; sacct does not say."""
    if sent.job is not None:
        return sent.job.restarts
    counted = record.environment.get("slurm_restart_count") if record and sent.wrote(record) else None
    return int(counted or 0)


def _ended_run(root: Path, run: Run, job: SlurmJob, decision: str) -> Run:
    """A run whose job is over: planned again, or failed with a record, unless another process has the run."""
    at = f" at step {run.step} of {run.steps}" if run.step is not None and run.record is None else ""
    reason = f"{job.end_reason}{at} (Slurm job {job.job_id})"
    if job.end_reason == f"exit code {UNWRITTEN}":
        reason = f"no record could be written{at}, such as on a full disk (Slurm job {job.job_id})"
    if job.end_reason == f"exit code {STOPPED}":
        reason = f"saved{at}, but job {job.job_id} could not go back into the queue"
    if decision == PLANNED:
        return replace(run, status=PLANNED, reason=reason, cause=None, record=None)
    failed = replace(run, status=FAILED, reason=reason, cause=job.cause)
    if run.planned is None:
        return failed
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
