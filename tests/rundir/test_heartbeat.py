"""The heartbeat claims a run: of two processes that do the same run, one goes on and one stops."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.files import HeldError
from hyperp.rundir import heartbeat, record
from hyperp.rundir.heartbeat import Heartbeat, HeartbeatWriter, wait_for_silence
from hyperp.training.train import train

torch.set_num_threads(1)
NEWS = {"step": 3, "steps": 9, "tokens_per_second": 1.0}


def sign_of(host, **values):
    return json.dumps({"host": host, "process": 1, "job": None, "time": time.time()} | NEWS | values)


def test_a_sign_that_changes_holds_the_run_and_one_that_does_not_gives_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 1.5)
    path = tmp_path / heartbeat.FILE
    path.write_text(sign_of("elsewhere"))
    start = time.monotonic()
    wait_for_silence(tmp_path, "run a")
    assert time.monotonic() - start >= 1.5
    later = threading.Timer(0.2, path.write_text, [sign_of("elsewhere", step=4)])
    later.start()
    with pytest.raises(HeldError, match=r"run a .*process 1 on elsewhere"):
        wait_for_silence(tmp_path, "run a")
    later.join()


@pytest.mark.parametrize("text", [None, "{", "[]", sign_of("elsewhere", time=0.0)])
def test_without_a_recent_sign_nobody_waits(tmp_path, text):
    if text is not None:
        (tmp_path / heartbeat.FILE).write_text(text)
    start = time.monotonic()
    wait_for_silence(tmp_path, "run a")
    assert time.monotonic() - start < 0.5


def test_on_the_same_machine_the_lock_has_decided(tmp_path):
    with HeartbeatWriter(tmp_path, lambda: NEWS):
        start = time.monotonic()
        wait_for_silence(tmp_path, "run a")
        assert time.monotonic() - start < 0.5
    assert not (tmp_path / heartbeat.FILE).exists()


def test_who_was_taken_for_dead_stops_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    tiny = [
        "scale.width=16",
        "scale.depth=1",
        "model.context=32",
        "scale.batch_tokens=256",
        "runtime.threads=1",
    ]
    config = resolve(compose([*tiny, "data.held_out_tokens=2048", f"runtime.root={tmp_path}"]))
    run_dir = tmp_path / config.run_id()
    theirs = sign_of("elsewhere")

    def take_over(step, *_):
        if step >= 20:  # more than once: the first may come just before this process's own beat
            (run_dir / heartbeat.FILE).write_text(theirs)
            time.sleep(0.5)

    with pytest.raises(HeldError, match="taken over"):
        train(config, run_dir, take_over)
    assert record.load(run_dir) is None
    assert (run_dir / heartbeat.FILE).read_text() == theirs


def test_a_dead_process_that_nobody_has_reaped_is_not_alive():
    with subprocess.Popen(["sleep", "60"]) as process:
        beat = Heartbeat(
            step=1,
            steps=2,
            tokens_per_second=1.0,
            time=time.time() - 2 * heartbeat.DOUBTFUL_SECONDS,
            host=socket.gethostname(),
            process=process.pid,
        )
        assert beat.is_fresh()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still there
        assert not beat.is_fresh()
    assert not beat.is_fresh()
