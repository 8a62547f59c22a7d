"""A foreign trainer under a real Slurm: the faults that hyperp's own runs meet, and the same account."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import output, succeeds, wait_for
from helpers import Seen, about, jobs_state, kill_node, records, report, settled

from hyperp.rundir.heartbeat import read_heartbeat
from hyperp.sweeps.plan.plan import make_plan
from tests.sweeps.trainers.foreign import section, write_experiment

pytestmark = pytest.mark.slurm
SLURM = ["launcher=slurm", "launcher.time=10m", "launcher.grace=30"]
STEPS = 400
GRACE = {"signal": "SIGTERM", "grace": 10.0}
LONG = section()["values"] | {"tokens": 64 * STEPS, "pause": 0.05}


def submit(sweep, folder, *words, blocks=None, **changes):
    """Submit the foreign experiment; returns its points."""
    chosen = write_experiment(folder, blocks, **({"values": LONG, "stop": GRACE} | changes))
    done = sweep("submit", *chosen, *SLURM, *words)
    assert done.returncode == 0, done.stderr
    return make_plan([*chosen, *SLURM, *words]).points


def wait_for_step(run_dir: Path, step: int) -> Seen:
    """Wait until a live worker has seen its command reach `step`."""
    found: list[Seen] = []

    def past() -> bool:
        beat = read_heartbeat(run_dir)
        if beat and beat.process and beat.step >= step and Path(f"/proc/{beat.process}").exists():
            found.append(Seen(beat.step, beat.process, str(beat.job)))
        return bool(found)

    wait_for(past, f"step {step} of {run_dir.name}", 120)
    return found[0]


def ended(cluster, root: Path) -> dict[str, int]:
    """Wait until Slurm has no job; how many runs have each status. Prints why runs failed."""
    counts = settled(cluster, root)
    print([(one.status, one.cause, one.reason) for one in records(root).values()])
    return counts


def starts(run_dir: Path) -> list[int]:
    """The step from which each attempt of the command went on."""
    lines = (run_dir / "output.log").read_text().splitlines()
    return [int(line.split()[2]) for line in lines if line.startswith("from step ")]


def alive(run_dir: Path) -> list[int]:
    """The processes that have the run's folder among their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(run_dir).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> float:
    """The loss of the long run, on this machine in peace."""
    from hyperp.sweeps import run

    plan = make_plan(write_experiment(tmp_path_factory.mktemp("undisturbed"), values=LONG))
    run(plan)
    loss = next(iter(records(plan.root).values())).loss
    assert loss is not None
    return loss


def test_commands_that_fail_each_in_a_way_of_its_own_leave_records_that_say_why(cluster, sweep, tmp_path):
    blocks = {"a": {"grid": {"values.fault": ["", "raise", "exit", "nan", "silent", "memory"]}}}
    points = submit(sweep, tmp_path, "launcher.memory=900M", blocks=blocks, values=section()["values"])
    assert ended(cluster, tmp_path / "runs") == {"finished": 1, "diverged": 1, "failed": 4}
    found = [records(tmp_path / "runs")[point.run_id] for point in points]
    statuses = [one.status for one in found]
    assert statuses == ["finished", "failed", "failed", "diverged", "failed", "failed"]
    assert [one.cause for one in found[:5]] == [None, "exited", "exited", None, "no_result"]
    assert found[5].cause in ("out_of_memory", "killed")
    assert found[1].reason == "exit code 1: RuntimeError: the data are gone"
    text = sweep("logs", tmp_path / "runs", points[1].run_id).stdout
    assert "RuntimeError: the data are gone" in text


def test_a_warning_stops_the_command_and_the_job_goes_on_from_its_checkpoint(
    cluster, sweep, tmp_path, undisturbed
):
    (point,) = submit(sweep, tmp_path)
    seen = wait_for_step(point.run_dir, 60)
    assert succeeds("scancel", "--signal=USR2", seen.job)
    assert ended(cluster, tmp_path / "runs") == {"finished": 1}
    (one,) = records(tmp_path / "runs").values()
    assert (one.resumed, one.environment["slurm_restart_count"], one.loss) == (1, "1", undisturbed)
    first, second = starts(point.run_dir)
    assert (first, second >= seen.step) == (0, True)


@pytest.mark.slow
def test_a_command_that_ignores_its_warning_is_ended_and_has_failed(cluster, sweep, tmp_path):
    values = LONG | {"fault": "deaf", "tokens": 64 * 10 * STEPS}
    (point,) = submit(sweep, tmp_path, values=values)
    seen = wait_for_step(point.run_dir, 20)
    assert succeeds("scancel", "--signal=USR2", seen.job)
    assert ended(cluster, tmp_path / "runs") == {"failed": 1}
    (one,) = records(tmp_path / "runs").values()
    assert (one.cause, one.reason) == ("timed_out", "ignored SIGTERM for 10 s and was killed")
    assert not alive(point.run_dir)


@pytest.mark.slow
def test_a_killed_worker_and_a_requeue_without_warning_cost_the_steps_since_the_checkpoint(
    cluster, sweep, tmp_path, undisturbed
):
    (point,) = submit(sweep, tmp_path)
    os.kill(wait_for_step(point.run_dir, 60).process, signal.SIGKILL)
    assert ended(cluster, tmp_path / "runs") == {"failed": 1}
    (told,) = report(tmp_path / "runs")["runs"]
    assert told["reason"].startswith("killed by signal 9")
    assert not alive(point.run_dir)
    submit(sweep, tmp_path)
    seen = wait_for_step(point.run_dir, 160)
    assert succeeds("scontrol", "requeue", seen.job)
    assert ended(cluster, tmp_path / "runs") == {"finished": 1}
    (one,) = records(tmp_path / "runs").values()
    assert (one.resumed, one.loss) == (2, undisturbed)
    assert starts(point.run_dir)[0] == 0
    assert all(step >= 50 for step in starts(point.run_dir)[1:])


@pytest.mark.slow
def test_several_nodes_get_a_rendezvous_and_the_failure_of_one_ends_the_run(cluster, sweep, tmp_path):
    script = tmp_path / "node.py"
    script.write_text(
        "import os, sys, time\n"
        "print('node', *sys.argv[1:4], os.environ['MASTER_PORT'], flush=True)\n"
        "if sys.argv[4] == 'broken': sys.exit(3) if sys.argv[1] == '1' else time.sleep(600)\n"
        "print('loss', 2.5)\n"
    )
    fields = {
        "command": ["{python}", str(script), "{node_rank}", "{nodes}", "{processes}", "{how}", "{lr}"],
        "derive": {},
        "resume": None,
        "progress": None,
        "result": {"loss": {"output": r"loss (?P<value>\S+)"}},
    }
    one, two = tmp_path / "one", tmp_path / "two"
    (point,) = submit(sweep, one, "launcher.nodes=2", values={"lr": 0.1, "how": "fine"}, **fields)
    assert ended(cluster, one / "runs") == {"finished": 1}
    (done,) = records(one / "runs").values()
    assert done.loss == 2.5
    said = [(point.run_dir / name).read_text().split() for name in ("output.log", "output.1.log")]
    assert [words[:4] for words in said] == [["node", "0", "2", "2"], ["node", "1", "2", "2"]]
    assert said[0][4] == said[1][4]

    submit(sweep, two, "launcher.nodes=2", values={"lr": 0.1, "how": "broken"}, **fields)
    assert ended(cluster, two / "runs") == {"failed": 1}
    (failed,) = records(two / "runs").values()
    assert str(failed.reason).startswith("rank 1: exit code 3")


@pytest.mark.slow
def test_several_commands_in_one_job_side_by_side(cluster, sweep, tmp_path):
    points = submit(
        sweep,
        tmp_path,
        "launcher.runs_per_task=2",
        "launcher.side_by_side=true",
        "launcher.gpus=2",
        "launcher.memory=1200M",
        blocks={"a": {"grid": {"values.seed": [0, 1]}}},
        values=section()["values"],
    )
    assert ended(cluster, tmp_path / "runs") == {"finished": 2}
    found = records(tmp_path / "runs")
    where = [found[point.run_id].environment for point in points]
    assert where[0]["slurm_job_id"] == where[1]["slurm_job_id"]


@pytest.mark.slow
def test_preempted_commands_go_on_when_the_others_have_gone(cluster, sweep, tmp_path, undisturbed):
    (point,) = submit(sweep, tmp_path, "launcher.partition=low")
    seen = wait_for_step(point.run_dir, 60)
    assert succeeds("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: f"{seen.job}|PENDING|1|" in jobs_state(), "the job to be preempted", 60)
    assert ended(cluster, tmp_path / "runs") == {"finished": 1}
    (one,) = records(tmp_path / "runs").values()
    assert (one.resumed, one.loss) == (1, undisturbed)


@pytest.mark.slow
def test_a_real_time_limit_of_one_minute(cluster, sweep, tmp_path):
    values = LONG | {"tokens": 64 * 2500, "pause": 0.03}
    (point,) = submit(sweep, tmp_path, "launcher.time=1m", "launcher.grace=20", values=values)
    assert ended(cluster, tmp_path / "runs") == {"finished": 1}
    (one,) = records(tmp_path / "runs").values()
    assert one.resumed == int(one.environment["slurm_restart_count"]) >= 1
    assert starts(point.run_dir) == sorted(starts(point.run_dir))


@pytest.mark.slow
def test_a_node_that_dies_loses_no_run(cluster, sweep, tmp_path):
    points = submit(sweep, tmp_path, "launcher.gpus=1", blocks={"a": {"grid": {"values.seed": [0, 1, 2, 3]}}})
    for point in points:
        wait_for_step(point.run_dir, 60)
    kill_node(cluster, "n1")
    wait_for(lambda: "down" in cluster.node_state("n1"), "Slurm to notice", 300)
    cluster.revive()
    assert ended(cluster, tmp_path / "runs") == {"finished": 4}
    assert {one.environment["slurm_restart_count"] for one in records(tmp_path / "runs").values()} == {
        "0",
        "1",
    }


@pytest.mark.slow
def test_a_node_that_only_looks_dead_does_no_run_twice(cluster, sweep, tmp_path, undisturbed):
    values = LONG | {"pause": 0.3}
    (point,) = submit(sweep, tmp_path, values=values)
    first = wait_for_step(point.run_dir, 60)
    node = output("squeue", "-h", "-j", first.job, "-o", "%N").strip()
    cluster.nodes[node].stop(signal.SIGKILL)
    wait_for(lambda: f"{first.job}|RUNNING|1|" in jobs_state(), "the job to run elsewhere", 300)
    log = point.run_dir / "output.log"
    wait_for(lambda: "is held by process" in log.read_text(), "the second to meet the first", 90)
    wait_for(lambda: records(tmp_path / "runs"), "the first process to end the run", 300)
    (one,) = records(tmp_path / "runs").values()
    assert (one.resumed, one.loss) == (0, undisturbed)
    cluster.revive()
    ended(cluster, tmp_path / "runs")


@pytest.mark.slow
def test_cancelled_commands_are_planned_again_and_their_checkpoints_used(
    cluster, sweep, tmp_path, undisturbed
):
    (point,) = submit(sweep, tmp_path)
    seen = wait_for_step(point.run_dir, 60)
    assert sweep("cancel", tmp_path / "runs").stdout == f"cancelled 1 job; {tmp_path / 'runs'}\n"
    wait_for(lambda: about(seen.process)["State"][0] in "XZ", "the worker to end", 60)
    deadline = time.monotonic() + 60
    while report(tmp_path / "runs")["counts"] != {"planned": 1}:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert not alive(point.run_dir)
    submit(sweep, tmp_path)
    assert ended(cluster, tmp_path / "runs") == {"finished": 1}
    (one,) = records(tmp_path / "runs").values()
    assert (one.resumed, one.loss) == (1, undisturbed)
