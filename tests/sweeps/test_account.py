"""What became of a run: every cell of the tables of decisions, and the records that deaths leave."""

import json
import time
from dataclasses import replace

import pytest

from hyperp.rundir import record
from hyperp.rundir.failure import RANK_LOST
from hyperp.rundir.record import CAUSES
from hyperp.sweeps import account
from hyperp.sweeps.account import (
    POOL_DECISIONS,
    SLURM_DECISIONS,
    SubmittedRun,
    _decide_by_pool,
    _decide_by_slurm,
    files_say,
    slurm_says,
)
from hyperp.sweeps.local.background_pools import BackgroundPool, PoolFailure
from hyperp.sweeps.local.pool import LocalLauncher
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.runs.status import run_state
from hyperp.sweeps.slurm import commands, submissions
from hyperp.sweeps.slurm.commands import SlurmJob
from hyperp.sweeps.slurm.job import STOPPED
from hyperp.sweeps.slurm.submissions import Submission
from hyperp.training.train import base_record

STATES = [
    ("FAILED", 1, 0),
    ("FAILED", 0, 9),
    ("COMPLETED", 0, 0),
    *((state, 0, 0) for state in commands.END_CAUSES),
]


@pytest.fixture
def one(tmp_path):
    """A root with one planned run, and that run."""
    plan = make_plan([f"runtime.root={tmp_path}"])
    planfile.write_plan(plan)
    (point,) = plan.points
    return tmp_path, point


def merged(one, job, cause, job_id="7", restart=0, queued=None):
    """Decide twice on a run with a failed record of job 7 and this `cause`, given Slurm's `job`."""
    root, point = one
    environment = {"slurm_job_id": "7", "slurm_restart_count": str(restart)}
    record.save(
        base_record(point.config, status="failed", reason="own", cause=cause, environment=environment),
        point.run_dir,
    )
    (planned,) = planfile.read_plan(root)
    submission = Submission("a", "2026-01-01T00:00:00+00:00", "slurm/a", job_id, [[point.run_id]])
    found = []
    for _ in range(2):
        run = run_state(root, point.run_id, planned)
        accounts = {job_id: job} if job else {}
        found.append(_decide_by_slurm(root, run, SubmittedRun(submission, 0, job_id, queued), accounts))
    assert (found[0].status, found[0].cause) == (found[1].status, found[1].cause)
    return found[0]


def job_of(state, code, number, job_id="7"):
    why, cause = commands._end_cause(state, code, number)
    return SlurmJob(job_id, "a", state, end_reason=why, cause=cause)


@pytest.mark.parametrize(("state", "code", "number"), STATES)
def test_slurm_knows_better_than_who_has_lost_a_process(one, state, code, number):
    job = job_of(state, code, number)
    run = merged(one, job, RANK_LOST)
    if job.cause == "exited":  # which says no more than the record
        assert (run.status, run.reason, run.cause) == ("failed", "own", RANK_LOST)
    elif state == "CANCELLED":
        assert (run.status, run.cause) == ("planned", None)
    else:
        assert (run.status, run.cause) == ("failed", job.cause)
        assert str(run.reason).startswith(str(job.end_reason))
        written = record.load(one[1].run_dir)
        assert written is not None
        assert (written.cause, written.reason) == (run.cause, run.reason)


@pytest.mark.parametrize(
    "cause", [cause for cause in (None, *CAUSES) if cause not in (RANK_LOST, "cancelled")]
)
@pytest.mark.parametrize(("state", "code", "number"), STATES)
def test_a_record_that_is_sure_of_its_job_stands(one, cause, state, code, number):
    run = merged(one, job_of(state, code, number), cause)
    assert (run.status, run.reason, run.cause) == ("failed", "own", cause)


def test_a_guess_stands_where_slurm_has_forgotten_the_job_and_falls_with_a_new_one(one):
    run = merged(one, None, RANK_LOST)
    assert (run.status, run.reason, run.cause) == ("failed", "own", RANK_LOST)
    run = merged(one, job_of("FAILED", 3, 0, "8"), RANK_LOST, job_id="8")
    assert (run.reason, run.cause) == ("exit code 3 (Slurm job 8)", "exited")


def test_the_traceback_of_who_lost_a_process_stays_when_slurm_says_what_became_of_it(one):
    trace = one[1].run_dir / "error.txt"
    trace.parent.mkdir(parents=True)
    job = job_of("OUT_OF_MEMORY", 0, 0)
    for restart, queued in ((0, None), (1, None), (2, replace(job, restarts=2))):
        trace.write_text("trace of the record")
        run = merged(one, job, RANK_LOST, restart=restart, queued=queued)
        assert run.cause == "out_of_memory"
        assert trace.read_text() == "trace of the record"
        written = record.load(one[1].run_dir)
        assert written is not None
        assert written.environment["slurm_restart_count"] == str(restart)


@pytest.mark.parametrize(("job_id", "restarts"), [("8", 0), ("7", 1)])
def test_the_traceback_of_another_try_goes(one, job_id, restarts):
    job = replace(job_of("OUT_OF_MEMORY", 0, 0, job_id), restarts=restarts)
    trace = one[1].run_dir / "error.txt"
    trace.parent.mkdir(parents=True)
    trace.write_text("of an earlier try")
    assert merged(one, job, RANK_LOST, job_id=job_id, queued=job).cause == "out_of_memory"
    assert not trace.exists()


# What every pair of a run's files (rows) and its last Slurm job (columns) means. `lost` and `failed` name the
# job; "=" is what the files say: the status in the second column.
SLURM = """
files          alone     no-job   pending  active   forgotten  exited   stopped  cancelled  killed
done           diverged  =        =        =        =          =        =        =          =
runs-outside   running   =        queued   running  =          =        =        =          =
runs           running   =        queued   running  =          failed   planned  planned    failed
failed         failed    =        queued   running  =          =        =        =          =
damaged        failed    =        queued   running  =          =        =        =          =
lost-a-rank    failed    =        queued   running  =          =        =        planned    failed
failed-before  failed    =        queued   running  lost       failed   planned  planned    failed
planned        planned   =        queued   running  lost       failed   planned  planned    failed
stopped-half   planned   =        queued   running  lost       failed   planned  planned    failed
"""
POOL = """
files    alone     waits   noted   over
done     diverged  =       =       =
runs     running   =       =       =
failed   failed    queued  =       =
damaged  failed    queued  =       =
planned  planned   queued  failed  =
"""
JOBS = {
    "pending": ("PENDING", 0, 0),
    "active": ("RUNNING", 0, 0),
    "exited": ("FAILED", 3, 0),
    "stopped": ("FAILED", STOPPED, 0),
    "cancelled": ("CANCELLED", 0, 0),
    "killed": ("OUT_OF_MEMORY", 0, 0),
}


def cells(text):
    head, *lines = (line.split() for line in text.strip().splitlines())
    return [
        pytest.param(files, column, alone, status, id=f"{files}, {column}")
        for files, alone, *found in lines
        for column, status in zip(head[2:], found, strict=True)
    ]


def write_files(point, files, job_id):
    """Leave in the run's folder what the row `files` of the tables is about."""
    run_dir, config = point.run_dir, point.config
    run_dir.mkdir()
    if files in ("runs", "runs-outside", "stopped-half"):
        old = 1000 * (files == "stopped-half")
        beat = {"step": 3, "steps": 9, "tokens_per_second": 1.0, "time": time.time() - old}
        job = {"runs": job_id, "stopped-half": job_id, "runs-outside": None}[files]
        (run_dir / "heartbeat.json").write_text(json.dumps(beat | {"job": job}))
    if files == "damaged":
        (run_dir / "record.json").write_text("{")
    causes = {"failed": "raised", "lost-a-rank": RANK_LOST, "failed-before": "raised", "done": None}
    if files in causes:
        status = "diverged" if files == "done" else "failed"
        environment = {"slurm_job_id": "6" if files == "failed-before" else job_id or "6"}
        one = base_record(config, status=status, reason="own", cause=causes[files], environment=environment)
        record.save(one, run_dir)


@pytest.mark.parametrize(("files", "column", "alone", "status"), cells(SLURM))
def test_every_row_of_what_slurm_says(one, files, column, alone, status):
    root, point = one
    job_id = None if column == "no-job" else "7"
    write_files(point, files, job_id)
    job = None
    if column in JOBS:
        state, code, number = JOBS[column]
        over = column not in ("pending", "active")
        job = job_of(state, code, number) if over else SlurmJob("7", "a", state, pending_reason="Priority")
    submission = Submission("a", "2026-01-01T00:00:00+00:00", "slurm/a", job_id, [[point.run_id]])
    sent = SubmittedRun(submission, 0, job_id, job)
    (planned,) = planfile.read_plan(root)
    run = run_state(root, point.run_id, planned)
    assert run.status == alone
    aliases = {"damaged": "failed", "stopped-half": "planned"}
    row = str(aliases.get(files, files)).replace("-", " ")
    if column != "no-job" or files not in ("runs", "failed", "lost-a-rank"):  # which are of a job
        assert files_say(run, sent) == row
    assert slurm_says(sent, job) == column.replace("-", " ")
    accounts = {"7": job} if job and not job.in_flight else {}
    found = _decide_by_slurm(root, run, sent, accounts)
    assert found.status == (alone if status == "=" else status)
    assert found.job == job_id
    if status == "=":
        assert (found.reason, found.cause) == (run.reason, run.cause)
        return
    reasons = {"queued": "waits for Priority", "lost": "Slurm no longer knows its job 7"}
    if status == "running" and files == "runs-outside":
        assert found.step == 3
    elif status in reasons:
        assert str(found.reason).startswith(reasons[status])
    elif status in ("failed", "planned"):
        assert job is not None
        assert "job 7" in str(found.reason)
        assert column == "stopped" or str(found.reason).startswith(str(job.end_reason))
        assert found.cause == (job.cause if status == "failed" else None)
    written = record.load(point.run_dir) if files != "damaged" else None
    if status == "failed":  # a death leaves a record that says why
        assert written is not None
        assert (written.status, written.reason, written.cause) == ("failed", found.reason, found.cause)


SETTLED = ("done", "runs-outside", "failed", "damaged")  # whatever the accounting says
UNSETTLED = ("runs", "lost-a-rank", "failed-before", "planned", "stopped-half")


@pytest.mark.parametrize("files", [*SETTLED, *UNSETTLED])
def test_the_accounting_is_asked_for_jobs_that_the_files_do_not_settle(one, files, monkeypatch):
    root, point = one
    write_files(point, files, "7")
    when = "2026-01-01T00:00:00+00:00"
    submissions.append_submission(root, Submission("a", when, "slurm/a", "7", [[point.run_id]]))
    asked = []
    monkeypatch.setattr(account, "queued_jobs", dict)
    monkeypatch.setattr(account, "accounted_jobs", lambda job_ids, failed: asked.extend(job_ids) or {})
    (run,) = account.status(root)
    assert run.job == "7"
    assert asked == (["7"] if files in UNSETTLED else [])


@pytest.mark.parametrize(("files", "column", "alone", "status"), cells(POOL))
def test_every_row_of_what_a_pool_says(one, files, column, alone, status):
    root, point = one
    write_files(point, files, None)
    (planned,) = planfile.read_plan(root)
    run = run_state(root, point.run_id, planned)
    assert run.status == alone
    noted = {point.run_id: PoolFailure("noted", "killed")} if column == "noted" else {}
    launcher = LocalLauncher(name="local", workers=1, threads=1)
    pool = BackgroundPool("a", "2026-01-01T00:00:00+00:00", "here", 1, launcher, [point.run_id], noted)
    for active in [pool] if column == "waits" else [None] if column == "over" else [pool, None]:
        found = _decide_by_pool(run, pool, active)
        assert found.status == (alone if status == "=" else status)
        assert found.job == ("a" if active else None)
        if status == "failed":
            assert (found.reason, found.cause) == ("noted", "killed")
        elif files == "damaged" and column == "noted":
            assert found.cause == "killed"
        elif status == "=":
            assert (found.reason, found.cause) == (run.reason, run.cause)


def test_the_tests_go_through_every_cell_of_the_tables():
    tested = {(str(c.values[0]).replace("-", " "), str(c.values[1]).replace("-", " ")) for c in cells(SLURM)}
    rows = {row for row, _ in tested} - {"damaged", "stopped half"}
    assert rows == set(SLURM_DECISIONS)
    assert {c for _, c in tested} == {c for row in SLURM_DECISIONS.values() for c in row}
    assert {c.values[:2] for c in cells(POOL)} == {
        (row.replace("running", "runs"), column) for row, found in POOL_DECISIONS.items() for column in found
    }
