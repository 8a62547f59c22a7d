"""Runs of a foreign trainer on this machine: records, causes, resuming, and processes left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from hyperp.rundir import record
from hyperp.rundir.claim import Stopped
from hyperp.sweeps import collect, make_plan, run, status
from hyperp.sweeps.plan.plan import Plan
from hyperp.sweeps.plan.run_config import values_of
from hyperp.sweeps.runs.run import execute_run
from tests.sweeps.trainers.foreign import section, write_experiment

HYPERP_SWEEP = str(Path(sys.executable).with_name("hyperp-sweep"))


def record_of(plan: Plan, index: int = 0) -> record.Record:
    found = record.load(plan.points[index].run_dir)
    assert found is not None
    return found


def test_every_fault_has_a_record_that_says_what_happened(tmp_path):
    faults = ["", "raise", "exit", "nan", "silent", "orphan"]
    plan = make_plan(
        [*write_experiment(tmp_path, {"a": {"grid": {"values.fault": faults}}}), "launcher.workers=2"]
    )
    runs = run(plan)
    assert [one.status for one in runs] == ["finished", "failed", "failed", "diverged", "failed", "finished"]
    fine, raised, exited, nan, silent, orphan = (record_of(plan, i) for i in range(6))
    assert [one.cause for one in (fine, raised, exited, nan, silent)] == [
        None, "exited", "exited", None, "no_result",
    ]  # fmt: skip
    assert raised.reason == "exit code 1: RuntimeError: the data are gone"
    assert str(exited.reason).startswith("exit code 7: from step 0")
    assert nan.reason == "loss nan"
    missing = "it ended with exit code 0, but result.loss: no file"
    assert str(silent.reason).startswith(missing)
    assert "output.log" in str(silent.reason)  # what was there instead
    assert (fine.steps, fine.loss, fine.trainer) == (20, orphan.loss, "command")
    assert fine.scale == {"width": 8, "tokens": 1280, "batch_tokens": 64}
    assert not [line for line in ps_lines() if "sleep 600" in line]
    before = {path: path.stat().st_mtime_ns for path in plan.root.glob("*/record.json")}
    run(plan)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] == after[path]] == [
        path
        for path in before
        if record.load(path.parent).status != "failed"  # pyright: ignore[reportOptionalMemberAccess]
    ]

    table = pd.read_parquet(collect(plan.root).table)
    assert sorted(table["fault"]) == sorted(faults)
    assert set(table["trainer"]) == {"command"}
    assert "depth" not in table
    assert table["width"].tolist() == [8] * 6
    assert table["metric"].unique().tolist() == ["mse"]
    assert table["setting"].nunique() == 1


def ps_lines() -> list[str]:
    return subprocess.run(
        ["ps", "axo", "args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_killed_sweep_leaves_no_trainer_behind_and_goes_on_from_the_checkpoint(tmp_path):
    values = section()["values"] | {"tokens": 64 * 400, "pause": 0.02}
    words = write_experiment(tmp_path, values=values)
    plan = make_plan(words)
    run_dir = plan.points[0].run_dir
    with subprocess.Popen([HYPERP_SWEEP, "run", *words], stderr=subprocess.DEVNULL) as sweep:
        wait_for((run_dir / "checkpoint.pth").exists)
        (running,) = status(plan.root)
        assert (running.status, running.steps) == ("running", 400)
        assert running.step
        sweep.kill()
    wait_for(lambda: not [line for line in ps_lines() if str(run_dir) in line])
    wait_for(lambda: status(plan.root)[0].status == "planned")
    assert [one.status for one in run(make_plan([*words, "trainer.values.pause=0.02"]))] == ["finished"]
    ended = record_of(plan)
    assert ended.resumed == 1
    assert ended.environment["attempts"] == "2"
    started = [
        line for line in (run_dir / "output.log").read_text().splitlines() if line.startswith("from step")
    ]
    assert started[0].startswith("from step 0 ")
    assert not started[1].startswith("from step 0 ")


def test_arguments_for_resuming_name_the_newest_checkpoint_and_its_folder(tmp_path):
    program = "import sys; print('went on from', *sys.argv[3:]); print('loss 2.5')"
    words = write_experiment(
        tmp_path,
        command=[sys.executable, "-c", program, "{lr}", "{seed}"],
        values={"lr": 0.1, "seed": 0},
        derive={},
        result={"loss": {"output": r"loss (?P<value>\S+)"}},
        resume={
            "when": "{run_dir}/step-*/state",
            "arguments": ["{checkpoint}", "--folder={checkpoint_folder}"],
        },
    )
    plan = make_plan(words)
    run_dir = plan.points[0].run_dir.resolve()
    for seconds, step in ((1000, 20), (3000, 100), (2000, 30)):
        state = run_dir / f"step-{step}" / "state"
        state.parent.mkdir(parents=True)
        state.touch()
        os.utime(state, (seconds, seconds))
    (run_dir / "step-200").mkdir()  # a checkpoint that was cut off has no state
    assert [one.status for one in run(plan)] == ["finished"]
    folder = run_dir / "step-100"
    assert f"went on from {folder / 'state'} --folder={folder}\n" in (run_dir / "output.log").read_text()
    assert record_of(plan).resumed == 1


def test_a_run_that_was_killed_is_tried_again_as_often_as_retries_say(tmp_path):
    program = (
        "import os, pathlib, signal, sys; out = pathlib.Path(sys.argv[1]); n = len(list(out.glob('try*')));"
        "(out / f'try{{n}}').touch(); n < int(sys.argv[2]) and os.kill(os.getpid(), signal.SIGKILL);"
        "print('loss', 2.5)"
    )
    changes = {
        "command": [sys.executable, "-c", program, "{run_dir}", "{deaths}", "{lr}{seed}"],
        "values": {"lr": 0.1, "seed": 0, "deaths": 1},
        "derive": {},
        "resume": None,
        "result": {"loss": {"output": r"loss (?P<value>\S+)"}},
        "retries": 1,
    }
    plan = make_plan(write_experiment(tmp_path, {"a": {"grid": {"values.deaths": [1, 2]}}}, **changes))
    run(plan)
    once, twice = record_of(plan, 0), record_of(plan, 1)
    assert (once.status, once.loss, once.environment["attempts"]) == ("finished", 2.5, "2")
    assert (twice.status, twice.cause, twice.environment["attempts"]) == ("failed", "killed", "2")
    assert twice.reason == "killed by signal 9"


def quick(tmp_path, program: str, **changes):
    """The only point of an experiment whose command is this Python program."""
    script = tmp_path / "program.py"
    script.write_text(program)
    fields = {
        "command": [sys.executable, str(script), "{run_dir}", "{lr}"],
        "values": {"lr": 0.1},
        "derive": {},
        "resume": None,
        "progress": None,
        "result": {"loss": {"output": r"loss (?P<value>\S+)"}},
    }
    (point,) = make_plan(write_experiment(tmp_path, **(fields | changes))).points
    return point


def execute(point, **options) -> dict:
    """Do a run in this process, with what it prints in the run's log, as a worker does."""
    point.run_dir.mkdir(parents=True, exist_ok=True)
    log = os.open(point.run_dir / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        return execute_run(values_of(point.config), str(point.run_dir), **options)
    finally:
        for number, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        os.close(log)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            "print('loss 11.9'); raise ValueError('no data')",
            ("failed", "exited", "exit code 1: ValueError: no data"),
        ),
        (
            "import os; print('loss 11.9', flush=True); os.kill(os.getpid(), 9)",
            ("failed", "killed", "killed by signal 9: loss 11.9"),
        ),
        ("print('loss 11.9')", ("diverged", None, "loss 11.9, above 11")),
        ("print('loss nan'); raise SystemExit(3)", ("diverged", None, "loss nan")),
        ("print('loss 1'); raise MemoryError", ("failed", "out_of_memory", "exit code 1: MemoryError")),
        (
            "import os; print('loss nan', flush=True); os.kill(os.getpid(), 9)",
            ("failed", "killed", "killed by signal 9: loss nan"),
        ),
        ("print('loss 11')", ("finished", None, None)),  # at the limit is not above it
    ],
)
def test_a_crash_is_no_divergence(tmp_path, program, expected):
    point = quick(tmp_path, program, diverged={"when": "loss is not finite, or above 11"})
    ended = execute(point)
    assert (ended["status"], ended["cause"], ended["reason"]) == expected


@pytest.mark.parametrize(
    "result", [{"output": r"loss (?P<value>\S+)"}, {"file": "{run_dir}/a.jsonl", "key": "loss"}]
)
def test_the_result_of_an_earlier_attempt_is_not_taken(tmp_path, result):
    program = """
import pathlib, sys
out = pathlib.Path(sys.argv[1])
if not (out / "first").exists():
    (out / "first").touch()
    print("loss 7.5")
    (out / "a.jsonl").write_text('{"loss": 7.5}')
    sys.exit(3)
"""
    point = quick(tmp_path, program, result={"loss": result})
    assert execute(point)["status"] == "failed"
    ended = execute(point)
    assert (ended["status"], ended["cause"]) == ("failed", "no_result")


def test_a_run_is_not_done_with_other_code_than_was_planned(tmp_path):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    point = quick(tmp_path, "print('loss 1')", cwd=str(tmp_path))
    git("commit", "--allow-empty", "-m", "second")
    ended = execute(point)
    assert ended["status"] == "failed"
    assert "must be at commit" in ended["reason"]


def test_a_command_behind_a_shell_has_its_grace_to_save(tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1.5); pathlib.Path(sys.argv[1], 'saved').write_text('whole'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); print('step 1', flush=True); time.sleep(600)\n"
    )
    shell = tmp_path / "run.sh"
    shell.write_text(f"{sys.executable} {slow} $1\necho after\n")
    point = quick(
        tmp_path,
        "",
        command=["bash", str(shell), "{run_dir}", "{lr}"],
        stop={"signal": "SIGTERM", "grace": 20},
    )
    log = point.run_dir / "output.log"
    with pytest.raises(Stopped) as stopped:
        execute(point, stop=lambda: log.exists() and "step 1" in log.read_text())
    assert (point.run_dir / "saved").read_text() == "whole"
    assert stopped.value.saved == 0  # no checkpoint is known, so that it cannot stop for ever


SAVING = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "ckpt").write_text("whole")
    print("loss 1", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("step 7/9", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("resume", [None, {"when": "{run_dir}/ckpt", "arguments": []}])
def test_what_a_stopped_command_saved_is_known_by_its_checkpoint_and_not_by_its_step(tmp_path, resume):
    point = quick(tmp_path, SAVING, resume=resume, progress={"pattern": r"step (?P<step>\d+)"})
    log = point.run_dir / "output.log"
    with pytest.raises(Stopped) as stopped:
        execute(point, stop=lambda: log.exists() and "step 7" in log.read_text())
    saved = (point.run_dir / "ckpt").stat().st_mtime_ns if resume else 0
    assert (stopped.value.step, stopped.value.saved) == (7, saved)


def test_a_command_that_somebody_else_ended_has_no_result(tmp_path):
    """It saves and exits with 0, as after a cancelled job, and must not pass for finished."""
    point = quick(tmp_path, SAVING.replace('print("step 7/9"', 'import os; print("guard", os.getppid()'))
    log = point.run_dir / "output.log"

    def end_guard() -> bool:
        words = log.read_text().split() if log.exists() else []
        if len(words) == 2:
            os.kill(int(words[1]), signal.SIGTERM)
        return False

    ended = execute(point, stop=end_guard)
    assert (ended["status"], ended["cause"]) == ("failed", "cancelled")


def test_workers_forget_the_rank_of_the_shell_that_started_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    point = quick(tmp_path, "print('loss 1')")
    assert [one.status for one in run(make_plan(list(point.overrides)))] == ["finished"]
    assert (point.run_dir / "record.json").exists()


def test_a_command_dies_with_its_guard(tmp_path):
    program = "import os, sys, time; print('pid', os.getpid(), os.getppid(), flush=True); time.sleep(600)"
    point = quick(tmp_path, program)
    log = point.run_dir / "output.log"

    def kill_guard() -> bool:
        words = log.read_text().split() if log.exists() else []
        if len(words) >= 3:
            os.kill(int(words[2]), signal.SIGKILL)
        return False

    ended = execute(point, stop=kill_guard)
    assert (ended["status"], ended["cause"]) == ("failed", "killed")
    child = int(log.read_text().split()[1])
    wait_for(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()
    )


def test_a_process_that_is_not_the_first_writes_no_record(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    point = quick(tmp_path, "print('loss 1')")
    assert execute(point)["status"] == "finished"
    assert not (point.run_dir / "record.json").exists()


def test_values_of_several_types_and_further_results_are_columns(tmp_path):
    program = "print('loss 1.5 gap 0.25')"
    changes = {
        "command": [sys.executable, "-c", program, "{lr}{window}"],
        "values": {"lr": 0.1, "window": 128},
        "derive": {},
        "resume": None,
        "result": {
            "loss": {"output": r"loss (?P<value>\S+)"},
            "gap": {"output": r"gap (?P<value>\S+)"},
        },
    }
    plan = make_plan(write_experiment(tmp_path, {"a": {"grid": {"values.window": [128, "full"]}}}, **changes))
    run(plan)
    table = pd.read_parquet(collect(plan.root).table)
    assert sorted(table["window"]) == ["128", "full"]
    assert table["gap"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(("above", "expected"), [("9", "finished"), ("2", "diverged")])
def test_a_loss_above_the_limit_has_diverged(tmp_path, above, expected):
    changes = {
        "command": [sys.executable, "-c", "print('loss', 2.5)", "{lr}"],
        "values": {"lr": 0.1},
        "derive": {},
        "resume": None,
        "result": {"loss": {"output": r"loss (?P<value>\S+)"}},
        "diverged": {"when": f"loss is not finite, or above {above}"},
    }
    (point,) = make_plan(write_experiment(tmp_path, **changes)).points
    ended = execute(point)
    assert ended["status"] == expected
    assert ended["reason"] == (None if expected == "finished" else "loss 2.5, above 2")


def test_a_program_or_folder_that_is_not_there_is_told_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.cwd must be a folder"):
        run(make_plan(write_experiment(tmp_path, cwd=str(tmp_path / "nowhere"))))
    command = ["no-such-program", "{lr}{seed}{width}{steps}{pause}{fault}"]
    with pytest.raises(ValueError, match=r"trainer\.command must begin"):
        run(make_plan(write_experiment(tmp_path, command=command)))
    assert not (tmp_path / "runs").exists()


def test_a_trainer_that_ignores_its_signal_is_ended_after_the_grace(tmp_path):
    values = section()["values"] | {"tokens": 64 * 4000, "pause": 0.02, "fault": "deaf"}
    (point,) = make_plan(
        write_experiment(tmp_path, values=values, stop={"signal": "SIGTERM", "grace": 1.0})
    ).points
    point.run_dir.mkdir(parents=True)
    asked = []

    def stop() -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] > 6

    ended = execute_run(values_of(point.config), str(point.run_dir), stop=stop)
    assert (ended["status"], ended["cause"]) == ("failed", "timed_out")
    assert ended["reason"] == "ignored SIGTERM for 1 s and was killed"
    assert not [line for line in ps_lines() if str(point.run_dir) in line]


def test_a_second_process_cannot_take_a_run_whose_command_still_lives(tmp_path):
    from hyperp.files import HeldError

    values = section()["values"] | {"tokens": 64 * 4000, "pause": 0.02}
    words = write_experiment(tmp_path, values=values)
    (point,) = make_plan(words).points
    with subprocess.Popen([HYPERP_SWEEP, "run", *words], stderr=subprocess.DEVNULL) as sweep:
        wait_for((point.run_dir / "checkpoint.pth").exists)
        with pytest.raises(HeldError, match=point.run_id):
            execute_run(values_of(point.config), str(point.run_dir))
        sweep.send_signal(signal.SIGINT)
    wait_for(lambda: not [line for line in ps_lines() if str(point.run_dir) in line])
