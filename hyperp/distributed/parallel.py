"""One model on several devices: replicated (DDP) or sharded (FSDP2), and what a training step asks of either.

Both average gradients over the ranks while the backward pass goes on; FSDP2 also fetches the weights of the
next block while one is computed. Which of the two it is changes no result but by rounding.
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
# DDP's argument for buffers at every forward pass; the older name is deprecated since torch 2.13.
NAMES = ("forward_sync_buffers", "broadcast_buffers")
SYNC_BUFFERS = next(name for name in NAMES if name in signature(DistributedDataParallel).parameters)


class Parallel:
    """A model as this rank runs it: `forward` is to be called for training, `group` is for the optimizer."""

    def __init__(self, model: nn.Module, kind: str, ranks: Ranks, device: torch.device, compile: bool):
        self.model, self.forward = model, cast("Callable[..., Any]", model)
        self.sharded = ranks.is_distributed and kind == "fsdp"
        self.group = dist.group.WORLD if ranks.is_distributed and not self.sharded else None
        if compile:
            torch._dynamo.reset()  # a process that does run after run would reach the limit of recompilations
            _compile(model, by_block=self.sharded)
        if self.sharded:
            mesh = init_device_mesh(device.type, (ranks.size,))
            for block in cast("nn.ModuleList", model.blocks):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        elif ranks.is_distributed:
            # Buffers are tables that never change. Modules of one device need no device_ids.
            options: dict[str, Any] = {SYNC_BUFFERS: False}
            self.forward = DistributedDataParallel(model, **options)

    @contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        """Around a micro-batch, backward pass included: gradients are averaged at the last one alone."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
            yield
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield


def _compile(model: nn.Module, by_block: bool) -> None:
    # The hooks by which FSDP2 fetches weights lie between blocks, where a graph would break.
    for part in cast("nn.ModuleList", model.blocks) if by_block else [model]:
        part.compile()
