"""What Slurm says of a job, where a run's own record says something, nothing, or only guesses."""

from dataclasses import replace

import pytest

from hyperp.rundir import record
from hyperp.rundir.failure import RANK_LOST
from hyperp.rundir.record import CAUSES
from hyperp.sweeps import account
from hyperp.sweeps.account import SubmittedRun
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.runs.status import run_state
from hyperp.sweeps.slurm import commands
from hyperp.sweeps.slurm.commands import SlurmJob
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
    """The run whose record of job 7 gives a `cause`, with what Slurm says of `job_id`, twice."""
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
        found.append(account._merge(root, run, SubmittedRun(submission, 0, job_id, queued), accounts))
    assert (found[0].status, found[0].cause) == (found[1].status, found[1].cause)
    return found[0]


def job_of(state, code, number, job_id="7"):
    why, cause = commands._end_cause(state, code, number)
    return SlurmJob(job_id, "a", state, end_reason=why, cause=cause)


@pytest.mark.parametrize(("state", "code", "number"), STATES)
def test_slurm_knows_better_than_who_has_lost_a_process(one, state, code, number):
    job = job_of(state, code, number)
    run = merged(one, job, RANK_LOST)
    if job.cause == "exited":  # which says no more
        assert (run.status, run.reason, run.cause) == ("failed", "own", RANK_LOST)
    elif state == "CANCELLED":
        assert (run.status, run.cause) == ("planned", None)
    else:
        assert (run.status, run.cause) == ("failed", job.cause)
        assert str(run.reason).startswith(str(job.end_reason))
        written = record.load(one[1].run_dir)
        assert written is not None
        assert (written.cause, written.reason) == (run.cause, run.reason)


@pytest.mark.parametrize("cause", [cause for cause in (None, *CAUSES) if cause != RANK_LOST])
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
