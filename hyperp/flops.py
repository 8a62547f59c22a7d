"""Parameters and training FLOPs of a decoder, dense or a mixture of experts, from its sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import StrictBool

from hyperp.scale import Scale
from hyperp.validation import Whole, validated

if TYPE_CHECKING:
    from hyperp.roles import Role


@validated
class Shape:
    """The sizes of a decoder that are not covariates of a law.

    Args:
        vocab: token ids.
        context: tokens in a sequence.
        head_size: of queries, keys and values; even, for the rotary embedding.
        query_heads: heads of a block; query_heads x head_size need not be the width.
        kv_heads: key-value heads, each shared by query_heads / kv_heads query heads.
        mlp_ratio: hidden width of the SwiGLU MLP over the width.
        gated_attention: one sigmoid gate a head, from the block's input.
        qk_norm: RMS normalisation of queries and keys, with a gain for each of the head_size channels.
        shared_expert: one of the experts that a token uses is the same for all tokens.
        sqrt_gate: experts are weighted by the roots of their gates (SqrtGate, arXiv 2603.28743).

    Raises:
        ValueError: a size is not a positive whole number, head_size is odd, or kv_heads does not divide
            query_heads.
    """

    vocab: Whole
    context: Whole
    head_size: Whole
    query_heads: Whole
    kv_heads: Whole
    mlp_ratio: Whole = 4
    gated_attention: StrictBool = False
    qk_norm: StrictBool = True
    shared_expert: StrictBool = False
    sqrt_gate: StrictBool = True

    def __post_init__(self) -> None:
        if self.head_size % 2:
            raise ValueError(f"head_size must be even (rotary embedding), got {self.head_size}")
        if self.query_heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide query_heads={self.query_heads}, got {self.kv_heads}")


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer, each with `hidden` hidden channels.

    `active` of `routed` are chosen for a token; with `shared` all tokens use one more.
    """

    hidden: int
    routed: int
    active: int
    shared: bool


def experts_of(scale: Scale, mlp_ratio: int, shared_expert: bool) -> Experts | None:
    """Experts of a scale, None for a dense one: k of k S, a shared one among both (arXiv 2603.28743).

    Raises:
        ValueError: granularity does not divide the hidden width of the dense MLP, or leaves no expert to
            choose beside the shared one.
    """
    k, hidden = scale.granularity, mlp_ratio * scale.width
    if shared_expert and k < 2:
        raise ValueError(
            f"granularity must be at least 2 with a shared expert, which is one of them, got {k}"
        )
    if k == 1 and scale.sparsity == 1:
        return None
    if hidden % k:
        raise ValueError(
            f"granularity must divide the hidden width of the MLP, {hidden} (mlp_ratio {mlp_ratio} x width "
            f"{scale.width}), got {k}"
        )
    shared = int(shared_expert)
    return Experts(hidden // k, k * scale.sparsity - shared, k - shared, shared_expert)


def parameters_by_role(scale: Scale, shape: Shape) -> dict[Role, int]:
    """Parameters of each role that a decoder has; a shared expert counts as hidden.

    Raises:
        ValueError: what `experts_of` refuses.
    """
    width = scale.width
    queries, keys = shape.query_heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = width * (2 * queries + 2 * keys)  # query and output, key and value
    gate = width * shape.query_heads if shape.gated_attention else 0
    gains = 2 * width + (2 * shape.head_size if shape.qk_norm else 0)
    experts = experts_of(scale, shape.mlp_ratio, shape.shared_expert)
    if experts is None:
        mlp = 3 * width * shape.mlp_ratio * width  # gate, up and down
        routed: dict[Role, int] = {}
    else:
        one = 3 * width * experts.hidden
        mlp = one if experts.shared else 0
        layers = scale.depth * experts.routed
        routed = {"router": layers * width, "expert": layers * one}
    return {
        "embedding": shape.vocab * width,
        "hidden": scale.depth * (attention + gate + mlp),
        "unembedding": shape.vocab * width,
        "vector": scale.depth * gains + width,
        **routed,
    }


def count_parameters(scale: Scale, shape: Shape, *, embeddings: bool = True) -> int:
    """All parameters, used by a token or not; without `embeddings` only those between the outer two."""
    counts = parameters_by_role(scale, shape)
    outer = 0 if embeddings else counts["embedding"] + counts["unembedding"]
    return sum(counts.values()) - outer


def flops_per_token(scale: Scale, shape: Shape) -> int:
    """Training FLOPs for one token, forward and backward: 6 N + 12 L H Q T (arXiv 2204.02311, appendix B).

    N is the parameters of all matrices that multiply a token's activations, so the unembedding counts and the
    embedding, a look-up, does not; of experts it is those that the token uses. The second term is attention's
    scores and weighted values for L blocks, H query heads of size Q and context T; as usual there, nothing is
    taken off for the causal mask.
    """
    counts = parameters_by_role(scale, shape)
    attention = 12 * scale.depth * shape.query_heads * shape.head_size * shape.context
    experts = experts_of(scale, shape.mlp_ratio, shape.shared_expert)
    routed = 0
    if experts is not None:
        routed = counts["router"] + counts["expert"] // experts.routed * experts.active
    return 6 * (counts["hidden"] + routed + counts["unembedding"]) + attention


def training_flops(scale: Scale, shape: Shape) -> int:
    """FLOPs of the whole run: of the tokens in its whole steps."""
    return flops_per_token(scale, shape) * scale.tokens_trained
