"""The decoder against a plain one: float64, loops over heads and positions, written from the formulas.

Every gain is random and every size is one at which a dropped factor shows.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperp.flops import Shape
from hyperp.model.transformer import Transformer
from hyperp.parametrization import Parametrization
from hyperp.scale import Scale

torch.set_num_threads(1)
SCALE = Scale(width=24, depth=2, tokens=4096, batch_tokens=512)
PLAIN = Shape(vocab=37, context=12, head_size=8, query_heads=4, kv_heads=4, mlp_ratio=3, qk_norm=False)
SHAPES = {
    "plain": PLAIN,
    "qk_norm": replace(PLAIN, qk_norm=True),
    "grouped": replace(PLAIN, qk_norm=True, kv_heads=2),
    "gated": replace(PLAIN, gated_attention=True, kv_heads=2),
    "all of it": replace(PLAIN, qk_norm=True, kv_heads=2, gated_attention=True),
}
# Logits times (24 / 6)^-1 = 1/4 and, of depth 2, branches times 4^-0.75: neither is a default.
RULE = Parametrization(name="mup", reference_width=6, residual_exponent=-0.75)
LOGITS, BRANCHES = 0.25, 4**-0.75
DEFAULT_BASE = 10_000.0


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / (x.square().mean() + 1e-12).sqrt()


def rotated(x: Tensor, position: int, base: float) -> Tensor:
    """Rotate the pair (i, i + size/2) by position / base^(2 i / size) (arXiv 2104.09864)."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = torch.tensor(position * base ** (-2 * i / len(x)), dtype=torch.float64)
        cos, sin = angle.cos().float().double(), angle.sin().float().double()  # the tables are float32
        out[i] = cos * x[i] - sin * x[half + i]
        out[half + i] = sin * x[i] + cos * x[half + i]
    return out


def attention(weights: dict[str, Tensor], x_TD: Tensor, shape: Shape, base: float) -> Tensor:
    """The outputs of all heads at every position, concatenated, before the output matrix."""
    n, positions = shape.head_size, len(x_TD)
    out_THN = torch.zeros(positions, shape.query_heads, n, dtype=x_TD.dtype)

    def head(kind: str, t: int, h: int) -> Tensor:
        vector = weights[f"{kind}.weight"][h * n : (h + 1) * n] @ x_TD[t]
        if kind == "value":
            return vector
        if shape.qk_norm:
            vector = rms_norm(vector, weights[f"{kind}_norm.weight"])
        return rotated(vector, t, base)

    for h in range(shape.query_heads):
        shared = h // (shape.query_heads // shape.kv_heads)
        keys = torch.stack([head("key", t, shared) for t in range(positions)])
        values = torch.stack([head("value", t, shared) for t in range(positions)])
        for t in range(positions):
            scores = keys[: t + 1] @ head("query", t, h) / math.sqrt(n)
            out_THN[t, h] = scores.softmax(dim=0) @ values[: t + 1]
            if shape.gated_attention:
                out_THN[t, h] *= 1 / (1 + torch.exp(-(weights["gate.weight"][h] @ x_TD[t])))
    return out_THN.flatten(1)


def swiglu(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    gate = weights["gate.weight"] @ x
    return weights["down.weight"] @ (gate / (1 + torch.exp(-gate)) * (weights["up.weight"] @ x))


def experts(weights: dict[str, Tensor], x: Tensor, scale: Scale, shape: Shape) -> Tensor:
    """k of the k S experts, a shared one included in both; it weighs as much as the sum of the others."""
    shared = int(shape.shared_expert)
    scores = weights["router.weight"] @ x
    chosen = scores.topk(scale.granularity - shared).indices
    out = torch.zeros_like(x)
    for i in chosen:
        own = {f"{name}.weight": weights[f"experts.{name}"][i] for name in ("gate", "up", "down")}
        gate = torch.exp(scores[i]) / torch.exp(scores[chosen]).sum()
        out = out + (gate.sqrt() if shape.sqrt_gate else gate) * swiglu(own, x)
    if not shared:
        return out
    own = {key.removeprefix("shared."): value for key, value in weights.items()}
    return (out + swiglu(own, x)) * (math.sqrt(0.5) if shape.sqrt_gate else 1.0)


def reference_forward(
    state: dict[str, Tensor],
    ids: Tensor,
    shape: Shape,
    scale: Scale,
    base: float,
    branches: float,
    logits: float,
) -> Tensor:
    """ids (T,) -> logits (T, vocab)."""
    x_TD = torch.stack([state["embedding.weight"][i] for i in ids])
    for layer in range(scale.depth):
        prefix = f"blocks.{layer}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        heads = {key.removeprefix("attention."): value for key, value in own.items()}
        mlp = {key.removeprefix("mlp."): value for key, value in own.items() if key.startswith("mlp.")}
        dense = scale.granularity == scale.sparsity == 1
        normed = torch.stack([rms_norm(x, own["attention_norm.weight"]) for x in x_TD])
        mixed = attention(heads, normed, shape, base) @ own["attention.out.weight"].T
        x_TD = x_TD + branches * mixed
        inputs = [rms_norm(x, own["mlp_norm.weight"]) for x in x_TD]
        added = [swiglu(mlp, x) if dense else experts(mlp, x, scale, shape) for x in inputs]
        x_TD = x_TD + branches * torch.stack(added)
    final = torch.stack([rms_norm(x, state["norm.weight"]) for x in x_TD])
    return logits * (final @ state["unembedding.weight"].T)


def decoder(
    shape: Shape, base: float = DEFAULT_BASE, rule: Parametrization = RULE, scale: Scale = SCALE
) -> Transformer:
    """A model in float64 with random parameters, so that every one of them affects the output."""
    net = Transformer(scale, shape, rule, base).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            draw = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.copy_(1 + 0.5 * draw if p.ndim == 1 else draw / math.sqrt(p.shape[-1] / 2))
    return net


def some_ids(positions: int = 12) -> Tensor:
    return torch.randint(0, 37, (2, positions), generator=torch.Generator().manual_seed(2))


def compare(
    net: Transformer,
    ids: Tensor,
    shape: Shape,
    base: float,
    branches: float,
    logits: float,
    scale: Scale = SCALE,
) -> None:
    state = net.state_dict()
    want = torch.stack([reference_forward(state, row, shape, scale, base, branches, logits) for row in ids])
    got = net(ids)
    assert got.dtype == torch.float32  # so the last digit of float32 is all that may differ
    torch.testing.assert_close(got.double(), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("base", [DEFAULT_BASE, 100.0])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_are_those_of_the_formulas(name, base):
    compare(decoder(SHAPES[name], base), some_ids(), SHAPES[name], base, BRANCHES, LOGITS)


@pytest.mark.parametrize("sqrt_gate", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("k", "s"), [(4, 3), (3, 1), (8, 2)])
@torch.no_grad()
def test_logits_of_experts_are_those_of_the_formulas(k, s, shared, sqrt_gate):
    scale = replace(SCALE, granularity=k, sparsity=s)
    shape = replace(SHAPES["all of it"], shared_expert=shared, sqrt_gate=sqrt_gate)
    net = decoder(shape, scale=scale)
    compare(net, some_ids(), shape, DEFAULT_BASE, BRANCHES, LOGITS, scale)


@torch.no_grad()
def test_the_papers_rule_multiplies_branches_alone():
    net = decoder(SHAPES["grouped"], rule=Parametrization(name="hyperp"))
    compare(net, some_ids(), SHAPES["grouped"], DEFAULT_BASE, 1 / math.sqrt(2 * SCALE.depth), 1.0)


@pytest.mark.parametrize("positions", [1, 5])
@torch.no_grad()
def test_fewer_positions_than_the_context(positions):
    shape, ids = SHAPES["all of it"], some_ids(positions)
    compare(decoder(shape), ids, shape, DEFAULT_BASE, BRANCHES, LOGITS)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_later_token_leaves_earlier_logits_bit_for_bit(name):
    net, ids = decoder(SHAPES[name]), some_ids()
    before = net(ids)
    for position in range(1, 12):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 37
        after = net(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position:], before[:, position:])


@torch.no_grad()
def test_every_gain_and_matrix_reaches_the_logits():
    net, ids = decoder(SHAPES["all of it"]), some_ids()
    before = net(ids)
    for name, p in net.named_parameters():
        kept = p.clone()
        p.mul_(1 + 0.1 * torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) / p.numel())
        assert (net(ids) - before).abs().max() > 1e-4, name
        p.copy_(kept)
