"""When stability monitors measure and what they record; that they change nothing and cost little."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hyperp.conf
from hyperp.rundir import record
from hyperp.sweeps.plan.plan import make_plan
from hyperp.training.train import Stopped, train
from tests.monitoring.monitored import MOE, STEPS, config, corpus, seen, trainer_at

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "words",
    [
        ("optim=sso",),
        ("optim=muonh", *MOE, "model.balance_weight=0.1", "runtime.micro_batch_tokens=32"),
        ("optim=adamw", "precision=bfloat16", "runtime.micro_batch_tokens=16"),
    ],
)
def test_weights_are_the_same_to_the_bit_with_and_without(words):
    models = [trainer_at(STEPS, *words, f"runtime.monitor_every={n}").model for n in (0, 2)]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("micro_batch", [0, 32])
def test_between_the_looks_nothing_is_computed(monkeypatch, micro_batch):
    trainer = trainer_at(0, "runtime.monitor_every=4", f"runtime.micro_batch_tokens={micro_batch}")
    passes, copies = [], []
    trainer.model.embedding.register_forward_hook(lambda *_: passes.append(trainer.step + 1))
    whole = type(trainer.stability)._rms_by_role
    monkeypatch.setattr(
        type(trainer.stability),
        "_rms_by_role",
        lambda self, t: copies.append(trainer.step + 1) or whole(self, t),
    )
    found = []
    for _ in range(STEPS):
        trainer.train_step()
        found.append(trainer.stability.take() is not None)
        trainer.stability.take()
    assert found == [False, False, False, True, False, True]  # every fourth, and the last
    parts = 1 if micro_batch == 0 else 2
    assert [passes.count(step) - parts for step in range(1, STEPS + 1)] == [0, 0, 0, 1, 0, 1]
    assert copies == [4, 4, 6, 6]
    inside = [m for m in trainer.model.modules() if m is not trainer.model.embedding]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in inside)


@pytest.mark.parametrize(
    ("steps", "looks", "expected"),
    [
        (64, 8, [8, 16, 24, 32, 40, 48, 56, 64]),
        (90, 8, [12, 23, 34, 45, 57, 68, 79, 90]),
        (6, 8, [1, 2, 3, 4, 5, 6]),
        (100, 1, [100]),
        (120, 0, [50, 100, 120]),
    ],
)
def test_looks_are_at_equal_shares_of_the_run_whatever_its_length(steps, looks, expected):
    stability = trainer_at(0, f"runtime.monitor_looks={looks}", "runtime.monitor_every=50").stability
    stability.steps = steps
    assert [step for step in range(1, steps + 1) if stability.due(step)] == expected
    stability.every = 0
    assert not any(stability.due(step) for step in range(1, steps + 1))


def test_every_run_of_the_small_experiments_is_looked_at_as_often():
    conf = Path(str(hyperp.conf.__path__[0]), "experiment")
    for name in sorted(path.stem for path in conf.glob("*.yaml")):
        configs = [point.own for point in make_plan([f"+experiment={name}"]).points]
        made = {(c.scale.steps, c.runtime.monitor_every, c.runtime.monitor_looks) for c in configs}
        for steps, every, looks in made - {(8, 50, 0)}:  # the coordinate check has a measure of its own
            assert looks == 8 <= steps or (looks == 0 and steps // every >= 8), (name, steps)


def test_the_host_waits_once_a_look(monkeypatch):
    trainer = trainer_at(0, "runtime.monitor_every=1")
    trainer.train_step()
    trainer.stability.before_step(2)
    calls = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda *a, _name=name, _original=original: calls.append(_name) or _original(*a)
        )
    trainer.stability.after_step(trainer.batches.batch(1)[0])
    assert calls == ["tolist"]


def lines(run_dir: Path) -> list[dict]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


def test_the_log_has_a_line_a_look_and_a_resumed_run_the_same_summary(tmp_path):
    made = config("runtime.monitor_every=2", *MOE)
    whole = train(made, tmp_path / "whole", corpus=corpus())
    steps = iter(range(1, 100))
    with pytest.raises(Stopped):
        train(made, tmp_path / "parts", corpus=corpus(), stop=lambda: next(steps) == 5)
    parts = train(made, tmp_path / "parts", corpus=corpus())
    assert parts.resumed == 1
    assert parts.stability == whole.stability
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    rows = {line["step"]: line["stability"] for line in lines(tmp_path / "whole") if "stability" in line}
    assert list(rows) == [2, 4, 6]
    summary = whole.stability
    assert summary["looks"] == 3
    assert summary["largest"]["router_z"] == max(z for row in rows.values() for z in row["router_z"])
    assert summary["last"]["residual_rms"] == max(rows[6]["residual_rms"])
    ratios = [ends["min"] for row in rows.values() for ends in row["norm_over_radius"].values()]
    assert summary["smallest"] == {"norm_over_radius": min(ratios)}
    assert record.load(tmp_path / "whole") == whole


def test_a_run_without_monitors_says_nothing_of_them(tmp_path):
    one = train(config("runtime.monitor_every=0"), tmp_path, corpus=corpus())
    assert one.stability == {}
    assert all("stability" not in line for line in lines(tmp_path))
    with pytest.raises(ValueError, match="monitor_every must be at least 0, got -1"):
        config("runtime.monitor_every=-1")


def test_what_is_not_finite_is_logged_as_text_and_summed_up_as_none(tmp_path):
    one = train(config("base_lr=1e30", "optim=adamw", "runtime.monitor_every=1"), tmp_path, corpus=corpus())
    assert one.status == "diverged"
    rows = [line["stability"] for line in lines(tmp_path) if "stability" in line]
    assert "nan" in rows[-1]["residual_rms"]
    assert one.stability["largest"]["residual_rms"] is None
    assert record.load(tmp_path) == one


@pytest.mark.slow
def test_a_compiled_model_is_looked_into_without_compiling_again():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()  # tests before this one may have compiled too
    counters.clear()
    rows, graphs = [], []
    for compiled in ("false", "true"):
        trainer = trainer_at(2, "runtime.monitor_every=2", f"runtime.compile={compiled}")
        graphs.append(counters["stats"]["unique_graphs"])
        rows.append(seen(trainer))
        trainer.train_step()
        trainer.train_step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == 0 < graphs[2] == graphs[3]
    for name in ("attention_z", "residual_rms", "mlp_output_max", "logit_max"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4)
