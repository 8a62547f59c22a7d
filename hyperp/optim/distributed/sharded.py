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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from hyperp.optim.distributed.exchange import Local, Part, Replicated, Sharded, local, rows_of

# Entries that a rank updates between two exchanges: enough for a batch that keeps the device busy, and few
# enough that a model has several chunks and the buffers (some ten of this size) are small beside it.
LARGEST_CHUNK = {"cpu": 2**20, "other": 2**24}


@dataclass
class Dealer:
    """Who updates what: parameters go, costliest first, to the rank with the least to do so far."""

    process_group: dist.ProcessGroup | None = None
    owners: dict[nn.Parameter, int] = field(default_factory=dict)
    loads: dict[Any, list[float]] = field(default_factory=dict)
    begun: set[nn.Parameter] = field(default_factory=set)  # have state, on whichever rank
    compared: set[nn.Parameter] = field(default_factory=set)  # had equal gradients when last looked at

    def group_of(self, parameter: nn.Parameter) -> dist.ProcessGroup | None:
        """The ranks among which a matrix is dealt out; None for one that this process updates alone."""
        if isinstance(parameter, DTensor):
            return parameter.device_mesh.get_group(_sharded_dim(parameter))
        return self.process_group

    def deal(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter its owner; the same on every rank, and for good, since state lies there."""
        for parameter in sorted(parameters, key=_turn):
            group = self.group_of(parameter)
            if group is not None and parameter not in self.owners:
                loads = self.loads.setdefault(group, [0.0] * group.size())
                rank = loads.index(min(loads))
                loads[rank] += cost(parameter.shape)
                self.owners[parameter] = rank

    def mine(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter as a whole, and keeps its state."""
        group = self.group_of(parameter)
        return group is None or self.owners[parameter] == group.rank()

    def parts(self, parameters: Iterable[nn.Parameter]) -> list[Part]:
        """The parameters by how they lie, what is dealt out in chunks, with the way to make them whole."""
        by_kind: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            key = (isinstance(parameter, DTensor), self.group_of(parameter), parameter.dtype)
            by_kind.setdefault(key, []).append(parameter)
        made: list[Part] = []
        for (sharded, group, _), members in by_kind.items():
            if group is None:
                made.append(Local(members))
                continue
            kind = Sharded if sharded else Replicated
            limit = LARGEST_CHUNK["cpu" if members[0].device.type == "cpu" else "other"]
            made += [kind(chunk, group, self.owners) for chunk in chunks(members, group.size(), limit)]
        return made


def chunks(parameters: Iterable[nn.Parameter], ranks: int, limit: int) -> list[list[nn.Parameter]]:
    """Runs of parameters to exchange at once, of about `limit` entries for each rank to update.

    All of one shape stand together, so that they are updated in one batch; where they are too many for that
    they are divided so that every rank has as many in a run, as they were dealt.
    """
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=_turn):
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


def _turn(parameter: nn.Parameter) -> tuple[float, torch.Size]:
    """The costliest are dealt first, and those of one shape one after the other, so that ranks share them."""
    return -cost(parameter.shape), parameter.shape


def cost(shape: torch.Size) -> float:
    """Multiplications of a matrix sign, up to a factor, of a matrix or a stack of them."""
    if len(shape) < 2:
        return float(shape.numel())
    return float(shape.numel()) * min(shape[-2:])


@dataclass
class Verdict:
    """Which of a group's sharded tensors are sound on all of its ranks: on its way until `work` is done."""

    parameters: list[nn.Parameter]
    sound: Tensor  # one flag for each
    work: Any


def ask_all_ranks(parameters: Iterable[nn.Parameter]) -> list[Verdict]:
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
        ok = [p.grad is not None and local(p.grad).isfinite().all() for p in members]
        device = local(members[0]).device
        flags = torch.stack([torch.as_tensor(flag, device=device) for flag in ok]).to(torch.int32)
        work = dist.all_reduce(flags, op=dist.ReduceOp.MIN, group=group, async_op=True)
        asked.append(Verdict(members, flags, work))
    return asked


def answers(asked: Iterable[Verdict]) -> dict[nn.Parameter, Tensor]:
    """What all ranks found: a flag for each tensor."""
    found: dict[nn.Parameter, Tensor] = {}
    for verdict in asked:
        verdict.work.wait()
        found |= zip(verdict.parameters, verdict.sound.bool(), strict=True)
    return found


def full_state(value: Tensor, parameter: DTensor) -> Tensor:
    """An entry of the state that is sharded like its parameter, made whole."""
    if not _lies_like(value, parameter, parameter.to_local().shape):
        return value
    shape = torch.Size((parameter.shape[0], *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, placements, shape=shape, stride=stride).full_tensor()


def own_state(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's shard of an entry of the state that lies like a sharded parameter."""
    if not isinstance(parameter, DTensor) or not _lies_like(value, parameter, parameter.shape):
        return value
    group = Dealer().group_of(parameter)
    assert group is not None
    return rows_of(value, group.rank(), group.size())


def _lies_like(value: Tensor, parameter: Tensor, shape: torch.Size) -> bool:
    """Whether the entry has an element for each of the parameter's, or one for each of its experts."""
    experts = parameter.ndim == 3 and value.shape[:1] == shape[:1]
    return experts or value.shape == shape


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
