"""How matrices travel to the ranks that update them and back, while other matrices are computed.

A chunk is a run of parameters that lie alike. It has four verbs: `send` starts to make its matrices whole on
their owners, `arrive` waits for that, `send_back` starts to bring the updated weights to all ranks, and
`finish` waits for that. `run_pipelined` orders the verbs of many chunks so that there is work between each
start and its wait.

Every rank starts the same collectives in the same order, even if it owns nothing in a chunk. Weights are sent
anew each step, although their owner had them a step ago: keeping them would double the memory that sharded
weights take, and miss what others write to them in between (a restored checkpoint). On a GPU, the current
stream waits and the host does not.
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
    """A whole parameter on the rank that updates it: the weight to write to, and its gradient if any."""

    parameter: nn.Parameter
    W: Tensor
    G: Tensor | None


@dataclass
class PendingTransfer:
    """A collective that is under way, the buffers that it needs, and the tensors to copy the result to."""

    work: Any  # dist.Work, which torch types as optional
    sent: Tensor
    received: Tensor
    targets: Sequence[Tensor]

    def wait(self) -> None:
        """Wait for the collective, and copy what was received to the targets."""
        self.work.wait()
        if self.targets:
            parts = self.received.split([target.numel() for target in self.targets])
            sources = [part.view(target.shape) for part, target in zip(parts, self.targets, strict=True)]
            torch._foreach_copy_(list(self.targets), sources)  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class Chunk:
    """Parameters that lie alike. In this base class they are all at hand, and nothing is sent."""

    parameters: list[nn.Parameter]
    wholes: list[WholeParameter] = field(default_factory=list, init=False)
    under_way: list[PendingTransfer] = field(default_factory=list, init=False)

    def send(self, with_gradients: bool = True) -> None:
        """Start to bring weights, and gradients if asked for, to their owners."""
        self.wholes = [
            WholeParameter(p, local_tensor(p), local_gradient(p) if with_gradients else None)
            for p in self.own_parameters()
        ]

    def arrive(self) -> list[WholeParameter]:
        """Wait for the parameters that this rank has to update, and return them."""
        self._wait()
        return self.wholes

    def send_back(self) -> None:
        """Start to bring updated weights to all ranks."""
        self.wholes = []

    def finish(self) -> None:
        """Wait until the parameters hold the updated weights."""
        self._wait()

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that this rank updates."""
        return self.parameters

    def raise_on_all_ranks(self, error: ValueError | None) -> None:
        """Raise an error that any of the chunk's ranks has met, on all of them."""
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
    """Parameters divided among the ranks of a group; `owners` has the rank that updates each."""

    group: dist.ProcessGroup
    owners: dict[nn.Parameter, int]

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that this rank updates."""
        return self.owned_by(self.group.rank())

    def owned_by(self, rank: int) -> list[nn.Parameter]:
        """The parameters that a rank updates."""
        return [p for p in self.parameters if self.owners[p] == rank]

    def raise_on_all_ranks(self, error: ValueError | None) -> None:
        """Raise an error that any of the chunk's ranks has met, on all of them."""
        texts: list[str | None] = [None] * self.group.size()
        dist.all_gather_object(texts, None if error is None else str(error), group=self.group)
        for text in texts:
            if text is not None:
                raise SphereError(text)


@dataclass
class ReplicatedChunk(DealtChunk):
    """Parameters that every rank of a group holds as a whole, with equal gradients."""

    def check_averaged(self) -> None:
        """Raise ValueError on all ranks if the norms of their gradients differ by more than 1%."""
        norms: list[Any] = [None] * self.group.size()
        own = [0.0 if p.grad is None else float(p.grad.norm()) for p in self.parameters]
        dist.all_gather_object(norms, own, group=self.group)
        if any(abs(a - b) > 1e-2 * abs(b) for row in norms for a, b in zip(row, norms[0], strict=True)):
            raise ValueError(
                "gradients must be equal on all ranks of process_group, as DistributedDataParallel makes "
                f"them, got norms {norms}"
            )

    def send_back(self) -> None:
        """Start to send what every owner has updated to all other ranks."""
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
        """Start to send the shards of weights and gradients to their owners."""
        weights = self._gather(local_tensor)
        gradients = self._gather(local_gradient) if with_gradients else [None] * len(weights)
        self.wholes = [
            WholeParameter(*entry) for entry in zip(self.own_parameters(), weights, gradients, strict=True)
        ]

    def send_back(self) -> None:
        """Start to send every rank its shards of the updated weights."""
        ranks = range(self.group.size())
        outgoing = [[shard_rows(whole.W, r, len(ranks)) for whole in self.wholes] for r in ranks]
        self._exchange(outgoing, [[local_tensor(p) for p in self.owned_by(r)] for r in ranks])
        self.wholes = []

    def _gather(self, shard: Callable[[nn.Parameter], Tensor]) -> list[Tensor]:
        ranks = range(self.group.size())
        outgoing = [[shard(p) for p in self.owned_by(r)] for r in ranks]
        like = next(tensor for of_rank in outgoing for tensor in of_rank)
        wholes = [like.new_empty(p.shape) for p in self.own_parameters()]
        self._exchange(outgoing, [[shard_rows(whole, r, len(ranks)) for whole in wholes] for r in ranks])
        return wholes

    def _exchange(self, outgoing: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
        """Start an all_to_all of the tensors for each rank; `targets` take those that each rank sends."""
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
    """Send, update and send back every chunk: while one is updated, the next arrives and the last goes back.

    `meanwhile` is work that needs no chunk. It runs while the first chunk is on its way.
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
    """This rank's part of the gradient, NaN if there is none. Raises ValueError for a sparse gradient."""
    if parameter.grad is None:
        return torch.full_like(local_tensor(parameter), torch.nan)
    found = local_tensor(parameter.grad)
    if found.layout != torch.strided:
        raise ValueError(f"gradients must be dense, got layout {found.layout}")
    return found


def shard_rows(whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The shard of a rank as a view: rows of the first dimension, divided as torch.chunk does."""
    size = -(-whole.shape[0] // ranks)
    return whole[min(rank * size, whole.shape[0]) : (rank + 1) * size]


def _flatten(tensors: Sequence[Sequence[Tensor]], like: Tensor | None = None) -> Tensor:
    flat = [tensor.detach().reshape(-1) for of_rank in tensors for tensor in of_rank]
    if not flat:
        assert like is not None
        return like.new_empty(0)
    return torch.cat(flat)
