"""Parameters and training FLOPs of a decoder, dense or with experts, computed from its sizes."""

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
        head_size: channels of a query, key or value in one head; even, for the rotary embedding.
        query_heads: query heads in a block; query_heads x head_size may differ from the width.
        kv_heads: key-value heads, each shared by query_heads / kv_heads query heads.
        mlp_ratio: hidden width of the SwiGLU MLP over the width.
        gated_attention: one sigmoid gate for each head, computed from the block's input.
        qk_norm: RMS normalisation of queries and keys, with a gain for each of the head_size channels.
        shared_expert: every token uses one expert that is not routed; it counts in granularity.
        sqrt_gate: weight experts by the square roots of their gates (SqrtGate, arXiv 2603.28743).

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

    A token uses `active` of the `routed` experts, and one more, the same for all tokens, if `shared`.
    """

    hidden: int
    routed: int
    active: int
    shared: bool


def experts_of(scale: Scale, mlp_ratio: int, shared_expert: bool) -> Experts | None:
    """The experts of a scale, None for a dense model.

    A token uses k = granularity of k x sparsity experts, a shared one among them (arXiv 2603.28743).

    Raises:
        ValueError: granularity does not divide the hidden width of the dense MLP, or leaves no routed expert
            beside the shared one.
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
    """The number of parameters of each role in a decoder; a shared expert counts as hidden.

    Raises:
        ValueError: experts that do not fit, see `experts_of`.
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
    """The number of all parameters; without `embeddings`, all but those of the embedding and unembedding."""
    counts = parameters_by_role(scale, shape)
    outer = 0 if embeddings else counts["embedding"] + counts["unembedding"]
    return sum(counts.values()) - outer


def flops_per_token(scale: Scale, shape: Shape) -> int:
    """Training FLOPs for one token, forward and backward: 6 N + 12 L H Q T (arXiv 2204.02311, appendix B).

    N counts the parameters of all matrices that multiply the activations of a token: the unembedding, and the
    experts that the token uses, but not the embedding, which is a look-up. The second term is for the scores
    and weighted values of attention, with L blocks, H query heads of size Q and context T. As is usual, the
    causal mask is not subtracted.
    """
    counts = parameters_by_role(scale, shape)
    attention = 12 * scale.depth * shape.query_heads * shape.head_size * shape.context
    experts = experts_of(scale, shape.mlp_ratio, shape.shared_expert)
    routed = 0
    if experts is not None:
        routed = counts["router"] + counts["expert"] // experts.routed * experts.active
    return 6 * (counts["hidden"] + routed + counts["unembedding"]) + attention


def training_flops(scale: Scale, shape: Shape) -> int:
    """Training FLOPs of a whole run, for the tokens in its whole steps."""
    return flops_per_token(scale, shape) * scale.tokens_trained
