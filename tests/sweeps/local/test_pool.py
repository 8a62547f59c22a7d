"""The local launcher with real worker processes and real, tiny trainings."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from hyperp.rundir import record
from hyperp.sweeps.local.pool import (
    LocalLauncher,
    RunEnded,
    RunProgressed,
    RunStarted,
    WorkerShare,
    read_local_launcher,
    run_pool,
    worker_shares,
)
from hyperp.sweeps.local.resources import usable_cores
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.runs.run import execute_run, record_dead_run
from hyperp.sweeps.runs.status import run_state, survey_runs
from tests.tiny import TINY

SMALL = [
    *TINY,
    "runtime.log_every=1",
    "runtime.checkpoint_every=0",
]
LONG = 2**20  # tokens: far more than a test waits for
TWO_WORKERS = LocalLauncher(name="local", workers=2, threads=1)


def plan_of(root, grid):
    return make_plan([*SMALL, f"runtime.root={root}", f"+sweep.blocks.a.grid={grid}"])


def worker_pid(index):
    pid = next(p.pid for p in multiprocessing.active_children() if p.name == f"worker {index}")
    assert pid is not None
    return pid


def test_every_run_ends_with_a_record_longest_first(tmp_path):
    plan = plan_of(tmp_path, "{scale.tokens:[1024,4096],seed:[0,1]}")
    with closing(run_pool(plan.points, TWO_WORKERS)) as events:
        seen = list(events)
    ended = {event.run_id: event.status for event in seen if isinstance(event, RunEnded)}
    assert ended == {point.run_id: "finished" for point in plan.points}
    sizes = {point.run_id: point.own.scale.tokens for point in plan.points}
    started = [sizes[event.run_id] for event in seen if isinstance(event, RunStarted)]
    assert started == sorted(started, reverse=True)
    # Which of them does how much depends on how fast each gets going.
    assert {event.worker for event in seen if isinstance(event, RunStarted)} <= {0, 1}
    for point in plan.points:
        done = record.load(point.run_dir)
        assert done is not None
        assert done.environment["threads"] == "1"
        assert not (point.run_dir / "heartbeat.json").exists()
    assert not multiprocessing.active_children()


def test_a_killed_worker_costs_its_own_run_and_a_second_try_repairs_it(tmp_path):
    plan = plan_of(tmp_path, f"{{scale.tokens:[{LONG},1024,1280,1536]}}")
    victim = plan.points[0]
    reasons, killed = {}, False
    with closing(run_pool(plan.points, TWO_WORKERS)) as events:
        for event in events:
            if isinstance(event, RunProgressed) and event.run_id == victim.run_id and not killed:
                os.kill(worker_pid(event.worker), signal.SIGKILL)
                killed = True
            if isinstance(event, RunEnded):
                reasons[event.run_id] = (event.status, event.reason)
    assert reasons.pop(victim.run_id) == ("failed", "worker killed by signal 9")
    assert set(reasons.values()) == {("finished", None)}
    assert len(reasons) == 3
    state = run_state(tmp_path, victim.run_id, None)
    assert (state.status, state.reason, state.cause) == ("failed", "worker killed by signal 9", "killed")

    short = make_plan([*SMALL, f"runtime.root={tmp_path}", "scale.tokens=2048"]).points[0]
    record_dead_run(asdict(short.config), str(short.run_dir), "worker killed by signal 9")
    with closing(run_pool([short], TWO_WORKERS)) as events:
        assert [e.status for e in events if isinstance(e, RunEnded)] == ["finished"]
    assert run_state(tmp_path, short.run_id, None).status == "finished"


def test_stopping_leaves_no_record_and_no_process(tmp_path):
    plan = plan_of(tmp_path, f"{{scale.tokens:[{LONG}],seed:[0,1,2]}}")
    planfile.write_plan(plan)
    with closing(run_pool(plan.points, TWO_WORKERS)) as events:
        for event in events:
            if isinstance(event, RunProgressed) and "running" in {
                run.status for run in survey_runs(tmp_path)
            }:
                break
    assert {run.status for run in survey_runs(tmp_path)} == {"planned"}
    assert not multiprocessing.active_children()


def test_what_raises_in_a_worker_is_that_runs_reason_alone(tmp_path):
    plan = plan_of(tmp_path, "{scale.tokens:[1024],seed:[0,1]}")
    blocked, other = plan.points
    tmp_path.joinpath(blocked.run_id).write_text("a file where the run's folder should be")
    with closing(run_pool(plan.points, TWO_WORKERS)) as events:
        ended = {event.run_id: event for event in events if isinstance(event, RunEnded)}
    assert ended[blocked.run_id].status == "failed"
    assert "FileExistsError" in (ended[blocked.run_id].reason or "")
    assert ended[other.run_id].status == "finished"


def test_a_worker_that_cannot_start_is_an_error_not_a_failed_run(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plan = plan_of(tmp_path / "root", "{scale.tokens:[1024]}")
    with pytest.raises(RuntimeError, match="exited with code 3"):
        list(run_pool(plan.points, TWO_WORKERS))
    assert not plan.points[0].run_dir.exists()


ORPHANS = """
import sys
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.local.pool import LocalLauncher, RunProgressed, run_pool
if __name__ == "__main__":
    import multiprocessing
    points = make_plan(sys.argv[1:]).points
    for event in run_pool(points, LocalLauncher(name="local", workers=2, threads=1)):
        if isinstance(event, RunProgressed):
            print(*(p.pid for p in multiprocessing.active_children()), flush=True)
"""


def test_workers_follow_a_killed_parent(tmp_path):
    words = [*SMALL, f"runtime.root={tmp_path}", f"+sweep.blocks.a.grid={{scale.tokens:[{LONG}],seed:[0,1]}}"]
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} outlived their parent"
        time.sleep(0.05)
    assert {run_state(tmp_path, p.run_id, None).record for p in make_plan(words).points} == {None}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie is not alive, even if nobody waits for it
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_workers_are_as_many_as_asked_or_as_gpus_or_as_cores_and_never_more_than_runs():
    _, usable = usable_cores()
    auto = LocalLauncher(name="local", workers=0, threads=1)
    assert len(worker_shares(auto, 1000, [])) == usable
    assert [share.gpu for share in worker_shares(auto, 1000, ["2", "0", "1"])] == ["2", "0", "1"]
    assert [share.gpu for share in worker_shares(auto, 2, ["2", "0", "1"])] == ["2", "0"]
    assert [share.gpu for share in worker_shares(TWO_WORKERS, 9, ["7"])] == ["7", "7"]
    assert [share.gpu for share in worker_shares(TWO_WORKERS, 9, [])] == [None, None]
    assert len(worker_shares(auto, 1, [])) == 1
    many = worker_shares(LocalLauncher(name="local", workers=500, threads=2), 1000, [])
    assert many == [WorkerShare(None, 2)] * 500


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_running_workers_keep_to_their_own_cores(tmp_path):
    plan = plan_of(tmp_path, f"{{scale.tokens:[{LONG}],seed:[0,1]}}")
    expected = {i: share.cores for i, share in enumerate(worker_shares(TWO_WORKERS, 2, []))}
    if None in expected.values():
        pytest.skip("needs two cores without a quota")
    found = {}
    with closing(run_pool(plan.points, TWO_WORKERS)) as events:
        for event in events:
            if isinstance(event, RunProgressed):
                found[event.worker] = sorted(os.sched_getaffinity(worker_pid(event.worker)))
            if len(found) == 2:
                break
    assert found == expected
    assert set(found[0]).isdisjoint(found[1])


# Stands in for torch in the workers, to see the world as torch sees it: waits for both, then ends them.
WITNESS = """
import json, os, pathlib, time
here = pathlib.Path(__file__).parent
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
(here / f"{os.getpid()}.tmp").write_text(json.dumps({name: os.environ.get(name) for name in names}))
(here / f"{os.getpid()}.tmp").rename(here / f"{os.getpid()}.seen")
deadline = time.monotonic() + 60
while len(list(here.glob("*.seen"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
raise SystemExit(3)
"""


@pytest.mark.parametrize("gpus", [[], ["3", "GPU-5ebe9f43"]])
def test_threads_and_gpus_are_set_before_a_worker_imports_torch(tmp_path, monkeypatch, gpus):
    (tmp_path / "torch.py").write_text(WITNESS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    plan = plan_of(tmp_path / "root", "{scale.tokens:[1024],seed:[0,1]}")
    launcher = LocalLauncher(name="local", workers=2, threads=3)
    with pytest.raises(RuntimeError, match="exited with code 3"):
        list(run_pool(plan.points, launcher, gpus))
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("*.seen")]
    assert len(seen) == 2
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert {world[name] for world in seen} == {"3"}
    assert sorted(world["CUDA_VISIBLE_DEVICES"] for world in seen) == (gpus or ["5,6", "5,6"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("launcher.workers=-1", r"launcher\.workers.*0, got -1"),
        ("launcher.threads=0", r"launcher\.threads.*1, got 0"),
        ("launcher.name=moon", r"launcher\.name.*local, got 'moon'"),
        ("+launcher.gpus=1", r"launcher\.gpus .*got 1"),
    ],
)
def test_a_wrong_launcher_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        read_local_launcher(make_plan([word]))


def test_the_record_of_a_failed_run_is_written_once(tmp_path, monkeypatch):
    point = make_plan([*SMALL, f"runtime.root={tmp_path}", "scale.tokens=1024"]).points[0]
    point.run_dir.joinpath("metrics.jsonl").mkdir(parents=True)  # the training cannot write its log
    written, save = [], record.save
    monkeypatch.setattr(record, "save", lambda *of: (written.append(of), save(*of)))
    result = execute_run(asdict(point.config), str(point.run_dir))
    assert (result["status"], result["cause"]) == ("failed", "raised")
    assert len(written) == 1


def test_a_job_does_nothing_for_a_finished_run_and_again_what_left_a_damaged_record(tmp_path):
    point = make_plan([*SMALL, f"runtime.root={tmp_path}", "scale.tokens=1024"]).points[0]
    config, run_dir = asdict(point.config), str(point.run_dir)
    first = execute_run(config, run_dir)
    path = point.run_dir / "record.json"
    written = path.stat().st_mtime_ns
    assert execute_run(config, run_dir) == first
    assert path.stat().st_mtime_ns == written
    path.write_text(path.read_text()[:100])
    again = execute_run(config, run_dir)
    assert (again["status"], again["loss"]) == ("finished", first["loss"])
    assert (point.run_dir / "record.damaged").exists()
    assert record_dead_run(config, run_dir, "too late") == again
