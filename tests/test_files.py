"""Files that are whole or absent, locks that die with their process, signs of life, logs cut at a step."""

import json
import subprocess
import sys
import time

import pytest

from hyperp.files import HeldError, lock, remove_leftovers, replacing, write_json
from hyperp.rundir import heartbeat
from hyperp.rundir.heartbeat import HeartbeatWriter
from hyperp.rundir.metrics import MetricsLog


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".checkpoint.pt.123.tmp").write_text("half")
    (tmp_path / "checkpoint.pt").write_text("whole")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_lock_goes_with_the_process_that_held_it(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import sys, time, pathlib; from hyperp.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(HeldError, match=rf"run abc is held by process {holder.pid} on "),
        lock(path, "run abc"),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock(path, "run abc"):
        pass


def test_the_heartbeat_shows_the_latest_step_and_goes_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    step, path = 1, tmp_path / heartbeat.FILE
    with HeartbeatWriter(tmp_path, lambda: {"step": step, "steps": 9, "tokens_per_second": 1.0}):
        assert json.loads(path.read_text())["step"] == 1
        step = 2
        deadline = time.monotonic() + 30
        while json.loads(path.read_text())["step"] != 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert time.time() - json.loads(path.read_text())["time"] < 30
    assert not list(tmp_path.iterdir())


def test_a_log_opened_at_a_step_drops_later_lines_and_half_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "loss": 2.0}\n{"step": 8, "loss": 1.0}\n{"step": 12, "lo')
    log = MetricsLog(path, 4)
    log.write(8, loss=float("nan"))
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 4, "loss": 2.0}, {"step": 8, "loss": "nan"}]
