"""Gradient clipping by the norm over all parameters; one damaged gradient leaves the others as they are."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients in place so that their total norm is at most `limit`; 0 clips nothing.

    A gradient with an entry that is not finite counts as zero: torch's own function would scale every other
    one by NaN or to zero for it, and no optimizer could then skip that matrix alone. Returns the norm as it
    was, a scalar on the device, not finite if any gradient is not. Nothing is read back to the host. Norms of
    sharded gradients (FSDP2) are those of the whole ones, which all ranks of their mesh have to ask for.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    shards = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # In float64, where no finite gradient has a norm that is not.
    norms = torch._foreach_norm(shards, 2, torch.float64)  # pyright: ignore[reportPrivateImportUsage]
    norms = whole_norms(torch.stack(norms), gradients)
    if limit:
        finite = torch.where(norms.isfinite(), norms, 0).norm()
        factor = (limit / (finite + EPS)).clamp(max=1.0)
        torch._foreach_mul_(shards, factor.float())  # pyright: ignore[reportPrivateImportUsage]
    return norms.norm()


def whole_norms(norms: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Norms of whole gradients from those of this rank's shards of them."""
    groups = [
        g.device_mesh.get_group(g.placements.index(Shard(0))) if isinstance(g, DTensor) else None
        for g in gradients
    ]
    for group in dict.fromkeys(groups):
        if group is not None:
            mask = torch.tensor([one is group for one in groups], device=norms.device)
            squares = torch.where(mask, norms.square(), 0)
            dist.all_reduce(squares, group=group)
            norms = torch.where(mask, squares.sqrt(), norms)
    return norms
