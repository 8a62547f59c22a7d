"""One model on several devices: replicated (DDP) or sharded (FSDP2), behind one interface for training.

Both average gradients over the ranks during the backward pass; FSDP2 also fetches the weights of the next
block while one is computed. The results of the two differ by rounding only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from hyperp.distributed.ranks import Ranks

KINDS = ("ddp", "fsdp")
# DDP's argument for sending buffers at every forward pass: torch 2.13 deprecates the older name.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
SYNC_BUFFERS = next(name for name in _NAMES if name in signature(DistributedDataParallel).parameters)


class ParallelModel:
    """A model as this rank runs it. Call `forward` in training steps, and give `group` to the optimizer.

    Args:
        model: is sharded (FSDP2) and compiled in place.
        kind: one of KINDS; without effect on a single rank.
        ranks: the ranks that train the model together.
        device: of this rank.
        compile: whether to compile the model.
    """

    def __init__(self, model: nn.Module, kind: str, ranks: Ranks, device: torch.device, compile: bool):
        self.model, self.forward = model, cast("Callable[..., Any]", model)
        self.sharded = ranks.is_distributed and kind == "fsdp"
        self.group = dist.group.WORLD if ranks.is_distributed and not self.sharded else None
        if compile:
            torch._dynamo.reset()  # or a process that does many runs reaches the limit of recompilations
            _compile(model, by_block=self.sharded)
        if self.sharded:
            mesh = init_device_mesh(device.type, (ranks.size,))
            for block in cast("nn.ModuleList", model.blocks):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        elif ranks.is_distributed:
            # Buffers are constant tables. A module on one device needs no device_ids.
            options: dict[str, Any] = {SYNC_BUFFERS: False}
            self.forward = DistributedDataParallel(model, **options)

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        """Enclose the forward and backward pass of a micro-batch; only the `last` one averages gradients."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
            yield
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield


def _compile(model: nn.Module, by_block: bool) -> None:
    # FSDP2 fetches weights in hooks between blocks, where a graph of the whole model would break.
    for part in cast("nn.ModuleList", model.blocks) if by_block else [model]:
        part.compile()
