"""`hyperp-train -m` makes the runs that `hyperp-sweep run` makes."""

import json
import os

import pytest
from hydra.plugins.launcher import Launcher
from submitit.core.utils import UncompletedJobError

from hyperp.config import compose
from hyperp.rundir import record
from hyperp.sweeps.multirun import PlanSweeper
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.training.train import base_record
from tests.forked import run_command

TINY = [
    "hydra/sweeper=plan",
    "scale.width=16",
    "scale.depth=1",
    "scale.tokens=1024",
    "scale.batch_tokens=256",
    "model.context=64",
    "model.head_size=8",
    "data.held_out_tokens=1024",
    "runtime.threads=1",
    "runtime.log_every=1",
    "runtime.checkpoint_every=0",
]
GRID = "+sweep.blocks.a={grid:{seed:[0,1]},lr:{center:-4,octaves:1}}"


def losses(root):
    records = [json.loads(path.read_text()) for path in root.glob("*/record.json")]
    return {record["run_id"]: record["loss"] for record in records}


def plan_without_times(root):
    plan = json.loads((root / "plan.json").read_text())
    for point in plan["points"]:
        del point["planned"]
        assert point["config"]["runtime"].pop("root") == str(root)
    return json.loads(json.dumps(plan).replace(str(root), "ROOT"))


def test_the_same_runs_with_the_same_ids_losses_and_plan(tmp_path):
    ours, hydras = tmp_path / "ours", tmp_path / "hydras"
    done = run_command("hyperp-sweep", "run", *TINY[1:], GRID, f"runtime.root={ours}")
    assert done.returncode == 0, done.stderr
    done = run_command("hyperp-train", "-m", *TINY, GRID, f"runtime.root={hydras}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(losses(ours)) == 6
    assert losses(hydras) == losses(ours)
    assert plan_without_times(hydras) == plan_without_times(ours)
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "hydras"}

    before = {path: path.stat().st_mtime_ns for path in hydras.rglob("*.json")}
    again = run_command("hyperp-train", "-m", *TINY, GRID, f"runtime.root={hydras}")
    assert again.returncode == 0
    assert f"nothing to do: 6 of 6 runs are done; {hydras}" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in hydras.rglob("*.json")} == before


def test_only_what_is_missing_is_run_and_comma_choices_multiply(tmp_path):
    words = [*TINY, f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={seed:[0,1]}", "base_lr=0.0155,0.03"]
    points = make_plan(words).points
    assert [(p.own.base_lr, p.own.seed) for p in points] == [
        (0.0155, 0),
        (0.0155, 1),
        (0.03, 0),
        (0.03, 1),
    ]
    record.save(base_record(points[0].own, status="finished", loss=1.0), points[0].run_dir)
    record.save(base_record(points[1].own, status="diverged", reason="why"), points[1].run_dir)
    record.save(base_record(points[2].own, status="failed", reason="why"), points[2].run_dir)
    done = run_command("hyperp-train", "-m", *words)
    assert done.returncode == 0, done.stderr
    found = losses(tmp_path)
    assert set(found) == {point.run_id for point in points}
    assert (found[points[0].run_id], found[points[1].run_id]) == (1.0, None)
    assert all(1.0 < found[point.run_id] < 8.0 for point in points[2:])


def test_failed_runs_are_named_and_fail_the_command(tmp_path):
    words = [*TINY, f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={seed:[0,1,2]}"]
    file, log, good = make_plan(words).points
    file.run_dir.write_text("a file where the run's folder should be")
    log.run_dir.joinpath("metrics.jsonl").mkdir(parents=True)
    done = run_command("hyperp-train", "-m", *words)
    assert done.returncode == 1
    assert done.stdout.endswith(f"3 runs: 1 finished, 2 failed; {tmp_path}\n")
    assert len(done.stderr.splitlines()) == 2
    for line, point in zip(done.stderr.splitlines(), (file, log), strict=True):
        assert line.startswith(f"failed {point.run_id}: ")
        assert line.endswith(f" (see {point.run_dir})")
    assert "IsADirectoryError" in done.stderr
    assert record.load(good.run_dir) is not None


def test_another_runs_record_is_set_aside_and_the_run_done(tmp_path):
    words = [*TINY, f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={seed:[0]}"]
    point, other = make_plan(words).points[0], make_plan([*TINY, "seed=7"]).points[0]
    record.save(base_record(other.own, status="finished", loss=1.0), point.run_dir)
    done = run_command("hyperp-train", "-m", *words)
    assert done.returncode == 0, done.stderr
    assert f"run_id must be {point.run_id}, got '{other.run_id}'; set aside as record.damaged" in done.stderr
    assert losses(tmp_path).keys() == {point.run_id}
    assert (point.run_dir / "record.damaged").exists()


class Broken(Launcher):
    """A launcher whose first job died, with submitit's error."""

    def setup(self, **_):
        """Nothing to set up."""

    def launch(self, job_overrides, initial_job_idx):
        """Raise as submitit does."""
        raise UncompletedJobError("Job 1 (task: 0) was killed\nwith a trace")


def test_a_launcher_that_gives_up_fails_the_command_in_one_line(tmp_path, capsys, monkeypatch):
    sweeper = PlanSweeper()
    sweeper.launcher = Broken()
    words = [*TINY[1:], f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={seed:[0,1]}"]
    monkeypatch.setattr(sweeper, "_compose", compose)
    with pytest.raises(SystemExit, match="1"):
        sweeper.sweep(words)
    printed = capsys.readouterr()
    first, second = make_plan(words).points
    assert printed.out == f"2 runs: 2 planned; {tmp_path}\n"
    assert printed.err.splitlines() == [
        "hyperp-train: error: the launcher gave up: UncompletedJobError: Job 1 (task: 0) was killed",
        f"planned {first.run_id}: (see {first.run_dir})",
        f"planned {second.run_id}: (see {second.run_dir})",
    ]


def test_a_held_root_is_refused_by_its_lock_and_nothing_written(tmp_path):
    done_root, new_root = tmp_path / "done", tmp_path / "new"
    words = [*TINY, "+sweep.blocks.a.grid={seed:[0]}"]
    point = make_plan([*words, f"runtime.root={done_root}"]).points[0]
    record.save(base_record(point.own, status="finished", loss=1.0), point.run_dir)
    for root in (done_root, new_root):  # without runs to do, and with
        with planfile.lock_sweep(root):
            done = run_command("hyperp-train", "-m", *words, f"runtime.root={root}")
        expected = f"hyperp-train: error: {root / '.lock'} is held by process {os.getpid()} on "
        expected += f"{os.uname().nodename}; wait for it or stop it\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
        assert not (root / "plan.json").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+sweep.blocks.a.grid={seed:[]}", "sweep.blocks.a: grid.seed must have at least one value, got []"),
        ("+sweep.blocks.a.overrides=['optim=sgd']", "sweep.blocks.a: .*optim/sgd.*"),
        ("sweep=nothing", ".*sweep/nothing.*"),
        ("data.held_out_tokens=1000000000", ".*1000000000"),
    ],
)
def test_a_bad_plan_is_one_line_and_nothing_written(tmp_path, word, message):
    words = [word_ for word_ in TINY if word_.partition("=")[0] != word.partition("=")[0]]
    done = run_command("hyperp-train", "-m", *words, word, f"runtime.root={tmp_path / 'root'}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("hyperp-train: error: ")
    assert not list(tmp_path.iterdir())
