"""W&B: an offline run gets the numbers of metrics.jsonl; without the library there is a clear error."""

import json
import math

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.training import tracking
from hyperp.training.train import train

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
    "runtime.monitor_every=4",
    "model.head_size=8",
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
    looks = [row["stability"] for row in rows if "stability" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(looks) == len(losses) == 2
    for value in (*losses, record.loss):
        assert repr(value).encode() in raw
    for look in looks:
        for name in ("residual_rms", "attention_z"):
            assert repr(max(look[name])).encode() in raw
    for name in ("monitors/residual_rms_max", "monitors/update_rms/hidden", "monitors/logit_max"):
        assert name.encode() in raw
    for name in ("stability", "matrices", "frobenius", "residual_max_max"):
        assert name.encode() not in raw


def test_what_is_sent_are_flat_numbers():
    look = {"residual_rms": [1.0, 3.0], "residual_max": [5.0, 4.0], "router_z": [1.0, math.nan]}
    look |= {"logit_max": 7.0}
    look |= {"update_rms": {"hidden": 0.1, "router": 0.2}, "matrices": {"a.weight": {"spectral": [1.0]}}}
    look |= {"norm_over_radius": {"expert": {"min": 0.9, "max": 1.1}}}
    router_z = (found := tracking.scalars({"stability": look})).pop("monitors/router_z_max")
    assert math.isnan(router_z)
    assert found == {
        "monitors/residual_rms_max": 3.0,
        "monitors/residual_max": 5.0,
        "monitors/logit_max": 7.0,
        "monitors/update_rms/hidden": 0.1,
        "monitors/update_rms/router": 0.2,
        "monitors/norm_over_radius/expert/min": 0.9,
        "monitors/norm_over_radius/expert/max": 1.1,
    }
    line = {"loss": 2.5, "lr": 0.1, "max_vio": [0.25, 0.5]}
    assert tracking.scalars(line) == {"loss": 2.5, "lr": 0.1, "monitors/max_vio_max": 0.5}


def test_every_value_of_a_run_with_experts_is_a_number(tmp_path, monkeypatch):
    sent = []

    class Keeping:
        def __init__(self):
            self.summary = {}

        def log(self, values, step):
            sent.append(values)

        def finish(self, exit_code):
            pass

    words = ["model=moe", "scale.granularity=2", "scale.sparsity=2", "model.context=32"]
    config = resolve(compose([*WORDS[:-1], *words, f"runtime.root={tmp_path}"]))
    tracker = tracking.Tracker(config, tmp_path)
    tracker.run = Keeping()
    monkeypatch.setattr("hyperp.training.train.Tracker", lambda *_: tracker)
    assert train(config, tmp_path / config.run_id()).status == "finished"
    assert all(isinstance(value, float) for values in sent for value in values.values())
    names = {name for line in sent for name in line}
    assert {"loss", "monitors/max_vio_max", "monitors/router_z_max"} <= names


def test_without_the_library_the_field_is_named(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"runtime\.wandb=demo .*wandb"):
        tracking.require_wandb(resolve(compose(WORDS)))
    tracking.require_wandb(resolve(compose()))


def test_an_error_of_the_service_loses_no_run(tmp_path, monkeypatch, caplog):
    class Failing:
        def log(self, values, step):
            raise ConnectionError("service unavailable")

    config = resolve(compose([*WORDS[:-1], f"runtime.root={tmp_path}"]))
    tracker = tracking.Tracker(config, tmp_path)
    tracker.run = Failing()
    monkeypatch.setattr("hyperp.training.train.Tracker", lambda *_: tracker)
    assert train(config, tmp_path / config.run_id()).status == "finished"
    assert "tracking has stopped (ConnectionError: service unavailable)" in caplog.text
