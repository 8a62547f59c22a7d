"""How matrices travel to the ranks that update them and back, while other matrices are computed.

A chunk is a run of parameters that lie alike, with four verbs: `send` starts what makes its matrices whole on
their owners, `arrive` waits for it, `send_back` starts what brings the updated weights to all ranks, `finish`
waits for that. `run_pipelined` orders the verbs of many parts so that work lies between start and wait.

Every rank starts the same collectives in the same order, with nothing to say if it owns none of a chunk.
Weights are sent anew each step, though their owner knew them a step ago: keeping them would double the
memory that sharded weights take, and miss what others (a restored checkpoint) write to them in between.
On a GPU a wait is one of the current stream, not of the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hyperp.optim.rule import SphereError


@dataclass
class WholeParameter:
    """A parameter as the rank that updates it sees it: the weight to write to, and its gradient if any."""

    parameter: nn.Parameter
    W: Tensor
    G: Tensor | None


@dataclass
class PendingTransfer:
    """A collective under way, the buffers that must live as long, and where to put what comes."""

    work: Any  # dist.Work, which torch types as optional
    sent: Tensor
    received: Tensor
    targets: Sequence[Tensor]

    def wait(self) -> None:
        """Write what came to the targets."""
        self.work.wait()
        if self.targets:
            parts = self.received.split([target.numel() for target in self.targets])
            sources = [part.view(target.shape) for part, target in zip(parts, self.targets, strict=True)]
            torch._foreach_copy_(list(self.targets), sources)  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class Chunk:
    """Parameters that lie alike. Here all is at hand and nothing is sent."""

    parameters: list[nn.Parameter]
    wholes: list[WholeParameter] = field(default_factory=list, init=False)
    under_way: list[PendingTransfer] = field(default_factory=list, init=False)

    def send(self, with_gradients: bool = True) -> None:
        """Start to bring weights, and gradients, to their owners."""
        self.wholes = [
            WholeParameter(p, local_tensor(p), local_gradient(p) if with_gradients else None)
            for p in self.mine()
        ]

    def arrive(self) -> list[WholeParameter]:
        """What this rank has to update."""
        self._wait()
        return self.wholes

    def send_back(self) -> None:
        """Start to bring updated weights to all ranks."""
        self.wholes = []

    def finish(self) -> None:
        """From here on the parameters hold the updated weights."""
        self._wait()

    def mine(self) -> list[nn.Parameter]:
        """Those that this rank updates."""
        return self.parameters

    def agree(self, error: ValueError | None) -> None:
        """Raise on all ranks what one has met."""
        if error is not None:
            raise error

    def _wait(self) -> None:
        for transfer in self.under_way:
            transfer.wait()
        self.under_way = []


class LocalChunk(Chunk):
    """Parameters that this process updates alone."""


@dataclass
class DealtChunk(Chunk):
    """Parameters that the ranks of a group share out."""

    group: dist.ProcessGroup
    owners: dict[nn.Parameter, int]

    def mine(self) -> list[nn.Parameter]:
        """Those that this rank updates."""
        return self.owned_by(self.group.rank())

    def owned_by(self, rank: int) -> list[nn.Parameter]:
        """Those that a rank updates."""
        return [p for p in self.parameters if self.owners[p] == rank]

    def agree(self, error: ValueError | None) -> None:
        """Raise on all ranks what one has met."""
        told: list[str | None] = [None] * self.group.size()
        dist.all_gather_object(told, None if error is None else str(error), group=self.group)
        for text in told:
            if text is not None:
                raise SphereError(text)


@dataclass
class ReplicatedChunk(DealtChunk):
    """Parameters that every rank of a group holds, with equal gradients."""

    def check_averaged(self) -> None:
        """Raise ValueError on all ranks if their gradients are not the same ones."""
        told: list[Any] = [None] * self.group.size()
        norms = [0.0 if p.grad is None else float(p.grad.norm()) for p in self.parameters]
        dist.all_gather_object(told, norms, group=self.group)
        if any(abs(a - b) > 1e-2 * abs(b) for norms in told for a, b in zip(norms, told[0], strict=True)):
            raise ValueError(
                "gradients must be equal on all ranks of process_group, as DistributedDataParallel makes "
                f"them, got norms {told}"
            )

    def send_back(self) -> None:
        """Every owner sends what it has updated to all others."""
        self.wholes = []
        for rank in range(self.group.size()):
            if members := self.owned_by(rank):
                flat = _flatten([members])
                work = dist.broadcast(flat, group_src=rank, group=self.group, async_op=True)
                targets = [] if rank == self.group.rank() else [p.detach() for p in members]
                self.under_way.append(PendingTransfer(work, flat, flat, targets))


@dataclass
class ShardedChunk(DealtChunk):
    """DTensor parameters, sharded on their first dimension over a group."""

    def send(self, with_gradients: bool = True) -> None:
        """Shards of weights and gradients go to the owners."""
        weights = self._gather(local_tensor)
        gradients = self._gather(local_gradient) if with_gradients else [None] * len(weights)
        self.wholes = [WholeParameter(*entry) for entry in zip(self.mine(), weights, gradients, strict=True)]

    def send_back(self) -> None:
        """The owners send every rank its shards of the updated weights."""
        ranks = range(self.group.size())
        outgoing = [[shard_rows(whole.W, r, len(ranks)) for whole in self.wholes] for r in ranks]
        self._exchange(outgoing, [[local_tensor(p) for p in self.owned_by(r)] for r in ranks])
        self.wholes = []

    def _gather(self, shard: Callable[[nn.Parameter], Tensor]) -> list[Tensor]:
        ranks = range(self.group.size())
        outgoing = [[shard(p) for p in self.owned_by(r)] for r in ranks]
        like = next(tensor for of_rank in outgoing for tensor in of_rank)
        wholes = [like.new_empty(p.shape) for p in self.mine()]
        self._exchange(outgoing, [[shard_rows(whole, r, len(ranks)) for whole in wholes] for r in ranks])
        return wholes

    def _exchange(self, outgoing: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
        """Start an all_to_all: the tensors for each rank, and where to put those from each rank."""
        out_sizes, in_sizes = (
            [sum(tensor.numel() for tensor in of_rank) for of_rank in side] for side in (outgoing, targets)
        )
        sent = _flatten(outgoing, like=local_tensor(self.parameters[0]))
        received = sent.new_empty(sum(in_sizes))
        work = dist.all_to_all_single(received, sent, in_sizes, out_sizes, group=self.group, async_op=True)
        self.under_way.append(
            PendingTransfer(work, sent, received, [t for of_rank in targets for t in of_rank])
        )


def run_pipelined(
    stages: Sequence[tuple[Chunk, Callable[[list[WholeParameter]], None]]], meanwhile: Callable[[], None]
) -> None:
    """Send, update and send back every chunk: while one is updated the next one comes and the last one goes.

    `meanwhile` is work that waits for no chunk: it fills the time in which the first one comes.
    """
    for chunk, _ in stages[:1]:
        chunk.send()
    meanwhile()
    for i, (chunk, update) in enumerate(stages):
        for following, _ in stages[i + 1 : i + 2]:
            following.send()
        update(chunk.arrive())
        chunk.send_back()
        for before, _ in stages[:i][-1:]:
            before.finish()
    for chunk, _ in stages[-1:]:
        chunk.finish()


def local_tensor(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter; writing to it writes to the parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def local_gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's part of the gradient, NaN if there is none. Raises ValueError for a sparse one."""
    if parameter.grad is None:
        return torch.full_like(local_tensor(parameter), torch.nan)
    found = local_tensor(parameter.grad)
    if found.layout != torch.strided:
        raise ValueError(f"gradients must be dense, got layout {found.layout}")
    return found


def shard_rows(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The shard of a rank, as a view: rows of the first dimension, as torch.chunk deals them."""
    size = -(-whole.shape[0] // ranks)
    return whole[min(rank * size, whole.shape[0]) : (rank + 1) * size]


def _flatten(tensors: Sequence[Sequence[Tensor]], like: Tensor | None = None) -> Tensor:
    flat = [tensor.detach().reshape(-1) for of_rank in tensors for tensor in of_rank]
    if not flat:
        assert like is not None
        return like.new_empty(0)
    return torch.cat(flat)
