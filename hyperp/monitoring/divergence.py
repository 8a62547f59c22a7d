"""Detect that a run has diverged, from the training loss and the gradient norm of every step."""

import math

import torch
from torch import Tensor

PATIENCE = 10  # steps in a row with a gradient that is not finite
WINDOW = 32  # steps over which the loss is averaged


class DivergenceMonitor:
    """Whether a run has diverged. Updated on the device; only `reason` and `mean_loss` make the host wait.

    A run has diverged when a training loss is not finite, when the gradient is not finite for PATIENCE steps
    in a row, or when the loss, averaged over about WINDOW steps, exceeds twice that of a uniform guess; no
    run at a usable rate gets that high. The worst values are kept, so the verdict does not depend on how
    often it is read.

    Args:
        vocab: number of token ids; a uniform guess has a loss of log(vocab) nats per token.
        device: of the losses and gradient norms.
    """

    def __init__(self, vocab: int, device: torch.device):
        self.uniform = math.log(vocab)
        # mean loss (starts at that of a uniform guess), largest mean so far, bad gradients in a row now, most
        # of them in a row, weight that the uniform guess still has in the mean
        self.state = torch.tensor([self.uniform, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=device)

    def update(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Add one step; both arguments are scalars on the device."""
        mean, worst, bad, most, start = self.state.unbind()
        mean = mean + (loss.detach().double() - mean) / WINDOW
        bad = (bad + 1) * ~torch.isfinite(gradient_norm)
        worst, most = torch.maximum(worst, mean), torch.maximum(most, bad)
        self.state = torch.stack((mean, worst, bad, most, start * (1 - 1 / WINDOW)))

    def mean_loss(self) -> float | None:
        """Training loss over about the last WINDOW steps, nats per token; None if it is not finite.

        The uniform guess that the average started from is removed.
        """
        mean, *_, start = self.state.tolist()
        mean = (mean - start * self.uniform) / (1 - start) if start < 1 else math.nan
        return mean if math.isfinite(mean) else None

    def reason(self, step: int) -> str | None:
        """Why the run has diverged by `step`; None if it has not."""
        _, worst, _, most, _ = self.state.tolist()
        if not math.isfinite(worst):
            return f"training loss not finite by step {step}"
        if worst > 2 * self.uniform:
            return (
                f"training loss {worst:.4g} by step {step}, above twice a uniform guess of {self.uniform:.4g}"
            )
        if most >= PATIENCE:
            return f"gradient not finite for {most:.0f} steps in a row by step {step}"
        return None
