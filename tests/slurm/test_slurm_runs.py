"""Sweeps through a real Slurm, with tiny real trainings: what is handed over, and what comes back."""

import json
import signal
import subprocess
import time
from itertools import pairwise

import pandas as pd
import pytest
from cluster import succeeds, wait_for
from helpers import HYPERP_SWEEP, SHORT, SLURM, TINY, facts, jobs_of, jobs_state, records, report, settled

from hyperp.rundir import record
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.slurm import submissions

pytestmark = pytest.mark.slurm
GRID = "+sweep.blocks.grid={grid:{scale.tokens:[8192,16384],seed:[0,1]},lr:{center:-5,octaves:1}}"


def test_a_grid_over_two_nodes_ends_in_the_same_records_as_on_this_machine(cluster, sweep, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    done = sweep("submit", *TINY, *SLURM, GRID, "launcher.gpus=1", f"runtime.root={there}")
    assert done.returncode == 0, done.stderr
    job = submissions.read_submissions(there)[0].job
    assert done.stdout == f"submitted 12 of 12 runs as 12 jobs, Slurm's {job}; {there}\n"
    again = sweep("submit", *TINY, *SLURM, GRID, f"runtime.root={there}")
    assert again.stdout == f"submitted 0 of 12 runs ({again.stdout.partition('(')[2]}"
    assert len(submissions.read_submissions(there)) == 1

    assert sweep("run", *TINY, GRID, f"runtime.root={here}").returncode == 0
    assert settled(cluster, there) == {"finished": 12}
    expected, got = records(here), records(there)
    assert {run_id: facts(one) for run_id, one in got.items()} == {
        run_id: facts(one) for run_id, one in expected.items()
    }
    where = {one.environment["slurm_job_id"]: one.environment for one in got.values()}
    assert set(where) == {f"{job}_{i}" for i in range(12)}
    assert {one["slurm_restart_count"] for one in where.values()} == {"0"}
    one_gpu_each(job, {i: (one["slurm_node"], one["cuda_visible_devices"]) for i, one in where.items()})

    before = {path: path.stat().st_mtime_ns for path in there.rglob("*.json")}
    final = sweep("submit", *TINY, *SLURM, GRID, f"runtime.root={there}")
    assert final.stdout == f"submitted 0 of 12 runs (12 finished before); {there}\n"
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*.json")} == before


def one_gpu_each(job, gpus):
    """Every GPU of the cluster was used, each by one job at a time, as the accounting has their times."""
    assert set(gpus.values()) == {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}
    wait_for(lambda: "Unknown" not in jobs_of(job, "End").values(), "the accounting")
    starts, ends = jobs_of(job, "Start"), jobs_of(job, "End")
    for gpu in set(gpus.values()):
        mine = sorted((starts[i], ends[i]) for i in gpus if gpus[i] == gpu)
        assert all(end <= start for (_, end), (start, _) in pairwise(mine)), (gpu, mine)


def test_the_submitting_process_may_die_at_once(cluster, sweep, tmp_path):
    words = [*TINY, SHORT, *SLURM, "+sweep.blocks.a.grid={seed:[0,1,2]}", f"runtime.root={tmp_path}"]
    with subprocess.Popen([HYPERP_SWEEP, "submit", *words], stdout=subprocess.DEVNULL) as submitter:
        wait_for(jobs_state, "Slurm to have it", 90)
        submitter.send_signal(signal.SIGKILL)
    assert submitter.returncode in (-signal.SIGKILL, 0)
    assert settled(cluster, tmp_path) == {"finished": 3}
    assert len(submissions.read_submissions(tmp_path)) == 1
    done = sweep("collect", tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "runs.parquet")
    assert (len(table), set(table["status"])) == (3, {"finished"})


def test_jobs_that_die_each_in_a_way_of_its_own_leave_records_that_say_why(cluster, sweep, tmp_path):
    """Raising, exiting, running out of memory, diverging; one run beside them is fine."""
    points = [
        "{scale.depth: 2, scale.width: 16, seed: 1, base_lr: 0.004}",
        "{scale.depth: 2, scale.width: 16, seed: 2, base_lr: 0.004}",
        "{scale.depth: 24, scale.width: 1024, base_lr: 0.004}",
        "{scale.depth: 2, scale.width: 16, seed: 3, base_lr: 30}",
        "{scale.depth: 2, scale.width: 16, seed: 4, base_lr: 0.004}",
    ]
    words = [f"+sweep.blocks.a.points=[{','.join(points)}]", "optim=adamw", "parametrization=standard"]
    tiny = [word for word in TINY if not word.startswith(("scale.depth", "scale.width"))]
    words = [*tiny, *SLURM, *words, "optim.clip=0", SHORT, "launcher.memory=900M", f"runtime.root={tmp_path}"]
    raises, exits, large, diverges, fine = make_plan(words).points
    (raises.run_dir / "metrics.jsonl").mkdir(parents=True)
    # The largest run is the first task, then they go in the order of the plan: `exits` is the third.
    words += ["launcher.setup=['if [ \"$SLURM_ARRAY_TASK_ID\" = 2 ]; then exit 3; fi']"]
    assert sweep("submit", *words).returncode == 0
    assert settled(cluster, tmp_path) == {"finished": 1, "diverged": 1, "failed": 3}
    job = submissions.read_submissions(tmp_path)[0].job
    found = records(tmp_path)
    assert (found[fine.run_id].status, found[fine.run_id].cause) == ("finished", None)
    assert (found[diverges.run_id].status, found[diverges.run_id].cause) == ("diverged", None)
    causes = [found[one.run_id].cause for one in (raises, exits, large)]
    assert causes == ["raised", "exited", "out_of_memory"]
    text = sweep("status", tmp_path).stdout
    assert all(f"failed: {cause}" in text for cause in ("raised", "exited", "out of memory"))
    assert str(found[raises.run_id].reason).startswith("IsADirectoryError: ")
    assert found[exits.run_id].reason == f"exit code 3 (Slurm job {job}_2)"
    assert str(found[large.run_id].reason).startswith("out of memory")
    assert str(found[large.run_id].reason).endswith(f"(Slurm job {job}_0)")
    state = jobs_of(job)[f"{job}_1"]
    assert state == "FAILED"  # and not COMPLETED, since its run failed
    text = sweep("logs", tmp_path, raises.run_id).stdout
    assert "IsADirectoryError" in text
    assert "Traceback" in text


def test_cancelled_runs_are_planned_again_and_what_they_saved_is_used(cluster, sweep, tmp_path):
    grid = "+sweep.blocks.a.grid={seed:[0,1]}"
    endless = "scale.tokens=67108864"
    words = [*TINY, *SLURM, grid, endless, f"runtime.root={tmp_path}"]
    assert sweep("submit", *words).returncode == 0
    wait_for(lambda: len(list(tmp_path.glob("*/checkpoint.pt"))) == 2, "both runs to save", 180)
    assert report(tmp_path)["counts"] == {"running": 2}
    here = sweep("run", *TINY, grid, endless, f"runtime.root={tmp_path}")
    assert (here.returncode, here.stdout) == (2, "")
    assert "2 of the runs are queued or running in Slurm" in here.stderr
    first, _ = (run["run_id"] for run in report(tmp_path)["runs"])
    assert sweep("cancel", tmp_path, first).stdout == f"cancelled 1 job; {tmp_path}\n"
    wait_for(lambda: report(tmp_path)["counts"] == {"planned": 1, "running": 1}, "one to end", 120)
    (told,) = [run for run in report(tmp_path)["runs"] if run["run_id"] == first]
    assert told["reason"].startswith("cancelled at step ")
    again = sweep("submit", *words)
    assert again.stdout.startswith("submitted 1 of 2 runs as 1 jobs, ")
    wait_for(lambda: report(tmp_path)["counts"] == {"running": 2}, "both to run", 120)
    assert sweep("cancel", tmp_path).stdout == f"cancelled 2 jobs; {tmp_path}\n"
    wrong = sweep("cancel", tmp_path, "abc")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "RUN_IDS must be runs that were submitted" in wrong.stderr


def test_damaged_files_are_named_and_their_runs_done_again(cluster, sweep, tmp_path):
    words = [*TINY, SHORT, *SLURM, "+sweep.blocks.a.grid={seed:[0,1,2]}", f"runtime.root={tmp_path}"]
    assert sweep("submit", *words).returncode == 0
    settled(cluster, tmp_path)
    expected = {run_id: facts(one) for run_id, one in records(tmp_path).items()}
    truncated, half, _ = make_plan(words).points
    path = truncated.run_dir / "record.json"
    path.write_text(path.read_text()[:200])
    log = half.run_dir / "metrics.jsonl"
    log.write_text(log.read_text()[:-9])
    (half.run_dir / "record.json").unlink()
    told = {run["run_id"]: run for run in report(tmp_path, "--all")["runs"]}
    assert told[truncated.run_id]["status"] == "failed"
    assert "not a record" in told[truncated.run_id]["reason"]
    assert told[half.run_id]["status"] == "failed"
    again = sweep("submit", *words)
    assert again.stdout.startswith("submitted 2 of 3 runs as 2 jobs, ")
    assert f"{path}: not a record" in again.stderr
    settled(cluster, tmp_path)
    assert {run_id: facts(one) for run_id, one in records(tmp_path).items()} == expected
    assert (truncated.run_dir / "record.damaged").exists()
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_a_full_disk_is_named_and_the_run_done_again(cluster, sweep, tmp_path):
    words = [*TINY, SHORT, *SLURM, "+sweep.blocks.a.grid={seed:[0,1]}", f"runtime.root={tmp_path}"]
    full, other = make_plan(words).points
    full.run_dir.mkdir()
    if not succeeds("mount", "-t", "tmpfs", "-o", "size=16k", "none", str(full.run_dir)):
        pytest.skip("this machine mounts nothing")
    try:
        (full.run_dir / "filling").write_bytes(bytes(12 * 1024))
        assert sweep("submit", *words).returncode == 0
        settled(cluster, tmp_path)
        told = {run["run_id"]: run for run in report(tmp_path, "--all")["runs"]}
        assert told[other.run_id]["status"] == "finished"
        assert told[full.run_id]["status"] == "failed"
        assert told[full.run_id]["reason"].startswith(("no record could be written", "OSError: [Errno 28]"))
        subprocess.run(["mount", "-o", "remount,size=16m", full.run_dir], check=True)
        assert sweep("submit", *words).stdout.startswith("submitted 1 of 2 runs as 1 jobs, ")
        assert settled(cluster, tmp_path) == {"finished": 2}
    finally:
        subprocess.run(["umount", "--lazy", full.run_dir], check=True)


def test_several_runs_in_one_job(cluster, sweep, tmp_path):
    grid = "+sweep.blocks.a.grid={seed:[0,1,2,3,4]}"
    losses = []
    for kind in ("false", "true"):
        root = tmp_path / kind
        packed = ["launcher.runs_per_task=3", "launcher.memory=2G"]
        packed += [f"launcher.side_by_side={kind}", f"runtime.root={root}"]
        done = sweep("submit", *TINY, SHORT, *SLURM, grid, *packed)
        assert done.stdout.startswith("submitted 5 of 5 runs as 2 jobs, "), done.stderr
        assert settled(cluster, root) == {"finished": 5}
        assert [len(task) for task in submissions.read_submissions(root)[0].tasks] == [3, 2]
        losses.append({run_id: one.loss for run_id, one in records(root).items()})
    assert losses[0] == losses[1]


def test_arrays_stay_below_the_limit_of_the_cluster_and_two_thousand_runs_are_quick(cluster, sweep, tmp_path):
    grid = "+sweep.blocks.a.grid={seed:" + str(list(range(2000))).replace(" ", "") + "}"
    words = [*TINY, SHORT, *SLURM, grid, f"runtime.root={tmp_path}"]
    planned, seconds = cpu_seconds("plan", *words)
    assert planned.returncode == 0, planned.stderr
    assert seconds < 5
    # Held, so that none of them starts: this is about handing over.
    done = sweep("submit", *words, "+launcher.parameters.hold=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("submitted 2000 of 2000 runs as 2000 jobs, ")
    assert [len(one.tasks) for one in submissions.read_submissions(tmp_path)] == [1000, 1000]
    status, seconds = cpu_seconds("status", tmp_path)
    assert status.stdout.endswith("\n2000 runs: 2000 queued\n")
    assert seconds < 2
    start = time.monotonic()
    assert sweep("cancel", tmp_path).stdout == f"cancelled 2000 jobs; {tmp_path}\n"
    assert time.monotonic() - start < 60


def cpu_seconds(*words):
    """A command's result and the CPU time that it took, which a busy machine does not change much."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [HYPERP_SWEEP, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_hydras_own_multirun_through_its_slurm_launcher_makes_the_same_records(cluster, sweep, tmp_path):
    ours, hydras = tmp_path / "ours", tmp_path / "hydras"
    grid = "+sweep.blocks.a.grid={seed:[0,1]}"
    assert sweep("submit", *TINY, SHORT, *SLURM, grid, f"runtime.root={ours}").returncode == 0
    command = [HYPERP_SWEEP.with_name("hyperp-train"), "-m", *TINY, SHORT, grid, f"runtime.root={hydras}"]
    command += ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "runtime.threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settled(cluster, ours)
    assert {i: facts(one) for i, one in records(hydras).items()} == {
        i: facts(one) for i, one in records(ours).items()
    }
    assert all("slurm_job_id" in one.environment for one in records(hydras).values())


def test_without_slurm_the_runs_speak_for_themselves(cluster, sweep, tmp_path, monkeypatch):
    words = [*TINY, SHORT, *SLURM, "+sweep.blocks.a.grid={seed:[0,1]}", f"runtime.root={tmp_path}"]
    assert sweep("submit", *words).returncode == 0
    settled(cluster, tmp_path)
    monkeypatch.setenv("PATH", str(HYPERP_SWEEP.parent))
    status = sweep("status", tmp_path)
    assert status.stdout.endswith("2 runs: 2 finished\n")
    assert "this is what the runs wrote" in status.stderr
    refused = sweep("submit", *words)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "hyperp-sweep: error: squeue is not on this machine\n"
    assert record.load(make_plan(words).points[0].run_dir) is not None


@pytest.mark.slow
def test_auto_waits_for_the_jobs_that_it_sent(cluster, sweep, tmp_path):
    grid = "+sweep.blocks.a={grid:{scale.tokens:[2048,4096,8192]},lr:{center:-5,octaves:1}}"
    words = [*TINY, *SLURM, "parametrization=raw", grid, f"runtime.root={tmp_path}"]
    done = sweep("auto", *words, "--until", "interval=1%", "--rounds", "1")
    assert done.returncode == 1, done.stderr
    assert "1 rounds are over" in done.stderr
    assert "9 runs, " in done.stdout
    assert report(tmp_path)["counts"] == {"finished": 9}
