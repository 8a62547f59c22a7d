"""Scale: the sizes of one training run that a learning-rate law may depend on."""

from hyperp.validation import Whole, validated


@validated
class Scale:
    """The sizes of one run, which are the covariates of every law. Whole floats such as 1e6 become integers.

    Args:
        width: d_model, the size of the residual stream.
        depth: number of transformer blocks.
        tokens: training horizon T, in tokens.
        batch_tokens: tokens in one optimizer step B.
        granularity: k, routed experts that a token uses, at fixed active width; 1 for a dense model.
        sparsity: S, total over active experts; 1 for a dense model.

    Raises:
        ValueError: a field is not a positive whole number, or tokens < batch_tokens.
    """

    width: Whole
    depth: Whole
    tokens: Whole
    batch_tokens: Whole
    granularity: Whole = 1
    sparsity: Whole = 1

    def __post_init__(self) -> None:
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
        """Tokens in the whole steps of the run: `tokens`, less a remainder smaller than one batch."""
        return self.steps * self.batch_tokens
