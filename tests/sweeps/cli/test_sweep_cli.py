"""`hyperp-sweep` as a user meets it: real processes, exit codes, what is printed where."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from hyperp.rundir import record
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.training.train import base_record
from tests import forked
from tests.tiny import TINY

COMMAND = Path(sys.executable).with_name("hyperp-sweep")
SMALL = [
    *TINY,
    "runtime.log_every=4",
    "runtime.checkpoint_every=8",
    "launcher.workers=2",
]
ONE_WORKER = [*SMALL[:-1], "launcher.workers=1"]
GRID = "+sweep.blocks.grid={grid:{scale.tokens:[8192,16384],seed:[0,1]},lr:{center:-5,octaves:1}}"


def words(root):
    return [*SMALL, f"runtime.root={root}", GRID]


def sweep(*args):
    return forked.run_command("hyperp-sweep", *args)


def table(root):
    done = sweep("collect", root, "-o", root / "runs.parquet")
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(root / "runs.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of twelve runs that nobody disturbed, and what the command printed."""
    root = tmp_path_factory.mktemp("finished")
    return root, sweep("run", *words(root))


def test_run_does_every_run_and_says_so_without_escape_codes(finished):
    root, done = finished
    assert done.returncode == 0
    assert done.stdout == f"12 runs: 12 finished; {root}\n"
    assert re.fullmatch(r"(.*\n)*12 of 12 runs: 12 finished, 0 diverged, 0 failed; \d+ s\n", done.stderr)
    assert "\x1b" not in done.stderr + done.stdout
    ids = {point.run_id for point in make_plan(words(root)).points}
    assert {path.parent.name for path in root.glob("*/record.json")} == ids


def test_a_second_run_does_nothing(finished):
    root, _ = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.json")}
    again = sweep("run", *words(root))
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"nothing to do: 12 of 12 runs are done (12 finished); {root}\n"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.json")} == before


def test_plan_counts_runs_tokens_and_flops_and_writes_nothing(finished, tmp_path):
    root, _ = finished
    done = sweep("plan", *words(tmp_path / "none"), "--json")
    (block,) = json.loads(done.stdout)["blocks"]
    assert (block["block"], block["runs"], block["done"]) == ("grid", 12, 0)
    assert block["tokens"] == 6 * 8192 + 6 * 16384
    assert block["flops"] == pytest.approx(table(root)["flops"].sum(), rel=1e-12, abs=0)
    assert block["gpu_hours"] == pytest.approx(block["flops"] / (0.4 * 989e12) / 3600, rel=1e-12, abs=0)
    assert not (tmp_path / "none").exists()
    text = sweep("plan", *words(root), "+sweep.blocks.more.grid={scale.tokens:[32768]}").stdout
    assert "12 of 13 runs are done" in text
    records = table(root)
    rate = f"{records['flops'].sum() / records['seconds'].sum():.3g}"
    assert re.search(
        rf"takes about \d.*, one run at a time at {re.escape(rate)} FLOP/s, as measured in 12", text
    )


def test_status_counts_by_block_and_lists_what_is_of_note(finished, tmp_path):
    root, _ = finished
    assert sweep("status", root).stdout.endswith("\n12 runs: 12 finished\n")
    point = make_plan(words(root)).points[0]
    other = base_record(point.own, status="diverged", reason="training loss not finite by step 4", steps=4)
    copied = tmp_path / "copied"
    (copied / point.run_id).mkdir(parents=True)
    (copied / "plan.json").write_text((root / "plan.json").read_text())
    record.save(other, copied / point.run_id)
    report = json.loads(sweep("status", copied, "--json").stdout)
    assert report["counts"] == {"planned": 11, "diverged": 1}
    assert report["blocks"] == {"grid": {"planned": 11, "diverged": 1}}
    assert [(run["run_id"], run["reason"]) for run in report["runs"]] == [(point.run_id, other.reason)]
    assert len(json.loads(sweep("status", copied, "--json", "--all").stdout)["runs"]) == 12
    text = sweep("status", copied).stdout
    assert point.run_id in text
    assert "not finite" in text


def test_a_sweep_killed_in_the_middle_and_run_again_gives_the_same_table(finished, tmp_path):
    root, _ = finished
    with subprocess.Popen([COMMAND, "run", *words(tmp_path)], stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: len(list(tmp_path.glob("*/record.json"))) >= 2)
        wait_for(lambda: any(tmp_path.glob("*/checkpoint.pt")))
        first.kill()
    assert 2 <= len(list(tmp_path.glob("*/record.json"))) < 12
    again = sweep("run", *words(tmp_path))
    assert again.returncode == 0, again.stderr
    expected, got = table(root), table(tmp_path)
    speed = ["seconds", "tokens_per_second"]
    pd.testing.assert_frame_equal(got.drop(columns=speed), expected.drop(columns=speed), check_exact=True)
    assert len(set(expected["loss"])) == 12


def test_sigterm_stops_and_the_same_command_goes_on(tmp_path):
    long = [*SMALL, f"runtime.root={tmp_path}", "+sweep.blocks.a.grid={scale.tokens:[1048576,1049600]}"]
    with subprocess.Popen([COMMAND, "run", *long], stderr=subprocess.PIPE, text=True) as stopped:
        wait_for(lambda: len(list(tmp_path.glob("*/heartbeat.json"))) == 2)
        stopped.send_signal(signal.SIGTERM)
        _, printed = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert printed.endswith("stopped (2 planned); the same command goes on from here\n")
    assert not list(tmp_path.glob("*/record.json"))
    report = json.loads(sweep("status", tmp_path, "--json").stdout)
    assert report["counts"] == {"planned": 2}


def test_failed_runs_and_damaged_records_are_named_and_repaired_by_the_same_command(tmp_path):
    grid = [
        *SMALL,
        f"runtime.root={tmp_path}",
        "launcher.workers=1",
        "scale.tokens=1024",
        "+sweep.blocks.a.grid={seed:[0,1]}",
    ]
    blocked, other = make_plan(grid).points
    blocked.run_dir.joinpath("metrics.jsonl").mkdir(parents=True)  # the training cannot write its log
    first = sweep("run", *grid)
    assert first.returncode == 1
    assert "2 runs: 1 finished, 1 failed" in first.stdout
    assert f"failed {blocked.run_id}: IsADirectoryError" in first.stderr

    blocked.run_dir.joinpath("metrics.jsonl").rmdir()
    path = other.run_dir / "record.json"
    loss = json.loads(path.read_text())["loss"]
    path.write_text("{")
    second = sweep("run", *grid)
    assert second.returncode == 0
    assert f"{path}: not a record" in second.stderr
    assert "2 runs: 2 finished" in second.stdout
    assert json.loads(path.read_text())["loss"] == loss


def test_runs_without_a_place_for_a_record_fail_the_sweep_and_say_why(tmp_path):
    """What fails before the training leaves no record; the exit code and the reason must not need one."""
    grid = [
        *SMALL,
        f"runtime.root={tmp_path}",
        "launcher.workers=1",
        "scale.tokens=1024",
        "+sweep.blocks.a.grid={seed:[0,1,2]}",
    ]
    file, log, good = make_plan(grid).points
    file.run_dir.write_text("a file where the run's folder should be")
    log.run_dir.joinpath("output.log").mkdir(parents=True)
    done = sweep("run", *grid)
    assert done.returncode == 1
    assert done.stdout == f"3 runs: 1 finished, 2 failed; {tmp_path}\n"
    assert f"failed {file.run_id}: FileExistsError: " in done.stderr
    assert f"failed {log.run_id}: IsADirectoryError: " in done.stderr
    assert "Traceback" not in done.stderr
    assert record.load(log.run_dir) is None
    assert record.load(good.run_dir) is not None


def test_a_held_root_is_refused_by_its_lock_and_nothing_written(finished, tmp_path):
    root, _ = finished
    with planfile.lock_sweep(tmp_path), planfile.lock_sweep(root):
        before = (root / "plan.json").read_bytes()
        for held in (tmp_path, root):  # with runs to do, and without
            done = sweep("run", *words(held))
            expected = f"hyperp-sweep: error: {held / '.lock'} is held by process {os.getpid()} on "
            expected += f"{os.uname().nodename}; wait for it or stop it\n"
            assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert (root / "plan.json").read_bytes() == before


def test_logs_say_how_a_run_ended_and_take_the_beginning_of_its_id(finished, tmp_path):
    root, _ = finished
    ids = sorted(path.parent.name for path in root.glob("*/record.json"))
    done = sweep("logs", root, ids[0][:8])
    assert done.returncode == 0
    assert re.match(
        rf"{ids[0]}: finished after \d+ steps, held-out loss, nats per token: \d\.\d{{4}}\n", done.stdout
    )
    for wrong in ("", "zzz"):
        done = sweep("logs", root, wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert "RUN_ID must be a run of" in done.stderr
    assert "is no folder" in sweep("logs", tmp_path / "none", ids[0]).stderr


def test_version():
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"hyperp-sweep {version('hyperp-scaling')}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "--nonsense"], r"No such option: --nonsense.*"),
        (["nonsense"], r"No such command 'nonsense'.*"),
        (["collect"], r"Missing argument 'root'.*"),
        (["run", "sede=1"], r".*sede.*; did you mean seed\?"),
        (["run", "+experiment=nothing"], r".*experiment/nothing.*"),
        (["run", "scale.width=-3"], r"scale\.width must be .*, got -3"),
        (["run", "data.held_out_tokens=1000000000"], r".*1000000000; .*data.held_out_tokens=.*"),
        (
            ["run", "optim.name=foo"],
            r"optim.name must .*muonh, got foo.*",
        ),
        (
            ["run", "runtime.device=moon"],
            r"runtime\.device must .*, got 'moon'.*",
        ),
        (["run", "launcher.workers=-2"], r"launcher\.workers.*got -2"),
        (["plan", "launcher.workers=-2"], r"launcher\.workers.*got -2"),
        (["plan", "+launcher.colour=red"], r"launcher\.colour .*got 'red'"),
        (["plan", "launcher=slurm", "launcher.time=soon"], r"launcher\.time.*'soon'"),
        (["plan", "--gpu", "k80"], r"--gpu must .*h100.*, got 'k80'"),
        (
            ["run", "scale.depth=1000000", "scale.width=512"],
            r"scale must .*depth=1000000.*",
        ),
        (
            ["plan", "+sweep.blocks.a.grid={seed:[]}"],
            r"sweep\.blocks\.a: grid\.seed must .*, got \[\]",
        ),
        (["status", "nowhere"], r"ROOT must .*nowhere.*"),
        (["status", "."], r"ROOT must .*plan\.json.*, got \.,.*"),
        (["collect", "nowhere"], r"ROOT must .*nowhere.*"),
        (["collect", ".", "-o", "runs.txt"], r"-o must .*\.parquet, got runs\.txt"),
    ],
)
def test_bad_input_is_one_line_exit_two_and_nothing_written(args, message, tmp_path):
    done = forked.run_command("hyperp-sweep", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(f"hyperp-sweep: error: {message}\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_help_teaches_by_examples():
    text = sweep("--help").stdout
    listed = re.findall(r"^  (\w+)  +[A-Z]", text.partition("Commands:")[2], re.MULTILINE)
    assert listed == ["plan", "run", "submit", "status", "cancel", "logs", "collect", "auto"]
    for command in listed:
        assert f"hyperp-sweep {command}" in text
        assert f"Example: hyperp-sweep {command}" in sweep(command, "-h").stdout
    assert "..." not in text.partition("Commands:")[2]  # no summary is cut
    assert "--show-completion" not in text
    assert sweep("-h").stdout == text


def test_the_shell_completes_commands_and_options():
    for line, wanted in (("hyperp-sweep co", {"collect"}), ("hyperp-sweep collect --o", {"--output"})):
        given = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        environment = {**os.environ, "_HYPERP_SWEEP_COMPLETE": "complete_bash", **given}
        done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == wanted


def wait_for(condition, seconds=180):  # the machine may be busy
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_record_stands_for_the_configuration_that_it_is_the_record_of(finished):
    root, _ = finished
    for point in make_plan(words(root)).points:
        done = record.load(point.run_dir)
        assert done is not None
        assert done.config["runtime"].pop("threads") == 1
        expected = asdict(point.config)
        expected["runtime"].pop("threads")
        assert done.config == expected
