"""One update of many units at once: what is read from parameters and state, masked, and written back."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hyperp.optim.rule import Rate, Rule
from hyperp.optim.units import Piece, joined

# Entries of the parameters that are updated at once: enough that the cost of calls is small beside the work,
# and the copies that a batch is made of small beside the model.
LARGEST_BATCH = {"cpu": 2**20, "other": 2**26}


@dataclass(frozen=True)
class Job:
    """The units of one shape in a parameter: where they are read and written, and their state by name."""

    piece: Piece
    W: Tensor
    G: Tensor
    state: Mapping[str, Tensor]


def state_of(piece: Piece, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a piece, by the names that its rule gave them."""
    suffix = str(piece.index) if piece.index else ""
    parts = [(key.partition("."), value) for key, value in state.items()]
    return {name: value for (name, _, index), value in parts if index == suffix}


def batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Jobs of equal shape and dtype, no more at once than LARGEST_BATCH, in order of appearance."""
    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        limit = LARGEST_BATCH["cpu" if job.W.device.type == "cpu" else "other"]
        for part in _parts(job, max(1, limit // max(1, math.prod(job.piece.shape)))):
            alike.setdefault((part.piece.shape, part.W.dtype, part.W.device, part.G.dtype, limit), []).append(
                part
            )
    for (shape, *_, limit), members in alike.items():
        entries, batch = 0, []
        for job in members:
            size = job.piece.count * math.prod(shape)
            if batch and entries + size > limit:
                yield batch
                entries, batch = 0, []
            entries, batch = entries + size, [*batch, job]
        yield batch


def _parts(job: Job, units: int) -> Iterator[Job]:
    """A large stack in runs of so many units, as views; other jobs as they are."""
    piece = job.piece
    if not piece.count:
        return  # this rank holds none of the experts
    if piece.ranges is not None or not piece.stacked or piece.count <= units:
        yield job
        return
    for start in range(0, piece.count, units):
        part = slice(start, min(start + units, piece.count))
        state = {name: value[part] for name, value in job.state.items()}
        yield Job(replace(piece, count=part.stop - start), job.W[part], job.G[part], state)


def update(rule: Rule, jobs: Sequence[Job], lr: Rate, maximize: bool = False) -> None:
    """One step of a batch, in place.

    A unit whose gradient has a norm that is not finite keeps weight and state and is counted. By rules whose
    steps have the same length however small the gradient, a unit whose gradient is zero stays where it is: a
    stale direction must not carry an idle expert away.
    """
    pieces = [job.piece for job in jobs]
    W, G = (joined([job.piece.read(tensor) for job, tensor in side]) for side in _sides(jobs))
    G = -G if maximize else G
    names = [name for name in jobs[0].state if name != "skipped"]
    old = {name: joined([job.piece.state(job.state[name]) for job in jobs]) for name in names}
    # Of the norm, as in clipping: the square of a huge entry would stay in AdamW's second moment.
    norm_B = torch.linalg.vector_norm(G.reshape(len(G), G[0].numel()), dim=1)
    ok_B = norm_B.isfinite()
    moves_B = ok_B & (norm_B > 0) if rule.rests else ok_B
    lr = lr.to(W.device) if isinstance(lr, Tensor) else lr
    # A CPU looks at the flags for less than the masks cost; on a GPU that would make the host wait.
    if W.device.type == "cpu" and not torch.compiler.is_compiling() and bool(moves_B.all()):
        new_W, new = rule.update(W, G, old, lr)
    else:
        new_W, new = rule.update(W, torch.where(_like(ok_B, G), G, 0), old, lr)
        new_W = torch.where(_like(moves_B, W), new_W, W)
        new = {name: torch.where(_like(ok_B, value), value, old[name]) for name, value in new.items()}
        new["skipped"] = joined([job.piece.state(job.state["skipped"]) for job in jobs]) + ~ok_B
    copy_units(pieces, [job.W for job in jobs], new_W)
    for name, value in new.items():
        units = value.split([piece.count for piece in pieces])
        sources = [piece.unstate(part) for piece, part in zip(pieces, units, strict=True)]
        torch._foreach_copy_([job.state[name] for job in jobs], sources)  # pyright: ignore[reportPrivateImportUsage]


def copy_units(pieces: Sequence[Piece], tensors: Sequence[Tensor], stacked: Tensor) -> None:
    """Write units, stacked over several parameters, back to them."""
    units = stacked.split([piece.count for piece in pieces])
    pairs = [piece.targets(tensor, unit) for piece, tensor, unit in zip(pieces, tensors, units, strict=True)]
    into, sources = (list(chain.from_iterable(side)) for side in zip(*pairs, strict=True))
    torch._foreach_copy_(into, sources)  # pyright: ignore[reportPrivateImportUsage]


def _sides(jobs: Sequence[Job]) -> Iterator[list[tuple[Job, Tensor]]]:
    yield [(job, job.W) for job in jobs]
    yield [(job, job.G) for job in jobs]


def _like(mask_B: Tensor, tensor: Tensor) -> Tensor:
    return mask_B.view(-1, *[1] * (tensor.ndim - 1))
