"""Optimizer steps over several processes: every matrix is whole on one rank, and no rank does another's work.

A matrix sign needs the whole matrix. So matrices are dealt out over the ranks by cost: the owner of a matrix
keeps its state, receives the shards of its weight and gradient, updates it, and sends the shards back. An
exchange (weights, gradients, and back) serves all matrices of a parameter group.

- Parameters sharded on their first dimension by FSDP2 (`fully_shard`; HSDP too) are recognised by themselves.
  Shards may be uneven or empty.
- Parameters that every rank holds, with equal gradients (DDP), are dealt out if a `process_group` is given.

What is updated element by element (AdamW) stays where it lies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from hyperp.optim.rule import SphereError


@dataclass
class Whole:
    """A parameter as the rank that updates it sees it: the weight to write to, and its gradient if any."""

    parameter: nn.Parameter
    W: Tensor
    G: Tensor | None


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
        for parameter in sorted(parameters, key=lambda p: -cost(p.shape)):
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

    def parts(self, parameters: Sequence[nn.Parameter]) -> "list[Part]":
        """The parameters by how they lie, each part with the way to make its matrices whole."""
        by_kind: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            key = (isinstance(parameter, DTensor), self.group_of(parameter), parameter.dtype)
            by_kind.setdefault(key, []).append(parameter)
        made: list[Part] = []
        for (sharded, group, _), members in by_kind.items():
            kind = Sharded if sharded else Replicated
            made.append(Local(members) if group is None else kind(members, group, self.owners))
        return made


def cost(shape: torch.Size) -> float:
    """Multiplications of a matrix sign, up to a factor, of a matrix or a stack of them."""
    if len(shape) < 2:
        return float(shape.numel())
    return float(shape.numel()) * min(shape[-2:])


@dataclass
class Local:
    """Parameters that this process updates alone."""

    parameters: list[nn.Parameter]

    def collect(self, with_gradients: bool = True) -> list[Whole]:
        """What this rank has to update."""
        return [Whole(p, local(p), gradient(p) if with_gradients else None) for p in self.parameters]

    def spread(self, wholes: list[Whole]) -> None:
        """Nothing: they were updated in place."""


@dataclass
class Replicated:
    """Parameters that every rank of a group holds, with equal gradients."""

    parameters: list[nn.Parameter]
    group: dist.ProcessGroup
    owners: dict[nn.Parameter, int]

    def collect(self, with_gradients: bool = True) -> list[Whole]:
        """Those that this rank owns; nothing is sent."""
        mine = [p for p in self.parameters if self.owners[p] == self.group.rank()]
        return [Whole(p, p, gradient(p) if with_gradients else None) for p in mine]

    def agree(self, error: ValueError | None) -> None:
        """Raise on all ranks what one has met, before anything is sent."""
        _agree(error, self.group)

    def check_averaged(self) -> None:
        """Raise ValueError on all ranks if their gradients are not the same ones; looked at once."""
        told: list[Any] = [None] * self.group.size()
        norms = [0.0 if p.grad is None else float(p.grad.norm()) for p in self.parameters]
        dist.all_gather_object(told, norms, group=self.group)
        if any(abs(a - b) > 1e-2 * abs(b) for norms in told for a, b in zip(norms, told[0], strict=True)):
            raise ValueError(
                "gradients must be equal on all ranks of process_group, as DistributedDataParallel makes "
                f"them, got norms {told}"
            )

    def spread(self, wholes: list[Whole]) -> None:  # noqa: ARG002 - updated in place
        """Every owner sends what it has updated to all others."""
        works = []
        for rank in range(self.group.size()):
            members = [p for p in self.parameters if self.owners[p] == rank]
            if members:
                flat = _flat(members)
                work = dist.broadcast(flat, group_src=rank, group=self.group, async_op=True)
                works.append((work, flat, members))
        for work, flat, members in works:
            work.wait()
            if self.owners[members[0]] != self.group.rank():
                _unflatten_into(flat, members)


@dataclass
class Sharded:
    """DTensor parameters, sharded on their first dimension over a group."""

    parameters: list[nn.Parameter]
    group: dist.ProcessGroup
    owners: dict[nn.Parameter, int]

    def collect(self, with_gradients: bool = True) -> list[Whole]:
        """Shards of weights and gradients go to the owners, who put them together."""
        weights = self._gather([local(p) for p in self.parameters])
        mine = self._owned(self.group.rank())
        if not with_gradients:
            return [Whole(p, W, None) for p, W in zip(mine, weights, strict=True)]
        gradients = self._gather([gradient(p) for p in self.parameters])
        return [Whole(p, W, G) for p, W, G in zip(mine, weights, gradients, strict=True)]

    def spread(self, wholes: list[Whole]) -> None:
        """The owners send every rank its shards of the updated weights."""
        rank, ranks = self.group.rank(), range(self.group.size())
        outgoing = [[rows_of(whole.W, r, len(ranks)) for whole in wholes] for r in ranks]
        incoming = [[local(p) for p in self._owned(r)] for r in ranks]
        device, dtype = _kind(self.parameters)
        flat = self._exchange(
            [_flat(shards, device, dtype) for shards in outgoing],
            [sum(shard.numel() for shard in shards) for shards in incoming],
        )
        for shards, received in zip(incoming, flat, strict=True):
            _unflatten_into(received, shards)
        assert len(wholes) == len(self._owned(rank))

    def agree(self, error: ValueError | None) -> None:
        """Raise on all ranks what one has met, before anything is sent."""
        _agree(error, self.group)

    def _owned(self, rank: int) -> list[nn.Parameter]:
        return [p for p in self.parameters if self.owners[p] == rank]

    def _gather(self, shards: list[Tensor]) -> list[Tensor]:
        rank, ranks = self.group.rank(), range(self.group.size())
        device, dtype = shards[0].device, shards[0].dtype
        of = dict(zip(self.parameters, shards, strict=True))
        outgoing = [_flat([of[p] for p in self._owned(r)], device, dtype) for r in ranks]
        mine = self._owned(rank)
        sizes = [sum(row_range(p.shape, r, len(ranks))[1] for p in mine) for r in ranks]
        received = self._exchange(outgoing, sizes)
        wholes = [torch.empty(p.shape, dtype=dtype, device=device) for p in mine]
        for r, flat in zip(ranks, received, strict=True):
            _unflatten_into(flat, [rows_of(whole, r, len(ranks)) for whole in wholes])
        return wholes

    def _exchange(self, outgoing: list[Tensor], sizes: list[int]) -> list[Tensor]:
        sent = torch.cat(outgoing)
        received = sent.new_empty(sum(sizes))
        dist.all_to_all_single(received, sent, sizes, [len(part) for part in outgoing], group=self.group)
        return list(received.split(sizes))


Part = Local | Replicated | Sharded


def local(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter; writing to it writes to the parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's part of the gradient, NaN if there is none. Raises ValueError for a sparse one."""
    if parameter.grad is None:
        return torch.full_like(local(parameter), torch.nan)
    found = local(parameter.grad)
    if found.layout != torch.strided:
        raise ValueError(f"gradients must be dense, got layout {found.layout}")
    return found


def row_range(shape: torch.Size, rank: int, ranks: int) -> tuple[int, int]:
    """Rows of a rank's shard of the first dimension, and how many entries they have, as torch.chunk deals."""
    size = -(-shape[0] // ranks)
    rows = max(0, min(size, shape[0] - rank * size))
    return rows, rows * shape[1:].numel()


def rows_of(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The shard of a rank, as a view."""
    size = -(-whole.shape[0] // ranks)
    start = min(rank * size, whole.shape[0])
    return whole[start : start + row_range(whole.shape, rank, ranks)[0]]


def _kind(parameters: Sequence[nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    """Device and dtype that all of these parameters share."""
    return parameters[0].device, parameters[0].dtype


def skip_together(parameters: Sequence[nn.Parameter], wholes: Sequence[Whole]) -> None:
    """A sharded tensor that is updated element by element is skipped by all ranks if one rank's part is bad.

    Parts that are bad, or missing, elsewhere become NaN here. Experts (3-D) lie on one rank each.
    """
    by_group: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        if isinstance(p, DTensor) and p.requires_grad and p.ndim != 3:
            by_group.setdefault(p.device_mesh.get_group(_sharded_dim(p)), []).append(p)
    own = {whole.parameter: whole for whole in wholes}
    for group, members in by_group.items():
        ok = [p.grad is not None and local(p.grad).isfinite().all() for p in members]
        device = local(members[0]).device
        flags = torch.stack([torch.as_tensor(flag, device=device) for flag in ok]).to(torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MIN, group=group)
        for p, flag in zip(members, flags.bool(), strict=True):
            if p in own:
                own[p].G = torch.where(flag, gradient(p), torch.nan)


def check_layout(name: str, parameter: nn.Parameter) -> None:
    """Raise ValueError for a DTensor that does not lie as FSDP2 lays it."""
    if isinstance(parameter, DTensor):
        _sharded_dim(parameter, name)


def _agree(error: ValueError | None, group: dist.ProcessGroup) -> None:
    told: list[str | None] = [None] * group.size()
    dist.all_gather_object(told, None if error is None else str(error), group=group)
    for text in told:
        if text is not None:
            raise SphereError(text)


def _sharded_dim(parameter: DTensor, name: str = "a parameter") -> int:
    dims = [i for i, p in enumerate(parameter.placements) if not isinstance(p, Replicate)]
    if len(dims) != 1 or parameter.placements[dims[0]] != Shard(0):
        raise ValueError(
            f"{name} must be sharded on its first dimension over one dimension of its mesh, as fully_shard "
            f"does, got placements {parameter.placements}"
        )
    return dims[0]


def _flat(
    tensors: Sequence[Tensor], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    if not tensors:
        return torch.empty(0, device=device, dtype=dtype)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten_into(flat: Tensor, targets: Sequence[Tensor]) -> None:
    sources = flat.split([target.numel() for target in targets])
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source.view(target.shape))
