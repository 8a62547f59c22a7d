"""Parameters and training FLOPs of the dense decoder, from its sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from hyperp.scale import Scale, positive_int

if TYPE_CHECKING:
    from hyperp.roles import Role


@dataclass(frozen=True, slots=True)
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

    Raises:
        ValueError: a size is not a positive whole number, head_size is odd, or kv_heads does not divide
            query_heads.
    """

    vocab: int
    context: int
    head_size: int
    query_heads: int
    kv_heads: int
    mlp_ratio: int = 4
    gated_attention: bool = False
    qk_norm: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("gated_attention", "qk_norm"):
                if not isinstance(value, bool):
                    raise ValueError(f"{field.name} must be true or false, got {value!r}")
            else:
                object.__setattr__(self, field.name, positive_int(field.name, value))
        if self.head_size % 2:
            raise ValueError(f"head_size must be even (rotary embedding), got {self.head_size}")
        if self.query_heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide query_heads={self.query_heads}, got {self.kv_heads}")


def parameters_by_role(scale: Scale, shape: Shape) -> dict[Role, int]:
    """Parameters of each role of a dense decoder.

    Raises:
        ValueError: the scale is a mixture of experts.
    """
    if scale.granularity > 1 or scale.sparsity > 1:
        raise ValueError(
            "granularity and sparsity must be 1 (dense models are counted here), "
            f"got {scale.granularity} and {scale.sparsity}"
        )
    width = scale.width
    queries, keys = shape.query_heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = width * (2 * queries + 2 * keys)  # query and output, key and value
    gate = width * shape.query_heads if shape.gated_attention else 0
    mlp = 3 * width * shape.mlp_ratio * width  # gate, up and down
    gains = 2 * width + (2 * shape.head_size if shape.qk_norm else 0)
    return {
        "embedding": shape.vocab * width,
        "hidden": scale.depth * (attention + gate + mlp),
        "unembedding": shape.vocab * width,
        "vector": scale.depth * gains + width,
    }


def parameters(scale: Scale, shape: Shape, *, embeddings: bool = True) -> int:
    """All parameters, or without those of the embedding and the unembedding."""
    counts = parameters_by_role(scale, shape)
    outer = 0 if embeddings else counts["embedding"] + counts["unembedding"]
    return sum(counts.values()) - outer


def flops_per_token(scale: Scale, shape: Shape) -> int:
    """Training FLOPs for one token, forward and backward: 6 N + 12 L H Q T (arXiv 2204.02311, appendix B).

    N is the parameters of all matrices that multiply activations, so the unembedding counts and the
    embedding, a look-up, does not. The second term is attention's scores and weighted values for L blocks,
    H query heads of size Q and context T; as usual there, nothing is taken off for the causal mask.
    """
    counts = parameters_by_role(scale, shape)
    attention = 12 * scale.depth * shape.query_heads * shape.head_size * shape.context
    return 6 * (counts["hidden"] + counts["unembedding"]) + attention


def training_flops(scale: Scale, shape: Shape) -> int:
    """FLOPs of the whole run: of the tokens in its whole steps."""
    return flops_per_token(scale, shape) * scale.tokens_trained
