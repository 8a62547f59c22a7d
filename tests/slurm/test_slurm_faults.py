"""What goes wrong on a cluster, done to real jobs: each run ends once, with the bits of one left alone."""

import os
import signal
import subprocess

import pytest
import torch
from cluster import output, succeeds, wait_for
from helpers import (
    HYPERP_SWEEP,
    SHORT,
    SLURM,
    TINY,
    beat,
    facts,
    jobs_state,
    kill_node,
    records,
    report,
    settled,
    wait_for_step,
)

from hyperp.sweeps import submissions
from hyperp.sweeps.plan import make_plan

pytestmark = pytest.mark.slurm
LONG = ["scale.tokens=524288", "runtime.threads=1"]  # 2,048 steps: seconds
LONGER = ["scale.tokens=4194304", "runtime.threads=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records, by run id, of what these words plan, run on this machine in peace; each plan once."""
    known = {}

    def run(*words):
        if words not in known:
            root = tmp_path_factory.mktemp("undisturbed")
            command = [HYPERP_SWEEP, "run", *TINY, *words, f"runtime.root={root}"]
            subprocess.run(command, check=True, capture_output=True)
            known[words] = {run_id: facts(one) for run_id, one in records(root).items()}
        return known[words]

    return run


def submit(sweep, root, *words):
    """Submit, and return the folder of the first run."""
    everything = [*TINY, *SLURM, *words, f"runtime.root={root}"]
    done = sweep("submit", *everything)
    assert done.returncode == 0, done.stderr
    return make_plan(everything).points[0].run_dir


def ended(root):
    return {run_id: facts(one) for run_id, one in records(root).items()}


def test_a_process_killed_three_times_ends_with_the_same_bits(cluster, sweep, tmp_path, undisturbed):
    step, reasons = 20, []
    for _ in range(3):
        run_dir = submit(sweep, tmp_path, *LONG)
        now = wait_for_step(run_dir, step)
        os.kill(now["process"], signal.SIGKILL)
        settled(tmp_path)
        (told,) = report(tmp_path)["runs"]
        reasons.append((told["status"], told["reason"].partition(" (")[0].partition(" at ")[0]))
        step = now["step"] + 60
    assert reasons == [("failed", "killed by signal 9")] * 3
    run_dir = submit(sweep, tmp_path, *LONG)
    settled(tmp_path)
    assert records(tmp_path)[run_dir.name].resumed == 3
    assert ended(tmp_path) == undisturbed(*LONG)


def test_a_warning_saves_the_step_and_the_job_goes_on_from_it(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words)
    job = wait_for_step(run_dir, 20)["job"]
    assert succeeds("scancel", "--signal=USR2", job)
    wait_for(lambda: f"{job}|PENDING|1|" in jobs_state(), "the job to be in the queue again")
    (told,) = report(tmp_path, "--all")["runs"]
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)["step"]
    assert saved > 20
    assert told["status"] == "queued"
    settled(tmp_path)
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (1, "1")
    assert ended(tmp_path) == undisturbed(*LONG)


def test_a_requeue_without_warning_costs_the_steps_since_the_last_checkpoint(
    cluster, sweep, tmp_path, undisturbed
):
    run_dir = submit(sweep, tmp_path, *LONG)
    job = wait_for_step(run_dir, 20)["job"]
    assert succeeds("scontrol", "requeue", job)
    settled(tmp_path)
    (one,) = records(tmp_path).values()
    assert one.resumed >= 1
    assert one.environment["slurm_restart_count"] == "1"
    assert ended(tmp_path) == undisturbed(*LONG)


@pytest.mark.slow
def test_preempted_jobs_go_on_when_the_others_have_gone(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words, "launcher.partition=low")
    job = wait_for_step(run_dir, 20)["job"]
    assert succeeds("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: f"{job}|PENDING|1|" in jobs_state(), "the job to be preempted", 60)
    settled(tmp_path)
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (1, "1")
    assert ended(tmp_path) == undisturbed(*LONG)


@pytest.mark.slow
def test_a_real_time_limit_of_one_minute(cluster, sweep, tmp_path, undisturbed):
    words = [*LONGER, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words, "launcher.time=1m", "launcher.grace=20")
    job = wait_for_step(run_dir, 20)["job"]
    wait_for(lambda: f"{job}|PENDING|1|" in jobs_state(), "the job to be in the queue again", 120)
    settled(tmp_path, 600)
    (one,) = records(tmp_path).values()
    assert one.status == "finished", one.reason
    assert one.resumed == int(one.environment["slurm_restart_count"]) >= 1
    assert ended(tmp_path) == undisturbed(*LONGER)


@pytest.mark.slow
def test_a_node_that_dies_loses_no_run(cluster, sweep, tmp_path, undisturbed):
    grid = ["+sweep.blocks.a.grid={seed:[0,1,2,3]}", *LONG]
    submit(sweep, tmp_path, *grid, "launcher.gpus=1")
    points = make_plan([*TINY, *grid, f"runtime.root={tmp_path}"]).points
    for point in points:
        wait_for_step(point.run_dir, 10)
    kill_node(cluster, "n1")
    wait_for(lambda: "down" in cluster.node_state("n1"), "Slurm to notice", 60)
    cluster.revive()
    settled(tmp_path)
    assert ended(tmp_path) == undisturbed(*grid)
    assert {one.environment["slurm_restart_count"] for one in records(tmp_path).values()} == {"0", "1"}


@pytest.mark.slow
def test_a_node_that_only_looks_dead_does_no_run_twice(cluster, sweep, tmp_path, undisturbed):
    """Its job is sent elsewhere while the old process still trains: that one goes on, the other waits."""
    run_dir = submit(sweep, tmp_path, *LONGER)
    first = wait_for_step(run_dir, 20)
    job, node = first["job"], output("squeue", "-h", "-j", str(first["job"]), "-o", "%N").strip()
    cluster.nodes[node].stop(signal.SIGKILL)
    wait_for(lambda: f"{job}|RUNNING|1|" in jobs_state(), "the job to run elsewhere", 90)
    log = run_dir / "output.log"
    wait_for(lambda: "is held by process" in log.read_text(), "the second process to meet the first", 60)
    assert beat(run_dir)["process"] == first["process"]
    cluster.revive()
    settled(tmp_path, 400)
    assert ended(tmp_path) == undisturbed(*LONGER)


def test_jobs_outlive_a_controller_that_dies(cluster, sweep, tmp_path, undisturbed):
    run_dir = submit(sweep, tmp_path, *LONG)
    wait_for_step(run_dir, 20)
    cluster.controller.stop(signal.SIGKILL)
    blind = sweep("status", tmp_path)
    assert blind.returncode == 0
    assert "warning: squeue" in blind.stderr
    assert blind.stdout.endswith("\n1 run: 1 running\n")
    cluster.controller.start()
    settled(tmp_path)
    assert ended(tmp_path) == undisturbed(*LONG)


def test_jobs_that_slurm_has_forgotten_are_lost_and_sent_again(cluster, sweep, tmp_path):
    """Ids begin again when a cluster is set up anew: another job under the old id must not be mistaken."""
    other, root = tmp_path / "other", tmp_path / "root"
    submit(sweep, other, SHORT, "seed=1")
    settled(other)
    words = [SHORT, "+launcher.parameters.hold=true"]
    submit(sweep, root, *words)
    assert sweep("cancel", root).returncode == 0
    (one,) = submissions.read(root)
    submissions.answered(root, one.name, str(submissions.read(other)[0].job))
    assert succeeds("scancel", f"--name={one.name}")
    (told,) = report(root)["runs"]
    assert (told["status"], told["reason"].partition(",")[0]) == (
        "lost",
        f"Slurm no longer knows its job {submissions.read(other)[0].job}",
    )
    submit(sweep, root, SHORT)
    settled(root)
    assert report(root)["counts"] == {"finished": 1}


@pytest.mark.slow
def test_a_job_that_may_not_go_back_into_the_queue_says_so(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words, "+launcher.parameters.no_requeue=true")
    job = wait_for_step(run_dir, 20)["job"]
    assert succeeds("scancel", "--signal=USR2", job)
    settled(tmp_path)
    (told,) = report(tmp_path)["runs"]
    assert told["status"] == "planned"
    assert told["reason"].startswith("saved")
    assert told["reason"].endswith(f"but job {job} could not go back into the queue")
    submit(sweep, tmp_path, *words)
    settled(tmp_path)
    assert ended(tmp_path) == undisturbed(*LONG)
