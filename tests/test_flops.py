from dataclasses import replace

import pytest

from hyperp.flops import Shape, flops_per_token, parameters, parameters_by_role, training_flops
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
    assert parameters(SCALE, shape) == sum(counts.values())
    assert parameters(SCALE, shape, embeddings=False) == counts["hidden"] + counts["vector"]


def test_the_published_family_at_depth_8_has_208_million_parameters():
    """arXiv 2603.28743: width 128 d, 2 d query heads of 128, 4 key-value heads, SwiGLU 4 w, untied 32,000."""
    scale = Scale(width=1024, depth=8, tokens=10_400_000_000, batch_tokens=2**21)
    shape = Shape(32_000, 4096, head_size=128, query_heads=16, kv_heads=4, gated_attention=True)
    assert parameters(scale, shape) == pytest.approx(208e6, rel=2e-3)


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


@pytest.mark.parametrize("field", ["granularity", "sparsity"])
def test_experts_are_not_counted_as_if_dense(field):
    with pytest.raises(ValueError, match="granularity and sparsity must be 1"):
        parameters_by_role(replace(SCALE, **{field: 4}), SHAPE)
