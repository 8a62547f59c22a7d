"""Stability monitors: what they report against a recomputation by hand, and that they change nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hyperp.conf
from hyperp import record
from hyperp.config import Config, compose, resolve
from hyperp.data import Corpus
from hyperp.model.moe import MoE
from hyperp.model.transformer import MLP, Attention, Block
from hyperp.optim import MuonH
from hyperp.sweeps.plan import make_plan
from hyperp.train import Stopped, train
from hyperp.trainer import Trainer

torch.set_num_threads(1)
VOCAB, CONTEXT, STEPS = 31, 16, 6
TINY = (
    "scale.width=16",
    "scale.depth=2",
    f"scale.tokens={STEPS * 64}",
    "scale.batch_tokens=64",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "data.held_out_tokens=64",
    "parametrization=raw",
    "parametrization.init_embedding_std=0.5",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=4",
    "runtime.checkpoint_every=0",
)
MOE = (
    "model=moe",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "scale.granularity=4",
    "scale.sparsity=2",
)
OUTPUTS = ("attention_output", "mlp_output", "residual")


def config(*words: str) -> Config:
    return resolve(compose([*TINY, *words]))


def corpus() -> Corpus:
    ids = (np.random.default_rng(0).zipf(1.3, size=6_000) % VOCAB).astype(np.uint8)
    return Corpus("text", ids[:5_000], ids[5_000:], VOCAB, 1.0, digest="0" * 64)


def trainer_at(step: int, *words: str) -> Trainer:
    trainer = Trainer(config(*words), corpus())
    for _ in range(step):
        trainer.train_step()
    return trainer


def seen(trainer: Trainer) -> dict[str, Any]:
    row = trainer.stability.take()
    assert row is not None
    return row


def look(trainer: Trainer, step: int) -> None:
    trainer.stability.before(step)
    trainer.stability.after(trainer.batches.batch(step - 1)[0])


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt() * weight


def turned(x_TN: Tensor) -> Tensor:
    """Rotary embedding as a product of complex numbers."""
    T, N = x_TN.shape
    angle = torch.outer(torch.arange(T).double(), 10_000.0 ** (-torch.arange(0, N, 2).double() / N))
    z = torch.complex(x_TN[:, : N // 2], x_TN[:, N // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), dim=-1)


def attention_by_hand(layer: Attention, x_TD: Tensor) -> tuple[Tensor, list[float]]:
    """Output (T, D) of one sequence, head by head and query by query, and every log-sum-exp of scores."""
    assert layer.query_norm is not None
    assert layer.key_norm is not None
    w = {name: p.detach().double() for name, p in layer.named_parameters()}
    k_TN = turned(rms_norm(x_TD @ w["key.weight"].T, w["key_norm.weight"]))  # one key-value head
    v_TN = x_TD @ w["value.weight"].T
    heads, found = [], []
    for q_TN in (x_TD @ w["query.weight"].T).split(8, dim=-1):
        q_TN = turned(rms_norm(q_TN, w["query_norm.weight"]))
        rows = []
        for t in range(len(x_TD)):
            scores = torch.stack([q_TN[t] @ k_TN[s] for s in range(t + 1)]) / math.sqrt(8)
            found.append(float(scores.exp().sum().log()))
            rows.append(scores.softmax(0) @ v_TN[: t + 1])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=-1) @ w["out.weight"].T, found


def by_hand(trainer: Trainer, ids_BT: Tensor) -> dict[str, Any]:
    """Outputs, as one tensor a layer, and log-sum-exps of a dense model, in float64."""
    model = trainer.model
    found: dict[str, Any] = {name: [] for name in (*OUTPUTS, "lse")}
    x_BTD = model.embedding.weight.detach().double()[ids_BT]
    for block in model.blocks:
        assert isinstance(block, Block)
        w = {name: p.detach().double() for name, p in block.named_parameters()}
        parts = [
            attention_by_hand(block.attention, x)
            for x in rms_norm(x_BTD, w["attention_norm.weight"]).unbind()
        ]
        out = torch.stack([part[0] for part in parts])
        found["lse"].append([value for part in parts for value in part[1]])
        found["attention_output"].append(out)
        x_BTD = x_BTD + block.residual_multiplier * out
        h = rms_norm(x_BTD, w["mlp_norm.weight"])
        gate = h @ w["mlp.gate.weight"].T
        out = (gate * gate.sigmoid() * (h @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T
        found["mlp_output"].append(out)
        x_BTD = x_BTD + block.residual_multiplier * out
        found["residual"].append(x_BTD)
    w_D = model.norm.weight.detach().double()
    found["logits"] = rms_norm(x_BTD, w_D) @ model.unembedding.weight.detach().double().T
    return found


def test_activations_are_those_of_a_pass_by_hand_at_the_new_weights():
    trainer = trainer_at(3, "runtime.monitor_every=3")
    row = seen(trainer)
    want = by_hand(trainer, trainer.batches.batch(2)[0])
    for name in OUTPUTS:
        assert row[f"{name}_rms"] == pytest.approx([rms(x) for x in want[name]], rel=1e-5)
        assert row[f"{name}_max"] == pytest.approx([float(x.abs().max()) for x in want[name]], rel=1e-5)
    squares = [np.mean(np.square(values)) for values in want["lse"]]
    assert row["attention_z"] == pytest.approx(squares, rel=1e-5)
    assert row["attention_lse_max"] == pytest.approx([max(values) for values in want["lse"]], rel=1e-5)
    assert row["logit_max"] == pytest.approx(float(want["logits"].abs().max()), rel=1e-5)


def test_outliers_are_entries_above_six_times_the_rms():
    trainer = trainer_at(2, "runtime.monitor_every=3")
    with torch.no_grad():  # one channel of a layer's output far above the others
        block = trainer.model.blocks[1]
        assert isinstance(block, Block)
        assert isinstance(block.mlp, MLP)
        block.mlp.down.weight[3] *= 1000
    trainer.train_step()
    row = seen(trainer)
    want = by_hand(trainer, trainer.batches.batch(2)[0])
    for name in OUTPUTS:
        shares = [float((x.abs() > 6 * rms(x)).double().mean()) for x in want[name]]
        assert row[f"{name}_outliers"] == pytest.approx(shares, rel=1e-5, abs=1e-9)
    assert 0 < row["mlp_output_outliers"][1] < 1 / 16
    assert trainer.stability.summary()["last"]["outlier_share"] == max(row["mlp_output_outliers"])


@pytest.mark.parametrize("words", [("optim=sso",), ("optim=muonh", "optim.clip=0.01"), ("optim=adamw", *MOE)])
def test_gradients_are_those_before_clipping_and_updates_what_the_weights_moved_by(words):
    trainer, twin = (trainer_at(2, *words, f"runtime.monitor_every={n}") for n in (3, 0))
    x, y = twin.batches.batch(2)
    twin._backward([x], [y])
    roles = {p: group["role"] for group in twin.optimizer.param_groups for p in group["params"]}
    gradients, before = {p: p.grad for p in roles}, {p: p.detach().clone() for p in roles}
    twin.optimizer.zero_grad()
    trainer.train_step()
    twin.train_step()
    row = seen(trainer)
    assert list(row["gradient_rms"]) == list(row["update_rms"]) == list(dict.fromkeys(roles.values()))
    for role in row["gradient_rms"]:
        of_role = [p for p in roles if roles[p] == role]
        flat = torch.cat([gradients[p].flatten() for p in of_role])
        assert row["gradient_rms"][role] == pytest.approx(rms(flat), rel=1e-5)
        flat = torch.cat([(p.detach() - before[p]).flatten() for p in of_role])
        assert row["update_rms"][role] == pytest.approx(rms(flat), rel=1e-5)
        assert rms(flat) > 0


def told(values: Tensor) -> Any:
    """What the log says of the matrices of a parameter."""
    if len(values) == 1:
        return pytest.approx(values.tolist(), rel=1e-5)
    ends = {"min": values.min(), "median": values.quantile(0.5), "max": values.max()}
    return pytest.approx({name: float(value) for name, value in ends.items()}, rel=1e-5)


@pytest.mark.parametrize(
    "words", [("optim=sso",), ("optim=muonh",), ("optim=muonh", *MOE), ("optim=sso", *MOE)]
)
def test_every_matrix_has_its_norms_and_its_radius(words):
    trainer = trainer_at(0, *words, "runtime.monitor_every=1")
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for _ in range(3):
        trainer.train_step()
    row, ratios = seen(trainer), {}
    algorithms = {
        name: (group["algorithm"], group["role"])
        for group in trainer.optimizer.param_groups
        for name in group["param_names"]
    }
    named = {name: p.detach() for name, p in trainer.model.named_parameters() if p.ndim > 1}
    assert set(row["matrices"]) == set(named)
    for name, W in named.items():
        W, W0, found = W.view(-1, *W.shape[-2:]), start[name].view(-1, *W.shape[-2:]), row["matrices"][name]
        sigma = torch.linalg.svdvals(W.double())[:, 0]
        frobenius = torch.linalg.matrix_norm(W.double())
        assert found["spectral"] == told(sigma)
        assert found["frobenius"] == told(frobenius)
        algorithm, role = algorithms[name]
        if algorithm == "sso":
            want = torch.full((len(W),), math.sqrt(W.shape[1] / W.shape[2]), dtype=torch.float64)
            own = sigma / want
        elif algorithm in ("muonh", "adamh"):
            want = torch.linalg.matrix_norm(W0.double())
            own = frobenius / want
        else:
            want = own = None
        assert found["radius"] == (None if want is None else told(want))
        assert found.get("count", 1) == len(W)
        if own is not None:
            ratios.setdefault(role, []).extend(own.tolist())
            if len(W) > 1:
                ends = {name: found["norm_over_radius"][name] for name in ("min", "max")}
                assert ends == pytest.approx({"min": float(own.min()), "max": float(own.max())}, rel=1e-5)
    ends = {role: {"min": min(values), "max": max(values)} for role, values in ratios.items()}
    assert row["norm_over_radius"] == {role: pytest.approx(end, rel=1e-5) for role, end in ends.items()}
    spread = 1e-5 if words[0] == "optim=muonh" else 0.05  # SSO retracts at the start of the next step
    assert all(abs(end - 1) < spread for both in ends.values() for end in both.values())
    assert (
        trainer.stability.summary()["smallest"]["norm_over_radius"]
        <= min(e["min"] for e in ends.values()) + 1e-5
    )


def test_of_a_stack_the_matrix_farthest_off_its_sphere_is_named():
    trainer = trainer_at(1, "optim=muonh", *MOE, "runtime.monitor_every=1")
    name, experts = next((n, p) for n, p in trainer.model.named_parameters() if p.ndim == 3)
    with torch.no_grad():
        experts[2] *= 0.5
        experts[5] *= 1.25
    look(trainer, 2)
    row = seen(trainer)
    assert row["matrices"][name]["count"] == len(experts) == 8
    ratio = row["matrices"][name]["norm_over_radius"]
    assert ratio == pytest.approx({"min": 0.5, "max": 1.25, "worst": 2}, rel=1e-5)
    with torch.no_grad():
        experts[3] = math.nan
    look(trainer, 3)
    ratio = seen(trainer)["matrices"][name]["norm_over_radius"]
    assert ratio["worst"] == 3
    assert math.isnan(ratio["max"])


def test_radii_that_the_host_knows_are_not_copied_to_the_device_one_by_one():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ops.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    for optim in ("sso", "adamw"):
        ops: list[str] = []
        matrices = trainer_at(0, f"optim={optim}", "runtime.monitor_every=1").stability.matrices
        elsewhere = [replace(one, parameter=nn.Parameter(one.parameter.to("meta"))) for one in matrices]
        with Seen():
            found = [one.radius({}) for one in elsewhere]
        assert all(radius.device.type == "meta" and radius.dtype == torch.float32 for radius in found)
        assert set(ops) == {"full"}


def test_without_a_sphere_there_are_norms_alone():
    row = seen(trainer_at(1, "optim=adamw", "runtime.monitor_every=1"))
    assert row["norm_over_radius"] == {}
    assert all(found["radius"] is None and found["spectral"][0] > 0 for found in row["matrices"].values())


def test_a_matrix_off_its_sphere_is_seen():
    trainer = trainer_at(1, "optim=muonh", "runtime.monitor_every=1")
    trainer.optimizer.state[trainer.model.unembedding.weight]["radius"] *= 0.5
    look(trainer, 2)
    ratio = seen(trainer)["norm_over_radius"]
    assert ratio["unembedding"]["max"] == pytest.approx(2.0, rel=1e-5)
    assert ratio["hidden"]["max"] == pytest.approx(1.0, rel=1e-5)


def test_router_z_values_are_those_of_the_scores():
    trainer = trainer_at(3, *MOE, "runtime.monitor_every=3")
    row, inputs = seen(trainer), []
    for block in trainer.model.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.mlp, MoE)
        block.mlp.router.register_forward_hook(
            lambda module, args, _: inputs.append((args[0], module.weight))
        )
    with torch.no_grad():
        trainer.model(trainer.batches.batch(2)[0])
    lse = [(x.double() @ weight.double().T).exp().sum(-1).log() for x, weight in inputs]
    assert row["router_z"] == pytest.approx([rms(values) ** 2 for values in lse], rel=1e-5)
    assert row["router_lse_max"] == pytest.approx([float(values.detach().max()) for values in lse], rel=1e-5)
    assert len(row["router_z"]) == len(row["mlp_output_rms"]) == 2


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
        configs = [point.config for point in make_plan([f"+experiment={name}"]).points]
        made = {(c.scale.steps, c.runtime.monitor_every, c.runtime.monitor_looks) for c in configs}
        for steps, every, looks in made - {(8, 50, 0)}:  # the coordinate check has a measure of its own
            assert looks == 8 <= steps or (looks == 0 and steps // every >= 8), (name, steps)


def test_the_host_waits_once_a_look(monkeypatch):
    trainer = trainer_at(0, "runtime.monitor_every=1")
    trainer.train_step()
    trainer.stability.before(2)
    calls = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda *a, _name=name, _original=original: calls.append(_name) or _original(*a)
        )
    trainer.stability.after(trainer.batches.batch(1)[0])
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


def test_lower_precision_sees_about_the_same():
    full, half = (
        seen(trainer_at(1, f"precision={p}", "runtime.monitor_every=1")) for p in ("float32", "bfloat16")
    )
    for name in ("attention_z", "residual_rms", "attention_output_rms", "mlp_output_rms"):
        assert half[name] == pytest.approx(full[name], rel=0.03)
        assert half[name] != full[name]


def test_matrices_in_one_parameter_are_looked_at_one_by_one():
    trainer = trainer_at(0, "optim=muonh", "runtime.monitor_every=1")
    weight = trainer.model.unembedding.weight
    group = {"params": [("fused", weight)], "role": "hidden", "split": (((0, 20),), ((20, VOCAB),))}
    trainer.stability = type(trainer.stability)(trainer.model, MuonH([group]), every=1, steps=1)
    trainer.stability.optimizer.project_()
    norms_ = trainer.stability._norms()
    parts = weight.detach().split([20, VOCAB - 20])
    assert norms_["spectral"].tolist() == pytest.approx(
        [float(torch.linalg.svdvals(p)[0]) for p in parts], rel=1e-5
    )
    assert norms_["radius"].tolist() == pytest.approx([float(p.norm()) for p in parts], rel=1e-5)


@pytest.mark.slow
def test_a_compiled_model_is_looked_into_without_compiling_again():
    from torch._dynamo.utils import counters

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
