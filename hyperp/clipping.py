"""Gradient clipping by the norm over all parameters; one damaged gradient leaves the others as they are."""

from collections.abc import Iterable

import torch
from torch import Tensor

EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients in place so that their total norm is at most `limit`; 0 clips nothing.

    A gradient with an entry that is not finite counts as zero: torch's own function would scale every other
    one by NaN or to zero for it, and no optimizer could then skip that matrix alone. Returns the norm as it
    was, a scalar on the device, not finite if any gradient is not. Nothing is read back to the host.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    # In float64, where no finite gradient has a norm that is not.
    norms = torch._foreach_norm(gradients, 2, torch.float64)  # pyright: ignore[reportPrivateImportUsage]
    norms = torch.stack(norms)
    if limit:
        finite = torch.where(norms.isfinite(), norms, 0).norm()
        factor = (limit / (finite + EPS)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor.float())  # pyright: ignore[reportPrivateImportUsage]
    return norms.norm()
