"""Scale: the sizes of one training run that a learning-rate law may depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Scale:
    """The covariates of every law. Whole floats such as 1e6 are taken as integers.

    Args:
        width: d_model, the size of the residual stream.
        depth: number of transformer blocks.
        tokens: training horizon T, in tokens.
        batch_tokens: tokens in one optimizer step B.
        granularity: routed experts that a token uses, at fixed active width; 1 for a dense model.
        sparsity: total over active experts; 1 for a dense model.

    Raises:
        ValueError: a field is not a positive whole number, or tokens < batch_tokens.
    """

    width: int
    depth: int
    tokens: int
    batch_tokens: int
    granularity: int = 1
    sparsity: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, positive_int(field.name, getattr(self, field.name)))
        if self.tokens < self.batch_tokens:
            raise ValueError(
                f"tokens must be at least batch_tokens={self.batch_tokens} (one step), got {self.tokens}"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps: tokens / batch_tokens rounded down, so that a run never exceeds its tokens."""
        return self.tokens // self.batch_tokens

    @property
    def tokens_trained(self) -> int:
        """The tokens that the whole steps cover; below `tokens` by less than one batch."""
        return self.steps * self.batch_tokens


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1; `name` is for the error text."""
    allowed = f"{name} must be a whole number of at least 1, got {value!r}"
    if isinstance(value, (bool, str, bytes)):
        raise ValueError(allowed)
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):  # None, nan and inf
        raise ValueError(allowed) from None
    if whole != value or whole < 1:
        raise ValueError(allowed)
    return whole
