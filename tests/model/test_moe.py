"""Mixture of experts: what a layer computes, that no token is dropped, and what SqrtGate achieves."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperp.flops import Experts, Shape, count_parameters, parameters_by_role
from hyperp.model.balance import LoadMonitor, balance_loss, max_vio, stack_loads
from hyperp.model.grouped import gather_rows, grouped_linear, has_grouped_mm, loop_linear
from hyperp.model.moe import MoE, Router, Routing, sort_by_expert
from hyperp.model.transformer import MLP, Block, Transformer
from hyperp.optim import build
from hyperp.parametrization import Parametrization
from hyperp.roles import roles_of
from hyperp.scale import Scale

torch.set_num_threads(1)
SCALE = Scale(width=32, depth=2, tokens=4096, batch_tokens=512, granularity=4, sparsity=2)
SHAPE = Shape(vocab=64, context=16, head_size=8, query_heads=4, kv_heads=2)
LOADS = {
    "even": [3, 3, 3, 3],
    "empty first and last": [0, 7, 5, 0],
    "all in one": [0, 0, 12, 0],
}


def model(scale: Scale = SCALE, shape: Shape = SHAPE, seed: int = 0) -> Transformer:
    return Transformer(scale, shape, Parametrization(init_embedding_std=0.02)).initialize(seed)


def experts_in(net: Transformer, layer: int = 0) -> MoE:
    block = net.blocks[layer]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, MoE)
    return block.mlp


def layer(width: int, k: int, s: int, sqrt_gate: bool = True, shared: bool = False) -> MoE:
    """An initialised layer of a model of the given width."""
    scale = Scale(width, 1, 4096, 512, granularity=k, sparsity=s)
    shape = replace(SHAPE, query_heads=1, kv_heads=1, sqrt_gate=sqrt_gate, shared_expert=shared)
    return experts_in(model(scale, shape))


def normed(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Random tokens with RMS 1, as after the norm."""
    return torch.nn.functional.rms_norm(
        torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)), (width,)
    )


def token_by_token(moe: MoE, x_PD: Tensor) -> Tensor:
    """The layer by its definition, token by token."""
    e = moe.experts
    out = torch.zeros_like(x_PD)
    for p, x in enumerate(x_PD):
        scores = moe.router.weight @ x
        chosen = scores.sort(descending=True).indices[: moe.active].tolist()
        weights = torch.exp(scores[chosen] - scores[chosen].max())
        weights = weights / weights.sum()
        for i, weight in zip(chosen, weights, strict=True):
            gate = e.gate[i] @ x
            h = gate * torch.sigmoid(gate) * (e.up[i] @ x)
            out[p] += (weight**0.5 if moe.sqrt_gate else weight) * (e.down[i] @ h)
        if moe.shared is not None:
            out[p] += moe.shared(x)
            out[p] *= 2**-0.5 if moe.sqrt_gate else 1.0
    return out


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_and_their_gradients_are_those_of_a_loop(load, dtype):
    g = torch.Generator().manual_seed(0)
    load_E = torch.tensor(LOADS[load])
    x = torch.randn(12, 16, generator=g).to(dtype)
    weight = torch.randn(4, 8, 16, generator=g).to(dtype)
    grad = torch.randn(12, 8, generator=g).to(dtype)
    assert has_grouped_mm(x, weight)
    got, want = [], []
    for function, results in ((grouped_linear, got), (loop_linear, want)):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        call: Any = function
        y = call(leaves[0], leaves[1], load_E)
        y.backward(grad)
        results += [y.detach(), *(leaf.grad for leaf in leaves)]
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (1e-2, 5e-2)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    assert got[2][load_E == 0].count_nonzero() == 0


def test_rows_that_do_not_fit_the_kernel_go_through_the_loop():
    x, weight = torch.randn(5, 6), torch.randn(2, 3, 6)
    assert not has_grouped_mm(x, weight)
    assert not has_grouped_mm(x.double(), weight.double())
    load_E = torch.tensor([2, 3])
    torch.testing.assert_close(
        grouped_linear(x, weight, load_E),
        torch.cat([x[:2] @ weight[0].T, x[2:] @ weight[1].T]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_gathering_rows_has_the_gradient_of_indexing():
    g = torch.Generator().manual_seed(0)
    expert_PK = torch.randint(0, 3, (5, 2), generator=g)
    row_of_slot, slot_of_row = sort_by_expert(expert_PK)
    x = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gather_rows(x, slot_of_row, row_of_slot, 2), x[slot_of_row // 2])
    assert torch.autograd.gradcheck(lambda t: gather_rows(t, slot_of_row, row_of_slot, 2), x)
    y = torch.randn(10, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: gather_rows(t, row_of_slot, slot_of_row), y)


def test_rows_are_sort_by_expert_and_by_token_within_it():
    expert_PK = torch.tensor([[2, 0], [0, 1], [2, 1]])
    row_of_slot, slot_of_row = sort_by_expert(expert_PK)
    assert slot_of_row.tolist() == [1, 2, 3, 5, 0, 4]
    assert row_of_slot[slot_of_row].tolist() == list(range(6))


@pytest.mark.parametrize("sqrt_gate", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("k", "s"), [(4, 1), (4, 4), (16, 2), (2, 8)])
def test_the_output_is_that_of_the_definition(sqrt_gate, shared, k, s):
    moe = layer(16, k, s, sqrt_gate, shared).double()
    with torch.no_grad():
        moe.router.weight.mul_(3)  # gates that differ
    x_PD = normed(40, 16).double().requires_grad_()
    got, routing = moe(x_PD.view(4, 10, 16))
    want = token_by_token(moe, x_PD)
    torch.testing.assert_close(got.view(40, 16), want, rtol=1e-9, atol=1e-10)
    tensors = [x_PD, *moe.parameters()]
    grad = torch.randn(40, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = torch.autograd.grad(got.view(40, 16), tensors, grad, allow_unused=True)
    two = torch.autograd.grad(want, tensors, grad, allow_unused=True)
    for a, b in zip(one, two, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert routing.load_E.sum() == 40 * moe.active


def test_float32_with_grouped_products_is_float64_with_a_loop():
    moe = layer(32, 4, 4)
    x = normed(200, 32)
    got, _ = moe(x)
    torch.testing.assert_close(got.double(), moe.double()(x.double())[0], rtol=1e-4, atol=1e-6)


def test_no_token_is_dropped_when_all_choose_the_same_experts():
    moe = layer(16, 4, 4).double()
    x = normed(50, 16).double()
    x[:, 0] = x[:, 0].abs() + 1
    with torch.no_grad():
        moe.router.weight[[2, 5, 7, 11], 0] += torch.tensor([40.0, 30.0, 20.0, 10.0]).double()
    got, routing = moe(x)
    assert routing.load_E[[2, 5, 7, 11]].tolist() == [50] * 4
    assert routing.load_E.sum() == 200
    torch.testing.assert_close(got, token_by_token(moe, x), rtol=1e-9, atol=1e-10)
    assert max_vio(routing.load_E[None]).item() == 3.0


def test_a_token_does_not_feel_the_others():
    moe, x = layer(16, 4, 4).double(), normed(30, 16).double()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moe(x[order])[0], moe(x)[0][order], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moe(x[:7])[0], moe(x)[0][:7], rtol=1e-10, atol=1e-12)


def test_the_router_stays_in_float32_under_autocast():
    router, x = Router(32, 8), normed(20, 32)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    plain = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = router(x)
        y, _ = layer(32, 4, 2)(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, plain)
    assert y.dtype == torch.bfloat16


def test_bfloat16_is_float32_rounded():
    moe, x = layer(32, 4, 4), normed(100, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, one = moe(x)
    exact, two = moe(x)
    assert torch.equal(one.load_E, two.load_E)
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


def rms(k: int, s: int, sqrt_gate: bool, shared: bool = False) -> float:
    """RMS of a layer's output at initialisation, at width 64, over 1000 tokens."""
    moe = layer(64, k, s, sqrt_gate, shared)
    with torch.no_grad():
        return moe(normed(1000, 64))[0].square().mean().sqrt().item()


GRANULARITIES = (2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("s", [1, 4])
def test_sqrt_gate_keeps_the_output_as_large_at_every_granularity(s):
    """The purpose of SqrtGate (arXiv 2603.28743): within 10% from k = 2 to 64; without it 1/sqrt(k)."""
    with_it = [rms(k, s, sqrt_gate=True) for k in GRANULARITIES]
    mean = sum(with_it) / len(with_it)
    assert all(abs(value / mean - 1) < 0.1 for value in with_it), with_it
    without = [rms(k, s, sqrt_gate=False) for k in GRANULARITIES]
    steps = [math.log2(b / a) for a, b in itertools.pairwise(without)]
    assert all(-0.6 < step < -0.4 for step in steps), without


def test_sqrt_gate_keeps_the_output_as_large_with_a_shared_expert():
    alone = rms(8, 4, sqrt_gate=True)
    for k in GRANULARITIES[1:]:
        assert rms(k, 4, sqrt_gate=True, shared=True) == pytest.approx(alone, rel=0.1)
    assert rms(8, 4, sqrt_gate=False, shared=True) == pytest.approx(alone, rel=0.2)  # the shared one rules
    # without the factor, two branches of one size would be sqrt(2) as large as one


@pytest.mark.parametrize(
    ("k", "s", "shared"),
    [(1, 4, False), (4, 1, False), (4, 4, False), (16, 2, False), (4, 1, True), (4, 4, True), (16, 2, True)],
)
def test_parameters_are_as_many_as_counted(k, s, shared):
    scale, shape = replace(SCALE, granularity=k, sparsity=s), replace(SHAPE, shared_expert=shared)
    net = model(scale, shape)
    roles, by_role = roles_of(net), {}
    for name, p in net.named_parameters():
        by_role[roles[name]] = by_role.get(roles[name], 0) + p.numel()
    assert by_role == parameters_by_role(scale, shape)
    assert sum(by_role.values()) == count_parameters(scale, shape)


def test_a_dense_scale_makes_a_dense_model():
    net = model(replace(SCALE, granularity=1, sparsity=1))
    block = net.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, MLP)
    routings: list[Routing] = []
    ids = torch.arange(16)[None]
    assert torch.equal(net(ids, routings), net(ids))
    assert routings == []


def test_every_layer_reports_its_routing():
    net, routings = model(), []
    net(torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(0)), routings)
    assert len(routings) == SCALE.depth
    for routing in routings:
        assert routing.load_E.sum() == 3 * 16 * SCALE.granularity
        assert routing.load_E.max() <= 3 * 16  # a token chooses different experts
        assert routing.probability_E.sum().item() == pytest.approx(3 * 16, rel=1e-5)


def test_experts_start_by_their_own_fan_in_and_each_differently():
    rule = Parametrization(init_hidden_gain=2.0)
    scale = Scale(64, 1, 4096, 512, granularity=4, sparsity=2)
    moe = experts_in(Transformer(scale, SHAPE, rule).initialize(0))
    for weight, d_in in (
        (moe.experts.gate, 64),
        (moe.experts.up, 64),
        (moe.experts.down, 64),
        (moe.router.weight, 64),
    ):
        assert weight.std().item() == pytest.approx(2 / math.sqrt(d_in), rel=0.1)
    narrow = experts_in(Transformer(replace(scale, granularity=16), SHAPE, rule).initialize(0)).experts
    assert narrow.down.shape == (32, 64, 16)
    assert narrow.down.std().item() == pytest.approx(2 / math.sqrt(16), rel=0.05)
    assert all(w.unique(dim=0).shape[0] == len(w) for w in (narrow.gate, narrow.up, narrow.down))


def test_the_seed_decides_the_experts():
    one, same, other = (model(seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert all(not torch.equal(one[k], other[k]) for k in one if "experts" in k or "router" in k)


@pytest.mark.parametrize("optimizer", ["muonh", "sso", "muonsphere", "adamh"])
def test_every_expert_stays_on_a_sphere_of_its_own(optimizer):
    net = model()
    stepper = build(net, optimizer, lr=0.1)
    stepper.project_()
    with torch.no_grad():
        e = experts_in(net).experts
        before = {"gate": e.gate.clone(), "down": e.down.clone()}
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=g)
        stepper.step()
    for name, old in before.items():
        new = getattr(e, name).detach()
        assert (new - old).abs().amax(dim=(-2, -1)).min() > 1e-3
        if optimizer in ("muonh", "adamh"):
            norm = torch.linalg.matrix_norm(new)
            torch.testing.assert_close(norm, torch.linalg.matrix_norm(old), rtol=1e-4, atol=1e-6)
            assert norm.std() > 1e-4  # they are not all on one
        else:
            top = torch.linalg.matrix_norm(new, ord=2)
            radius = math.sqrt(new.shape[-2] / new.shape[-1])
            torch.testing.assert_close(top, torch.full_like(top, radius), rtol=0.1, atol=1e-6)


def routing_of(expert_PK: Tensor, probability_PE: Tensor) -> Routing:
    load = torch.bincount(expert_PK.flatten(), minlength=probability_PE.shape[1])
    return Routing(load, probability_PE.sum(dim=0))


def test_the_balance_loss_is_switchs():
    g = torch.Generator().manual_seed(0)
    P, E, K = 60, 5, 2
    probability = torch.rand(P, E, generator=g).softmax(dim=-1)
    expert = torch.stack([torch.randperm(E, generator=g)[:K] for _ in range(P)])
    want = 0.0
    for e in range(E):
        f = sum(int(c == e) for row in expert.tolist() for c in row) / (P * K)
        want += E * f * probability[:, e].mean().item()
    routing = routing_of(expert, probability)
    assert balance_loss([routing], stack_loads([routing])).item() == pytest.approx(want, rel=1e-5)
    both = [routing, routing]
    assert balance_loss(both, stack_loads(both)).item() == pytest.approx(2 * want, rel=1e-5)


def test_the_balance_loss_is_one_a_layer_at_balance_and_more_with_a_favourite():
    even = Routing(torch.full((4,), 10), torch.full((4,), 20.0))
    assert balance_loss([even], stack_loads([even])).item() == pytest.approx(1.0)
    lopsided = Routing(torch.tensor([20, 20, 0, 0]), torch.tensor([40.0, 40.0, 0.0, 0.0]))
    assert balance_loss([lopsided], stack_loads([lopsided])).item() == pytest.approx(2.0)


def test_parts_with_the_load_of_the_whole_have_the_loss_and_gradient_of_the_whole():
    moe, x = layer(16, 4, 4).double(), normed(40, 16).double()
    _, whole = moe(x)
    load = stack_loads([whole])
    want = balance_loss([whole], load)
    parts = torch.stack([balance_loss([moe(part)[1]], load) for part in x.split(10)]).mean()
    torch.testing.assert_close(parts, want, rtol=1e-12, atol=1e-12)
    weight = moe.router.weight
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, weight)[0] for loss in (parts, want)), rtol=1e-9, atol=1e-12
    )
    alone = torch.stack([balance_loss([r], stack_loads([r])) for r in (moe(p)[1] for p in x.split(10))])
    assert abs(alone.mean() - want) > 1e-3


def test_descending_the_balance_loss_evens_the_load_out():
    moe, x = layer(16, 2, 8), normed(2000, 16)
    with torch.no_grad():
        moe.router.weight.mul_(4)
        moe.router.weight[3] *= 2
    vio = []
    for _ in range(60):
        _, routing = moe(x)
        load = stack_loads([routing])
        vio.append(max_vio(load).item())
        (grad,) = torch.autograd.grad(balance_loss([routing], load), moe.router.weight)
        with torch.no_grad():
            moe.router.weight.sub_(grad, alpha=0.5)
    assert vio[0] > 0.8
    assert vio[-1] < vio[0] / 2


def test_max_vio_is_the_excess_of_the_fullest_expert_over_the_mean():
    load = torch.tensor([[10, 10, 10, 10], [40, 0, 0, 0], [15, 10, 10, 5]])
    assert max_vio(load).tolist() == [0.0, 3.0, 0.5]


def test_the_monitor_keeps_means_and_the_largest():
    monitor = LoadMonitor(2, torch.device("cpu"))
    assert monitor.summary() == {}
    steps = ([[10, 10], [20, 0]], [[15, 5], [10, 10]], [[20, 0], [10, 10]])
    for load in steps[:2]:
        monitor.update(torch.tensor(load))
    assert monitor.take_mean() == [0.25, 0.5]
    monitor.update(torch.tensor(steps[2]))
    assert monitor.take_mean() == [1.0, 0.0]
    assert monitor.summary() == {"mean": [0.5, pytest.approx(1 / 3)], "largest": [1.0, 1.0]}


def test_sizes_and_shared_module_have_to_agree():
    with pytest.raises(AssertionError):
        MoE(16, Experts(hidden=8, routed=7, active=3, shared=True), sqrt_gate=True)
