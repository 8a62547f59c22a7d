"""Optimizer steps over several processes: each matrix is updated by one rank, and no work is done twice.

A matrix sign needs the whole matrix. So matrices are divided among the ranks by cost. The owner of a matrix
keeps its state, receives the shards of its weight and gradient, updates it, and sends the shards back. They
travel in chunks, one while another is updated (see `exchange`).

- Parameters sharded on their first dimension by FSDP2 (`fully_shard`, also as HSDP) are recognised. Shards
  may be uneven or empty.
- Parameters that every rank holds, with equal gradients (DDP), are divided if there is a `process_group`.

Tensors that are updated element by element (AdamW) stay where they lie.
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

# Entries that a rank updates between two exchanges: enough for a batch that keeps the device busy, but so few
# that a model has several chunks, and that the buffers (about ten of this size) are small beside the model.
LARGEST_CHUNK = {"cpu": 2**20, "other": 2**24}


@dataclass
class Ownership:
    """Which rank updates which matrix: the costliest first, each goes to the rank with the least work so far.

    `loads` has the work of each rank, by group of ranks. `with_state` are the parameters that have state on
    any rank, `checked_equal` those of DDP whose gradients have been compared between ranks.
    """

    process_group: dist.ProcessGroup | None = None
    owners: dict[nn.Parameter, int] = field(default_factory=dict)
    loads: dict[Any, list[float]] = field(default_factory=dict)
    with_state: set[nn.Parameter] = field(default_factory=set)
    checked_equal: set[nn.Parameter] = field(default_factory=set)

    def group_of(self, parameter: Tensor) -> dist.ProcessGroup | None:
        """The ranks that a matrix is assigned within; None for one that this process updates alone."""
        if isinstance(parameter, DTensor):
            return parameter.device_mesh.get_group(_sharded_dim(parameter))
        return self.process_group

    def assign(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter its owner: the same on every rank, and for good, since its state lies there."""
        for parameter in sorted(parameters, key=_assignment_order):
            group = self.group_of(parameter)
            if group is not None and parameter not in self.owners:
                loads = self.loads.setdefault(group, [0.0] * group.size())
                rank = loads.index(min(loads))
                loads[rank] += cost(parameter.shape)
                self.owners[parameter] = rank

    def keeps(self, parameter: nn.Parameter) -> bool:
        """Whether this rank keeps state of the parameter: it owns it, or the parameter has no owner."""
        group = self.group_of(parameter)
        return parameter not in self.owners or group is None or self.owners[parameter] == group.rank()

    def chunks(self, parameters: Iterable[nn.Parameter]) -> list[Chunk]:
        """Divide parameters into chunks that lie alike and know how to make their parameters whole."""
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

        It is if no rank owns the whole parameter, and if the entry has one element for each element of
        `like`, or for each of its experts. `like` is the parameter for the entry of a single process, and the
        parameter's local tensor for the entry that a rank keeps.
        """
        if not isinstance(parameter, DTensor) or parameter in self.owners:
            return False
        experts = parameter.ndim == 3 and value.shape[:1] == like.shape[:1]
        return experts or value.shape == like.shape


def split_into_chunks(parameters: Iterable[nn.Parameter], ranks: int, limit: int) -> list[list[nn.Parameter]]:
    """Runs of parameters to exchange at once, of about `limit` entries for each rank to update.

    Parameters of one shape stand together, so that they are updated in one batch. If they are too many for
    one run, they are divided so that every rank owns equally many in each run.
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
            if entries > room or start:  # the rest of a divided shape would give one rank more than its share
                made.append([])
                room = ranks * limit
            made[-1] += run
            room -= entries
    return made


def _assignment_order(parameter: nn.Parameter) -> tuple[float, torch.Size]:
    """Sort key: the costliest first, equal shapes in sequence, so that the ranks share each shape evenly."""
    return -cost(parameter.shape), parameter.shape


def cost(shape: torch.Size) -> float:
    """Multiplications of the matrix sign of a matrix or a stack of them, up to a constant factor."""
    if len(shape) < 2:
        return float(shape.numel())
    return float(shape.numel()) * min(shape[-2:])


@dataclass
class FiniteCheck:
    """Which sharded tensors have finite gradients on all ranks of a group; known when `work` is done."""

    parameters: list[nn.Parameter]
    finite: Tensor  # a flag for each parameter
    work: Any


def start_finite_check(parameters: Iterable[nn.Parameter]) -> list[FiniteCheck]:
    """Start to find out which sharded tensors have a finite gradient on every rank.

    This is for tensors that every rank updates a part of, element by element: all ranks have to skip a tensor
    if the gradient of one rank's part is missing or not finite. An expert (3-D) lies on one rank.
    """
    by_group: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        if isinstance(p, DTensor) and p.requires_grad and p.ndim != 3:
            by_group.setdefault(p.device_mesh.get_group(_sharded_dim(p)), []).append(p)
    pending = []
    for group, members in by_group.items():
        ok = [p.grad is not None and local_tensor(p.grad).isfinite().all() for p in members]
        device = local_tensor(members[0]).device
        flags = torch.stack([torch.as_tensor(flag, device=device) for flag in ok]).to(torch.int32)
        work = dist.all_reduce(flags, op=dist.ReduceOp.MIN, group=group, async_op=True)
        pending.append(FiniteCheck(members, flags, work))
    return pending


def finish_finite_check(pending: Iterable[FiniteCheck]) -> dict[nn.Parameter, Tensor]:
    """Wait for the checks: whether each tensor has a finite gradient on every rank."""
    found: dict[nn.Parameter, Tensor] = {}
    for check in pending:
        check.work.wait()
        found |= zip(check.parameters, check.finite.bool(), strict=True)
    return found


def sharded_entry(value: Tensor, parameter: DTensor) -> DTensor:
    """The entry of the state whose rows on this rank are `value`, sharded as its parameter is."""
    shape = torch.Size((parameter.shape[0], *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, placements, shape=shape, stride=stride)


def check_layout(name: str, parameter: nn.Parameter) -> None:
    """Raise ValueError for a DTensor that is not sharded as FSDP2 does it."""
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
