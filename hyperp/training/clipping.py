"""Gradient clipping by the norm over all parameters, which a single damaged gradient does not upset."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from hyperp.optim.distributed.exchange import local_tensor

EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients in place so that their total norm is at most `limit`; 0 clips nothing.

    A gradient with an entry that is not finite counts as zero. torch's own function would scale all the other
    gradients by NaN or to zero, and no optimizer could then skip that one matrix. For sharded gradients
    (FSDP2) the norms are those of the whole gradients, so all ranks of their mesh must call this.

    Returns:
        The norm before clipping, a scalar on the device; not finite if any gradient is not. The host does not
        wait for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    shards = [local_tensor(g) for g in gradients]
    # In float64, in which every finite gradient has a finite norm.
    norms = torch._foreach_norm(shards, 2, torch.float64)  # pyright: ignore[reportPrivateImportUsage]
    norms = whole_norms(torch.stack(norms), gradients)
    if limit:
        finite = torch.where(norms.isfinite(), norms, 0).norm()
        factor = (limit / (finite + EPS)).clamp(max=1.0)
        torch._foreach_mul_(shards, factor.float())  # pyright: ignore[reportPrivateImportUsage]
    return norms.norm()


def whole_norms(norms: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Norms of the whole gradients, from the norms of this rank's shards."""
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
