from dataclasses import replace

import pytest

from hyperp.flops import (
    Experts,
    Shape,
    count_parameters,
    experts_of,
    flops_per_token,
    parameters_by_role,
    training_flops,
)
from hyperp.scale import Scale

SCALE = Scale(width=32, depth=3, tokens=100_000, batch_tokens=512)
SHAPE = Shape(vocab=256, context=128, head_size=16, query_heads=4, kv_heads=2, mlp_ratio=3)


def matrices(scale: Scale, shape: Shape) -> list[tuple[int, int]]:
    """Every matrix (d_out, d_in) that multiplies an activation, one by one."""
    w, f = scale.width, shape.mlp_ratio * scale.width
    nq, nk = shape.query_heads * shape.head_size, shape.kv_heads * shape.head_size
    block = [(nq, w), (nk, w), (nk, w), (w, nq), (f, w), (f, w), (w, f)]
    if shape.gated_attention:
        block.append((shape.query_heads, w))
    return block * scale.depth + [(shape.vocab, w)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_parameters_are_those_of_every_matrix_and_gain(gated, qk_norm):
    shape = replace(SHAPE, gated_attention=gated, qk_norm=qk_norm)
    counts = parameters_by_role(SCALE, shape)
    assert counts["hidden"] + counts["unembedding"] == sum(
        rows * cols for rows, cols in matrices(SCALE, shape)
    )
    assert counts["embedding"] == counts["unembedding"] == 256 * 32
    assert counts["vector"] == 3 * (32 + 32 + (16 + 16 if qk_norm else 0)) + 32
    assert count_parameters(SCALE, shape) == sum(counts.values())
    assert count_parameters(SCALE, shape, embeddings=False) == counts["hidden"] + counts["vector"]


def test_the_published_family_at_depth_8_has_208_million_parameters():
    """arXiv 2603.28743: width 128 d, 2 d query heads of 128, 4 key-value heads, SwiGLU 4 w, untied 32,000."""
    scale = Scale(width=1024, depth=8, tokens=10_400_000_000, batch_tokens=2**21)
    shape = Shape(32_000, 4096, head_size=128, query_heads=16, kv_heads=4, gated_attention=True)
    assert count_parameters(scale, shape) == pytest.approx(208e6, rel=2e-3)


def test_flops_are_three_forward_passes_of_two_a_multiply_add():
    """Counted out: a forward pass over one sequence, matrix by matrix; the backward pass costs twice that."""
    t = SHAPE.context
    forward = sum(2 * t * rows * cols for rows, cols in matrices(SCALE, SHAPE))
    for _ in range(SCALE.depth * SHAPE.query_heads):
        forward += 2 * t * t * SHAPE.head_size  # scores
        forward += 2 * t * t * SHAPE.head_size  # weighted values
    assert flops_per_token(SCALE, SHAPE) * t == 3 * forward


def test_a_run_costs_its_whole_steps():
    assert training_flops(SCALE, SHAPE) == flops_per_token(SCALE, SHAPE) * (100_000 // 512) * 512


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vocab": 0}, "vocab must be a whole number of at least 1, got 0"),
        ({"context": True}, "context must be a whole number of at least 1, got True"),
        ({"mlp_ratio": 2.5}, "mlp_ratio must be a whole number of at least 1, got 2.5"),
        ({"head_size": 15}, r"head_size must be even \(rotary embedding\), got 15"),
        ({"kv_heads": 3}, "kv_heads must divide query_heads=4, got 3"),
        ({"kv_heads": 8}, "kv_heads must divide query_heads=4, got 8"),
        ({"qk_norm": "yes"}, "qk_norm must be true or false, got 'yes'"),
    ],
)
def test_bad_sizes_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        replace(SHAPE, **changes)


EXPERTS = {
    # granularity, sparsity, shared: hidden, routed, active (96 hidden channels in the dense MLP)
    (4, 1, False): (24, 4, 4),
    (4, 8, False): (24, 32, 4),
    (4, 8, True): (24, 31, 3),
    (1, 8, False): (96, 8, 1),
    (96, 2, True): (1, 191, 95),
}


@pytest.mark.parametrize(("k", "s", "shared"), EXPERTS)
def test_experts_are_as_many_and_as_wide_as_the_paper_says(k, s, shared):
    """arXiv 2603.28743: k of k S experts of 1/k of the dense hidden width, a shared one among both."""
    hidden, routed, active = EXPERTS[k, s, shared]
    assert experts_of(replace(SCALE, granularity=k, sparsity=s), 3, shared) == Experts(
        hidden, routed, active, shared
    )


@pytest.mark.parametrize(("k", "s", "shared"), EXPERTS)
def test_all_experts_are_parameters_and_those_of_a_token_are_flops(k, s, shared):
    scale, shape = replace(SCALE, granularity=k, sparsity=s), replace(SHAPE, shared_expert=shared)
    dense, counts = parameters_by_role(SCALE, SHAPE), parameters_by_role(scale, shape)
    w, mlp = SCALE.width, 3 * SCALE.width * 96
    routed = k * s - shared
    assert counts["router"] == SCALE.depth * routed * w
    assert counts["expert"] + shared * SCALE.depth * mlp // k == SCALE.depth * s * mlp
    assert counts["hidden"] == dense["hidden"] - SCALE.depth * (mlp - shared * mlp // k)
    # the active width is that of the dense model, and the router comes on top
    assert flops_per_token(scale, shape) == flops_per_token(SCALE, SHAPE) + 6 * counts["router"]


@pytest.mark.parametrize(
    ("k", "shared", "text"),
    [
        (
            5,
            False,
            r"granularity must divide the hidden width of the MLP, 96 \(mlp_ratio 3 x width 32\), got 5",
        ),
        (192, False, r"granularity must divide the hidden width of the MLP, 96 .*got 192"),
        (1, True, r"granularity must be at least 2 with a shared expert, which is one of them, got 1"),
    ],
)
def test_experts_that_do_not_fit_are_named(k, shared, text):
    with pytest.raises(ValueError, match=text):
        parameters_by_role(replace(SCALE, granularity=k, sparsity=4), replace(SHAPE, shared_expert=shared))
