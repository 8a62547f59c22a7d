"""W&B: the same numbers as metrics.jsonl, in an offline run; a clear word without the library."""

import json

import pytest
import torch

from hyperp import tracking
from hyperp.config import compose, resolve
from hyperp.train import train

torch.set_num_threads(1)
WORDS = (
    "scale.width=16",
    "scale.depth=1",
    "scale.tokens=2048",
    "model.context=32",
    "scale.batch_tokens=256",
    "data.held_out_tokens=1024",
    "runtime.log_every=4",
    "runtime.checkpoint_every=0",
    "runtime.monitor_every=0",
    "runtime.wandb=demo",
)


def test_an_offline_run_holds_the_metrics_and_the_ending(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = resolve(compose([*WORDS, f"runtime.root={tmp_path}"]))
    run_dir = tmp_path / config.run_id()
    record = train(config, run_dir)
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    assert config.run_id() in path.name
    raw = path.read_bytes()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert repr(row["loss"]).encode() in raw
    assert repr(record.loss).encode() in raw


def test_without_the_library_the_field_is_named(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"runtime.wandb=demo needs the wandb library"):
        tracking.check(resolve(compose(WORDS)))
    tracking.check(resolve(compose()))


def test_an_error_of_the_service_loses_no_run(tmp_path, monkeypatch, caplog):
    class Failing:
        def log(self, values, step):
            raise ConnectionError("service unavailable")

    config = resolve(compose([*WORDS[:-1], f"runtime.root={tmp_path}"]))
    tracker = tracking.Tracker(config, tmp_path)
    tracker.run = Failing()
    monkeypatch.setattr("hyperp.train.Tracker", lambda *_: tracker)
    assert train(config, tmp_path / config.run_id()).status == "finished"
    assert "tracking has stopped (ConnectionError: service unavailable)" in caplog.text
