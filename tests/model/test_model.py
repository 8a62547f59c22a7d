"""The decoder: it is causal, initialised by its rule, has the counted parameters, and one matrix in each."""

import math

import pytest
import torch

from hyperp.flops import Shape, count_parameters
from hyperp.model.transformer import MLP, Block, Transformer, rotary_tables, rotate
from hyperp.parametrization import Parametrization
from hyperp.roles import roles_of
from hyperp.scale import Scale

torch.set_num_threads(1)
SCALE = Scale(width=32, depth=2, tokens=4096, batch_tokens=512)
SHAPES = {
    "plain": Shape(vocab=64, context=16, head_size=8, query_heads=4, kv_heads=4, qk_norm=False),
    "grouped": Shape(vocab=64, context=16, head_size=8, query_heads=4, kv_heads=2),
    "gated": Shape(vocab=64, context=16, head_size=8, query_heads=8, kv_heads=1, gated_attention=True),
}


def model(shape: Shape, rule: Parametrization | None = None, seed: int = 0) -> Transformer:
    return Transformer(SCALE, shape, rule or Parametrization(init_embedding_std=0.02)).initialize(seed)


def first_block(net: Transformer) -> Block:
    block = net.blocks[0]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("name", SHAPES)
def test_no_position_sees_a_later_one(name):
    net = model(SHAPES[name])
    ids_BT = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = ids_BT.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 64
    before, after = net(ids_BT), net(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-6)
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_as_many_as_counted(name):
    assert sum(p.numel() for p in model(SHAPES[name]).parameters()) == count_parameters(SCALE, SHAPES[name])


def test_every_parameter_has_a_role_and_every_hidden_one_is_a_single_matrix():
    net = model(SHAPES["gated"])
    roles = roles_of(net)
    assert set(roles.values()) == {"embedding", "hidden", "unembedding", "vector"}
    for name, p in net.named_parameters():
        assert p.ndim == (1 if roles[name] == "vector" else 2)
    assert sum(role == "hidden" for role in roles.values()) == SCALE.depth * 8


def test_the_seed_decides_the_weights():
    one, same, other = (model(SHAPES["grouped"], seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


def test_initial_spread_follows_the_rule():
    rule = Parametrization(init_embedding_std=0.3, init_unembedding_std="1/sqrt(width)", init_hidden_gain=2.0)
    net = Transformer(Scale(256, 1, 4096, 512), SHAPES["plain"], rule).initialize(0)
    assert net.embedding.weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert net.unembedding.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    mlp = first_block(net).mlp
    assert isinstance(mlp, MLP)
    assert mlp.down.weight.std().item() == pytest.approx(2 / math.sqrt(1024), rel=0.05)


def test_an_embedding_as_small_as_the_papers_still_feeds_the_first_block():
    # arXiv 2603.28743 starts embeddings at 1e-4: a norm's epsilon above their mean square would silence them
    net = model(SHAPES["plain"], Parametrization())
    x = net.embedding(torch.arange(16)[None])
    assert first_block(net).attention_norm(x).pow(2).mean().sqrt().item() == pytest.approx(1.0, rel=1e-2)


def test_residual_branches_are_multiplied_by_the_rule():
    branches = {}
    for exponent in (0.0, -0.5):
        net = model(SHAPES["plain"], Parametrization(residual_exponent=exponent, init_embedding_std=0.02))
        x = net.embedding(torch.arange(16)[None])
        block = first_block(net)
        half = x + block.residual_multiplier * block.attention(
            block.attention_norm(x), net.cos_TN, net.sin_TN
        )
        branches[exponent] = half - x
    torch.testing.assert_close(
        branches[-0.5], branches[0.0] / math.sqrt(2 * SCALE.depth), rtol=1e-4, atol=1e-6
    )


def test_rotation_depends_on_the_distance_of_positions_only():
    cos, sin = rotary_tables(32, 8, 10_000.0)
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8, generator=g), torch.randn(1, 1, 1, 8, generator=g)
    q, k = rotate(q.expand(1, 32, 1, 8), cos, sin), rotate(k.expand(1, 32, 1, 8), cos, sin)
    scores = torch.einsum("bthn,bshn->ts", q, k)
    for offset in (0, 1, 5, -3):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[:, :1].expand(1, 32, 1), rtol=1e-5, atol=1e-6)
