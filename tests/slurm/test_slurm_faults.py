"""What goes wrong on a cluster, done to real jobs: each run ends once, with the bits of one left alone."""

import contextlib
import json
import os
import signal
import subprocess
from random import Random

import pytest
import torch
from cluster import output, succeeds, wait_for
from helpers import (
    HYPERP_SWEEP,
    SHORT,
    SLURM,
    TINY,
    facts,
    frozen,
    jobs_state,
    kill_node,
    processes,
    records,
    report,
    settled,
    starts_work,
    wait_for_kill,
    wait_for_step,
    wait_for_warning,
)

from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.slurm import submissions

pytestmark = pytest.mark.slurm
LONG = ["scale.tokens=262144", "runtime.threads=1"]  # 1,024 steps: seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What runs leave that these words plan, run on this machine in peace, by id; each run only once."""
    root = tmp_path_factory.mktemp("undisturbed")

    def run(*words):
        command = [HYPERP_SWEEP, "run", *TINY, *words, f"runtime.root={root}"]
        subprocess.run(command, check=True, capture_output=True)
        points = make_plan([*TINY, *words, f"runtime.root={root}"]).points
        left = ended(root)
        return {point.run_id: left[point.run_id] for point in points}

    return run


def submit(sweep, root, *words):
    """Submit, and return the folder of the first run."""
    everything = [*TINY, *SLURM, *words, f"runtime.root={root}"]
    done = sweep("submit", *everything)
    assert done.returncode == 0, done.stderr
    return make_plan(everything).points[0].run_dir


def ended(root):
    """What must be the same, however often a run was interrupted: its record and its curve, to the bit."""
    return {run_id: (facts(one), curve(root / run_id)) for run_id, one in records(root).items()}


def curve(run_dir):
    """Every logged step once, in order, with all that was measured but the speed."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def test_a_process_killed_three_times_ends_with_the_same_bits(cluster, sweep, tmp_path, undisturbed):
    step, reasons, random = 20, [], Random(0)
    for _ in range(3):
        run_dir = submit(sweep, tmp_path, *LONG)
        seen = wait_for_step(run_dir, step)
        os.kill(seen.process, signal.SIGKILL)
        settled(cluster, tmp_path)
        (told,) = report(tmp_path)["runs"]
        reasons.append((told["status"], told["reason"].partition(" (")[0].partition(" at ")[0]))
        step = seen.step + random.randrange(8, 80)
    assert reasons == [("failed", "killed by signal 9")] * 3
    run_dir = submit(sweep, tmp_path, *LONG)
    settled(cluster, tmp_path)
    assert records(tmp_path)[run_dir.name].resumed == 3
    assert ended(tmp_path) == undisturbed(*LONG)


def test_a_warning_saves_the_step_and_the_job_goes_on_from_it(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words)
    seen = wait_for_step(run_dir, 20)
    with frozen(seen):
        assert succeeds("scancel", "--signal=USR2", seen.job)
    wait_for(lambda: f"{seen.job}|PENDING|1|" in jobs_state(), "the job to be in the queue again", 60)
    assert succeeds("scontrol", "hold", seen.job)  # or it might run again before anyone has looked
    (told,) = report(tmp_path, "--all")["runs"]
    assert told["status"] == "queued"
    assert torch.load(run_dir / "checkpoint.pt", weights_only=True)["step"] >= seen.step
    assert succeeds("scontrol", "release", seen.job)
    settled(cluster, tmp_path)
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (1, "1")
    assert ended(tmp_path) == undisturbed(*LONG)


def test_a_warning_before_python_can_handle_it_ends_no_job(cluster, sweep, tmp_path):
    run_dir = submit(sweep, tmp_path, SHORT, "+launcher.parameters.hold=true")
    (waits,) = jobs_state()
    assert succeeds("scontrol", "release", waits.partition("|")[0])
    warned: set[int] = set()
    while not warned:
        warned = {pid for pid in processes() if starts_work(pid)}
        for pid in warned:
            os.kill(pid, signal.SIGUSR2)
    settled(cluster, tmp_path)
    assert records(tmp_path)[run_dir.name].status == "finished"


def test_a_requeue_without_warning_costs_the_steps_since_the_last_checkpoint(
    cluster, sweep, tmp_path, undisturbed
):
    run_dir = submit(sweep, tmp_path, *LONG)
    seen = wait_for_step(run_dir, 20)
    with frozen(seen):
        assert succeeds("scontrol", "requeue", seen.job)
        wait_for_kill(seen, 60)
    settled(cluster, tmp_path)
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (1, "1")
    assert ended(tmp_path) == undisturbed(*LONG)


@pytest.mark.slow
def test_preempted_jobs_go_on_when_the_others_have_gone(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words, "launcher.partition=low")
    seen = wait_for_step(run_dir, 20)
    with frozen(seen):
        assert succeeds("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
        wait_for_warning(seen, 60)
    wait_for(lambda: f"{seen.job}|PENDING|1|" in jobs_state(), "the job to be preempted", 60)
    settled(cluster, tmp_path)
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (1, "1")
    assert ended(tmp_path) == undisturbed(*LONG)


@pytest.mark.slow
def test_a_real_time_limit_of_one_minute(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0", "launcher.time=1m", "launcher.grace=20"]
    run_dir = submit(sweep, tmp_path, *words)
    seen = wait_for_step(run_dir, 20)
    with frozen(seen):
        wait_for_warning(seen, 90)
    wait_for(lambda: f"{seen.job}|PENDING|1|" in jobs_state(), "the job to be in the queue again", 60)
    settled(cluster, tmp_path)
    (one,) = records(tmp_path).values()
    # Slurm may warn half a minute early, and so more than once.
    assert one.resumed == int(one.environment["slurm_restart_count"]) >= 1
    assert ended(tmp_path) == undisturbed(*LONG)


@pytest.mark.slow
def test_a_node_that_dies_loses_no_run(cluster, sweep, tmp_path, undisturbed):
    grid = ["+sweep.blocks.a.grid={seed:[0,1,2,3]}", *LONG]
    submit(sweep, tmp_path, *grid, "launcher.gpus=1")
    points = make_plan([*TINY, *grid, f"runtime.root={tmp_path}"]).points
    with contextlib.ExitStack() as until_dead:
        for point in points:
            until_dead.enter_context(frozen(wait_for_step(point.run_dir, 10)))
        kill_node(cluster, "n1")
    wait_for(lambda: "down" in cluster.node_state("n1"), "Slurm to notice", 300)
    cluster.revive()
    settled(cluster, tmp_path)
    assert ended(tmp_path) == undisturbed(*grid)
    assert {one.environment["slurm_restart_count"] for one in records(tmp_path).values()} == {"0", "1"}


@pytest.mark.slow
def test_a_node_that_only_looks_dead_does_no_run_twice(cluster, sweep, tmp_path, undisturbed):
    """Its job is sent elsewhere while the old process still lives: that one goes on, the other waits."""
    run_dir = submit(sweep, tmp_path, *LONG)
    first = wait_for_step(run_dir, 20)
    node = output("squeue", "-h", "-j", first.job, "-o", "%N").strip()
    with frozen(first):
        cluster.nodes[node].stop(signal.SIGKILL)
        wait_for(lambda: f"{first.job}|RUNNING|1|" in jobs_state(), "the job to run elsewhere", 300)
        log = run_dir / "output.log"
        wait_for(lambda: "is held by process" in log.read_text(), "the second to meet the first", 90)
    wait_for(lambda: records(tmp_path), "the first process to end the run")
    (one,) = records(tmp_path).values()
    assert (one.resumed, one.environment["slurm_restart_count"]) == (0, "0")
    cluster.revive()
    settled(cluster, tmp_path)
    assert ended(tmp_path) == undisturbed(*LONG)


def test_jobs_outlive_a_controller_that_dies(cluster, sweep, tmp_path, undisturbed):
    """One that trains, and one that waits for it."""
    words = ["+sweep.blocks.a.grid={seed:[0,1]}", *LONG]
    seen = wait_for_step(submit(sweep, tmp_path, *words, "launcher.array_parallelism=1"), 20)
    with frozen(seen):
        cluster.kill_controller(seen.job)
        blind = sweep("status", tmp_path)
        assert blind.returncode == 0
        assert "warning: squeue" in blind.stderr
        assert blind.stdout.endswith("\n2 runs: 1 planned, 1 running\n")
    cluster.controller.start()
    assert settled(cluster, tmp_path) == {"finished": 2}
    assert {one.environment["slurm_restart_count"] for one in records(tmp_path).values()} == {"0"}
    assert ended(tmp_path) == undisturbed(*words)


def test_jobs_that_slurm_has_forgotten_are_lost_and_sent_again(cluster, sweep, tmp_path):
    """Ids begin again when a cluster is set up anew: another job under the old id must not be mistaken."""
    other, root = tmp_path / "other", tmp_path / "root"
    submit(sweep, other, SHORT, "seed=1")
    assert settled(cluster, other) == {"finished": 1}
    submit(sweep, root, SHORT, "+launcher.parameters.hold=true")
    assert sweep("cancel", root).returncode == 0
    (one,), (old,) = submissions.read_submissions(root), submissions.read_submissions(other)
    submissions.record_job_id(root, one.name, str(old.job))
    (told,) = report(root)["runs"]
    assert told["status"] == "lost"
    assert told["reason"].startswith(f"Slurm no longer knows its job {old.job}, ")
    submit(sweep, root, SHORT)
    assert settled(cluster, root) == {"finished": 1}


@pytest.mark.slow
def test_a_job_that_may_not_go_back_into_the_queue_says_so(cluster, sweep, tmp_path, undisturbed):
    words = [*LONG, "runtime.checkpoint_every=0"]
    run_dir = submit(sweep, tmp_path, *words, "+launcher.parameters.no_requeue=true")
    seen = wait_for_step(run_dir, 20)
    with frozen(seen):
        assert succeeds("scancel", "--signal=USR2", seen.job)
    settled(cluster, tmp_path)
    (told,) = report(tmp_path)["runs"]
    assert told["status"] == "planned"
    assert told["reason"].startswith("saved")
    assert told["reason"].endswith(f"but job {seen.job} could not go back into the queue")
    submit(sweep, tmp_path, *words)
    settled(cluster, tmp_path)
    assert ended(tmp_path) == undisturbed(*LONG)
