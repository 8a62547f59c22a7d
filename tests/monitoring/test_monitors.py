"""Stability monitors: what they report, against a computation by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperp.model.moe import MoE
from hyperp.model.transformer import MLP, Attention, Block
from hyperp.optim import MuonH
from hyperp.training.trainer import Trainer
from tests.monitoring.monitored import MOE, VOCAB, seen, trainer_at

torch.set_num_threads(1)
OUTPUTS = ("attention_output", "mlp_output", "residual")


def look(trainer: Trainer, step: int) -> None:
    trainer.stability.before_step(step)
    trainer.stability.after_step(trainer.batches.batch(step - 1)[0])


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
    """Output (T, D) for one sequence, by head and by query, and the log-sum-exp of every query's scores."""
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
    """Outputs, one tensor for each layer, and log-sum-exps of a dense model, in float64."""
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


def logged(values: Tensor) -> Any:
    """What is logged for the matrices of a parameter."""
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
        assert found["spectral"] == logged(sigma)
        assert found["frobenius"] == logged(frobenius)
        algorithm, role = algorithms[name]
        if algorithm == "sso":
            want = torch.full((len(W),), math.sqrt(W.shape[1] / W.shape[2]), dtype=torch.float64)
            own = sigma / want
        elif algorithm in ("muonh", "adamh"):
            want = torch.linalg.matrix_norm(W0.double())
            own = frobenius / want
        else:
            want = own = None
        assert found["radius"] == (None if want is None else logged(want))
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
