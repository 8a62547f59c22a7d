"""Optimizer steps over several processes: every matrix is whole on one rank, and no rank does another's work.

A matrix sign needs the whole matrix. So matrices are dealt out over the ranks by cost: the owner of a matrix
keeps its state, receives the shards of its weight and gradient, updates it, and sends the shards back. They
travel in chunks, one while another is updated (see `exchange`).

- Parameters sharded on their first dimension by FSDP2 (`fully_shard`; HSDP too) are recognised by themselves.
  Shards may be uneven or empty.
- Parameters that every rank holds, with equal gradients (DDP), are dealt out if a `process_group` is given.

What is updated element by element (AdamW) stays where it lies.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from hyperp.optim.distributed.exchange import (
    Chunk,
    LocalChunk,
    ReplicatedChunk,
    ShardedChunk,
    local_tensor,
)

# Entries that a rank updates between two exchanges: enough for a batch that keeps the device busy, and few
# enough that a model has several chunks and the buffers (some ten of this size) are small beside it.
LARGEST_CHUNK = {"cpu": 2**20, "other": 2**24}


@dataclass
class Ownership:
    """Who updates what: parameters go, costliest first, to the rank with the least to do so far."""

    process_group: dist.ProcessGroup | None = None
    owners: dict[nn.Parameter, int] = field(default_factory=dict)
    loads: dict[Any, list[float]] = field(default_factory=dict)
    with_state: set[nn.Parameter] = field(default_factory=set)  # have state, on whichever rank
    checked_equal: set[nn.Parameter] = field(default_factory=set)  # had equal gradients when last looked at

    def group_of(self, parameter: Tensor) -> dist.ProcessGroup | None:
        """The ranks among which a matrix is dealt out; None for one that this process updates alone."""
        if isinstance(parameter, DTensor):
            return parameter.device_mesh.get_group(_sharded_dim(parameter))
        return self.process_group

    def assign(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter its owner; the same on every rank, and for good, since state lies there."""
        for parameter in sorted(parameters, key=_assignment_order):
            group = self.group_of(parameter)
            if group is not None and parameter not in self.owners:
                loads = self.loads.setdefault(group, [0.0] * group.size())
                rank = loads.index(min(loads))
                loads[rank] += cost(parameter.shape)
                self.owners[parameter] = rank

    def is_mine(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter as a whole, and keeps its state."""
        group = self.group_of(parameter)
        return group is None or self.owners[parameter] == group.rank()

    def chunks(self, parameters: Iterable[nn.Parameter]) -> list[Chunk]:
        """The parameters by how they lie, what is dealt out in chunks, with the way to make them whole."""
        by_kind: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            key = (isinstance(parameter, DTensor), self.group_of(parameter), parameter.dtype)
            by_kind.setdefault(key, []).append(parameter)
        made: list[Chunk] = []
        for (sharded, group, _), members in by_kind.items():
            if group is None:
                made.append(LocalChunk(members))
                continue
            kind = ShardedChunk if sharded else ReplicatedChunk
            limit = LARGEST_CHUNK["cpu" if members[0].device.type == "cpu" else "other"]
            made += [
                kind(chunk, group, self.owners) for chunk in split_into_chunks(members, group.size(), limit)
            ]
        return made

    def shards_entry(self, parameter: Tensor, value: Tensor, like: Tensor) -> TypeGuard[DTensor]:
        """Whether an entry of the state is sharded as its parameter is.

        `like` is the parameter for an entry as one process has it, its local tensor for a rank's part. The
        entry is sharded if it has an element for each of the parameter's elements, or one for each of its
        experts, and no rank owns the parameter as a whole.
        """
        if not isinstance(parameter, DTensor) or parameter in self.owners:
            return False
        experts = parameter.ndim == 3 and value.shape[:1] == like.shape[:1]
        return experts or value.shape == like.shape


def split_into_chunks(parameters: Iterable[nn.Parameter], ranks: int, limit: int) -> list[list[nn.Parameter]]:
    """Runs of parameters to exchange at once, of about `limit` entries for each rank to update.

    All of one shape stand together, so that they are updated in one batch; where they are too many for that
    they are divided so that every rank has as many in a run, as they were dealt.
    """
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=_assignment_order):
        by_shape.setdefault(parameter.shape, []).append(parameter)
    made: list[list[nn.Parameter]] = []
    room = 0
    for shape, alike in by_shape.items():
        most = ranks * max(1, limit // shape.numel())
        for start in range(0, len(alike), most):
            run = alike[start : start + most]
            entries = len(run) * shape.numel()
            if entries > room:
                made.append([])
                room = ranks * limit
            made[-1] += run
            room -= entries
    return made


def _assignment_order(parameter: nn.Parameter) -> tuple[float, torch.Size]:
    """The costliest are dealt first, and those of one shape one after the other, so that ranks share them."""
    return -cost(parameter.shape), parameter.shape


def cost(shape: torch.Size) -> float:
    """Multiplications of a matrix sign, up to a factor, of a matrix or a stack of them."""
    if len(shape) < 2:
        return float(shape.numel())
    return float(shape.numel()) * min(shape[-2:])


@dataclass
class FiniteCheck:
    """Which of a group's sharded tensors are sound on all of its ranks: on its way until `work` is done."""

    parameters: list[nn.Parameter]
    sound: Tensor  # one flag for each
    work: Any


def start_finite_check(parameters: Iterable[nn.Parameter]) -> list[FiniteCheck]:
    """Start to find out which sharded tensors have a finite gradient on every rank.

    For those that are updated element by element, each rank its part: all ranks have to skip a tensor if one
    rank's part is bad or missing. Experts (3-D) lie on one rank each.
    """
    by_group: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        if isinstance(p, DTensor) and p.requires_grad and p.ndim != 3:
            by_group.setdefault(p.device_mesh.get_group(_sharded_dim(p)), []).append(p)
    asked = []
    for group, members in by_group.items():
        ok = [p.grad is not None and local_tensor(p.grad).isfinite().all() for p in members]
        device = local_tensor(members[0]).device
        flags = torch.stack([torch.as_tensor(flag, device=device) for flag in ok]).to(torch.int32)
        work = dist.all_reduce(flags, op=dist.ReduceOp.MIN, group=group, async_op=True)
        asked.append(FiniteCheck(members, flags, work))
    return asked


def finish_finite_check(asked: Iterable[FiniteCheck]) -> dict[nn.Parameter, Tensor]:
    """What all ranks found: a flag for each tensor."""
    found: dict[nn.Parameter, Tensor] = {}
    for check in asked:
        check.work.wait()
        found |= zip(check.parameters, check.sound.bool(), strict=True)
    return found


def sharded_entry(value: Tensor, parameter: DTensor) -> DTensor:
    """This rank's rows of an entry of the state as a tensor that is sharded as its parameter is."""
    shape = torch.Size((parameter.shape[0], *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, placements, shape=shape, stride=stride)


def check_layout(name: str, parameter: nn.Parameter) -> None:
    """Raise ValueError for a DTensor that does not lie as FSDP2 lays it."""
    if isinstance(parameter, DTensor):
        _sharded_dim(parameter, name)


def _sharded_dim(parameter: DTensor, name: str = "a parameter") -> int:
    dims = [i for i, p in enumerate(parameter.placements) if not isinstance(p, Replicate)]
    if len(dims) != 1 or parameter.placements[dims[0]] != Shard(0):
        raise ValueError(
            f"{name} must be sharded on its first dimension over one dimension of its mesh, as fully_shard "
            f"does, got placements {parameter.placements}"
        )
    return dims[0]
