"""`hyperp-sweep submit` on this machine: real processes in the background, and what may end them."""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hyperp import files
from hyperp.rundir import record
from hyperp.sweeps import status
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.pool import LocalLauncher
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.runs.status import count_statuses
from hyperp.training.train import base_record
from tests import forked
from tests.tiny import TINY

SMALL = [
    *TINY,
    "runtime.log_every=1",
    "runtime.checkpoint_every=8",
    "launcher.workers=2",
]
LONG = 2**21  # tokens: far more than a test waits for


def words(root, tokens, seeds):
    return [*SMALL, f"runtime.root={root}", f"+sweep.blocks.a.grid={{scale.tokens:{tokens},seed:{seeds}}}"]


def sweep(*args):
    return forked.run_command("hyperp-sweep", *args)


def report(root):
    return json.loads(sweep("status", root, "--json").stdout)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refuse(text):
    raise AssertionError(text)


def pool_of(root):
    """The pool at work, and its process."""
    pool = background_pools.active_pool(root)
    assert pool is not None
    assert pool.process is not None
    return pool, pool.process


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def root(tmp_path):
    """A folder whose pool does not outlive the test."""
    yield tmp_path
    pool = background_pools.active_pool(tmp_path)
    if pool and pool.host == socket.gethostname() and pool.process != os.getpid():
        background_pools.stop_pool(tmp_path, pool)


def test_a_submitted_sweep_goes_on_by_itself_and_only_what_failed_is_submitted_again(root):
    """From the submission to the table, with the submitting process gone and one run that fails."""
    mine = words(root, [16384, 2048], [0, 1])
    blocked = next(point for point in make_plan(mine).points if point.own.scale.tokens == 2048)
    blocked.run_dir.write_text("a file where the run's folder should be")
    first = sweep("submit", *mine)
    pool = background_pools.read_pools(root)[-1]
    expected = f"submitted 4 of 4 runs to process {pool.process} on this machine; {root}\n"
    assert (first.returncode, first.stdout) == (0, expected)
    wait_for(lambda: background_pools.active_pool(root) is None)
    told = {run["run_id"]: run for run in report(root)["runs"]}
    assert list(told) == [blocked.run_id]
    assert (told[blocked.run_id]["status"], told[blocked.run_id]["cause"]) == ("failed", "raised")
    assert told[blocked.run_id]["reason"].endswith(f"Not a directory: '{blocked.run_dir / 'record.json'}'")
    # The run could not print anything, so the pool's own log is shown.
    assert f"failed {blocked.run_id}" in sweep("logs", root, blocked.run_id).stdout
    done = sweep("collect", root)
    table = pd.read_parquet(root / "runs.parquet")
    assert done.returncode == 0, done.stderr
    assert sorted(table["status"]) == ["failed", "finished", "finished", "finished"]
    (pool,) = background_pools.read_pools(root)
    assert (pool.ended, list(pool.failed)) == ("done", [blocked.run_id])
    assert "4 of 4 runs: 3 finished, 0 diverged, 1 failed" in pool.log(root).read_text()

    blocked.run_dir.unlink()
    last = sweep("submit", *mine)
    assert last.stdout.startswith("submitted 1 of 4 runs to process ")
    assert last.stdout.endswith(f" (3 finished before); {root}\n")
    wait_for(lambda: background_pools.active_pool(root) is None)
    assert report(root)["counts"] == {"finished": 4}
    nothing = sweep("submit", *mine)
    assert nothing.stdout == f"submitted 0 of 4 runs (4 finished before); {root}\n"
    assert len(background_pools.read_pools(root)) == 2


def test_a_killed_pool_is_told_its_workers_follow_and_a_new_submit_goes_on_until_cancelled(root):
    mine = words(root, [LONG], [0, 1, 2])
    assert sweep("submit", *mine).returncode == 0
    wait_for(lambda: len(list(root.glob("*/checkpoint.pt"))) == 2)
    assert report(root)["counts"] == {"queued": 1, "running": 2}
    pool, process = pool_of(root)
    workers = children(process)
    assert len(workers) >= 2
    assert os.getsid(process) == process
    assert Path(f"/proc/{process}/fd/0").readlink() == Path("/dev/null")
    again = sweep("submit", *mine)
    assert again.stdout == f"submitted 0 of 3 runs (1 queued, 2 running before); {root}\n"
    for refused, why in [
        (sweep("run", *mine), "3 of the runs are queued or running in the background"),
        (
            sweep("submit", *words(root, [2048], [7])),
            f"process {process} on {socket.gethostname()} is at work on {root}: wait for it",
        ),
    ]:
        assert (refused.returncode, refused.stdout) == (2, "")
        assert why in refused.stderr
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in workers), 15)
    assert background_pools.active_pool(root) is None
    warned = []
    wait_for(
        lambda: not count_statuses(status(root, warn=warned.append)).get("running"), 15
    )  # and not a minute later
    assert "ended before its runs were done; submit again" in warned[0]

    again = sweep("submit", *mine)
    assert again.stdout.startswith("submitted 3 of 3 runs to process "), again.stderr
    assert [one.ended for one in background_pools.read_pools(root)] == ["followed", None]
    wait_for(lambda: count_statuses(status(root, warn=refuse)).get("running") == 2)
    told = report(root)
    assert told["counts"] == {"queued": 1, "running": 2}
    assert all(run["step"] >= 8 for run in told["runs"] if run["status"] == "running"), told  # not from 0
    pool, process = pool_of(root)
    workers = children(process)
    some = sweep("cancel", root, pool.runs[0])
    assert (some.returncode, some.stdout) == (2, "")
    assert "RUN_IDS must be left out" in some.stderr
    done = sweep("cancel", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cancelled 3 runs of process {process}; {root}\n"
    wait_for(lambda: not any(alive(pid) for pid in [process, *workers]), 15)
    after = status(root, warn=refuse)
    assert count_statuses(after) == {"planned": 3}
    assert sorted(run.reason or "" for run in after) == ["", *["stopped, has a checkpoint"] * 2]
    assert background_pools.read_pools(root)[-1].ended == "cancelled"
    assert (
        sweep("cancel", root).stdout == f"cancelled 0 runs: none is in the background or in Slurm; {root}\n"
    )


def test_a_pool_of_another_machine_is_seen_and_not_signalled(root, tmp_path):
    """Its file system may not carry locks, so the lock file's time says whether the pool is at work."""
    mine = make_plan(words(root, [2048], [0, 1]))
    planfile.write_plan(mine)
    (root / background_pools.FOLDER).mkdir()
    path = root / background_pools.FOLDER / ".lock"
    path.touch()
    ids = [point.run_id for point in mine.points]
    launcher = LocalLauncher(name="local", workers=1, threads=1)
    away = background_pools.BackgroundPool(
        "a", "2026-01-01T00:00:00+00:00", "elsewhere", os.getpid(), launcher, ids
    )
    background_pools.MANIFEST.write(root, [away])
    assert {run.status for run in status(root, warn=print)} == {"queued"}
    done = sweep("cancel", root)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"{root} is under way on elsewhere (process {os.getpid()}), which this machine cannot reach"
        in done.stderr
    )
    assert "on elsewhere is at work" in sweep("submit", *words(root, [2048], [5])).stderr
    os.utime(path, (0, time.time() - 100))
    warned = []
    assert {run.status for run in status(root, warn=warned.append)} == {"planned"}
    assert "on elsewhere, which worked in the background, ended before" in warned[0]
    for ended, warnings in (("broken", 1), ("done", 0), ("cancelled", 0), ("followed", 0)):
        background_pools.MANIFEST.write(root, [replace(away, ended=ended)])
        warned = []
        assert {run.status for run in status(root, warn=warned.append)} == {"planned"}
        assert len(warned) == warnings
    # On this machine only the lock counts, not its file's time, nor whether the process id is in use.
    os.utime(path)
    background_pools.MANIFEST.write(root, [replace(away, host=socket.gethostname())])
    assert background_pools.active_pool(root) is None
    with files.lock(path, "it"):
        assert background_pools.active_pool(root) is not None


def test_what_an_earlier_try_left_is_queued_and_a_new_failure_is_not(root):
    mine = make_plan(words(root, [2048], [0, 1, 2]))
    planfile.write_plan(mine)
    again, failed, done = mine.points
    for point in (again, failed):
        record.save(base_record(point.own, status="failed", reason="x", cause="killed"), point.run_dir)
    record.save(base_record(done.own, status="diverged", reason="y"), done.run_dir)
    (root / background_pools.FOLDER).mkdir()
    ids = [point.run_id for point in mine.points]
    launcher = LocalLauncher(name="local", workers=1, threads=1)
    now = {failed.run_id: background_pools.PoolFailure("x", "killed")}
    pool = background_pools.BackgroundPool(
        "a", "2026-01-01T00:00:00+00:00", socket.gethostname(), None, launcher, ids, now
    )
    background_pools.MANIFEST.write(root, [pool])
    with files.lock(root / background_pools.FOLDER / ".lock", "it"):
        found = {run.run_id: (run.status, run.cause) for run in status(root, warn=print)}
    assert found == {
        again.run_id: ("queued", None),
        failed.run_id: ("failed", "killed"),
        done.run_id: ("diverged", None),
    }


def start(root):
    """Start a pool of one tiny run from this process."""
    mine = make_plan(words(root, [512], [0]))
    with planfile.lock_sweep(root) as held:
        planfile.write_plan(mine)
        launcher = LocalLauncher(name="local", workers=1, threads=1)
        return background_pools.start_pool(root, [mine.points[0].run_id], launcher, held)


def test_a_submitter_that_was_stopped_until_all_was_done_leaves_what_was_noted(root, monkeypatch):
    popen = subprocess.Popen

    def slow(*args, **options):
        process = popen(*args, **options)
        process.wait(120)
        return process

    monkeypatch.setattr(background_pools.subprocess, "Popen", slow)
    pool = start(root)
    assert (pool.ended, background_pools.read_pools(root)) == ("done", [pool])
    assert pool.process is not None


def test_a_pool_that_does_not_start_is_told(root, monkeypatch):
    monkeypatch.setattr(background_pools.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"ended at once; .*\.log"):
        start(root)
    assert background_pools.active_pool(root) is None


def test_a_pool_that_never_begins_is_ended_and_told(root, monkeypatch, tmp_path):
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(background_pools.sys, "executable", str(hangs))
    monkeypatch.setattr(background_pools, "START_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match=r"within 0\.3 s and was killed; .*\.log"):
        start(root)
    assert background_pools.active_pool(root) is None


def test_a_damaged_manifest_is_refused_by_name(root):
    planfile.write_plan(make_plan(words(root, [2048], [0])))
    for text in ("{", "[]", '{"schema": 2}', '{"schema": 1, "pools": [{"name": "a"}]}'):
        (root / background_pools.NAME).write_text(text)
        with pytest.raises(ValueError, match=r"local\.json .*started"):
            status(root, warn=print)
    (root / background_pools.NAME).unlink()
