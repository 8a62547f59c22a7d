"""One update of many units at once: read parameters and state, apply the rule, mask, and write back."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hyperp.optim.rule import Rate, Rule
from hyperp.optim.units import UnitView, stack_units

# Entries of the parameters that are updated at once: so many that the cost of calls is small beside the work,
# and so few that the copies in a batch are small beside the model.
LARGEST_BATCH = {"cpu": 2**20, "other": 2**26}


@dataclass(frozen=True)
class UnitJob:
    """The update of the units of one shape in a parameter: where they lie, their gradient and state."""

    view: UnitView
    W: Tensor
    G: Tensor
    state: Mapping[str, Tensor]


def make_batches(jobs: Iterable[UnitJob]) -> Iterator[list[UnitJob]]:
    """Batches of jobs of equal shape and dtype, of at most LARGEST_BATCH entries, in order of appearance."""
    alike: dict[Any, list[UnitJob]] = {}
    for job in jobs:
        limit = LARGEST_BATCH["cpu" if job.W.device.type == "cpu" else "other"]
        for part in _split_large_stack(job, max(1, limit // max(1, math.prod(job.view.shape)))):
            alike.setdefault((part.view.shape, part.W.dtype, part.W.device, part.G.dtype, limit), []).append(
                part
            )
    for (shape, *_, limit), members in alike.items():
        entries, batch = 0, []
        for job in members:
            size = job.view.count * math.prod(shape)
            if batch and entries + size > limit:
                yield batch
                entries, batch = 0, []
            entries, batch = entries + size, [*batch, job]
        yield batch


def _split_large_stack(job: UnitJob, units: int) -> Iterator[UnitJob]:
    """Divide a large stack into runs of `units` units, as views; leave other jobs as they are."""
    view = job.view
    if not view.count:
        return  # this rank holds no expert of the stack
    if view.ranges is not None or not view.stacked or view.count <= units:
        yield job
        return
    for start in range(0, view.count, units):
        part = slice(start, min(start + units, view.count))
        state = {name: value[part] for name, value in job.state.items()}
        yield UnitJob(replace(view, count=part.stop - start), job.W[part], job.G[part], state)


def update_batch(rule: Rule, jobs: Sequence[UnitJob], lr: Rate, maximize: bool = False) -> None:
    """Make one step of a batch, in place.

    A unit whose gradient has a norm that is not finite keeps its weight and its state, and is counted. If the
    rule has `skip_on_zero_grad`, because its steps have the same length however small the gradient is, a unit
    with a zero gradient keeps its weight: old momentum must not carry an idle expert away.
    """
    views = [job.view for job in jobs]
    W = stack_units([job.view.read(job.W) for job in jobs])
    G = stack_units([job.view.read(job.G) for job in jobs])
    G = -G if maximize else G
    names = [name for name in jobs[0].state if name != "skipped"]
    old = {name: stack_units([job.view.stack_entry(job.state[name]) for job in jobs]) for name in names}
    # The norm is checked, as in clipping: the square of a huge entry would stay in AdamW's second moment.
    norm_B = torch.linalg.vector_norm(G.reshape(len(G), G[0].numel()), dim=1)
    ok_B = norm_B.isfinite()
    moves_B = ok_B & (norm_B > 0) if rule.skip_on_zero_grad else ok_B
    lr = lr.to(W.device) if isinstance(lr, Tensor) else lr
    # On a CPU, reading the flags costs less than the masks; on a GPU, the host would wait for the device.
    if W.device.type == "cpu" and not torch.compiler.is_compiling() and bool(moves_B.all()):
        new_W, new = rule.update(W, G, old, lr)
    else:
        new_W, new = rule.update(W, torch.where(_broadcast_mask(ok_B, G), G, 0), old, lr)
        new_W = torch.where(_broadcast_mask(moves_B, W), new_W, W)
        new = {
            name: torch.where(_broadcast_mask(ok_B, value), value, old[name]) for name, value in new.items()
        }
        new["skipped"] = stack_units([job.view.stack_entry(job.state["skipped"]) for job in jobs]) + ~ok_B
    write_units(views, [job.W for job in jobs], new_W)
    for name, value in new.items():
        units = value.split([view.count for view in views])
        sources = [view.unstack_entry(part) for view, part in zip(views, units, strict=True)]
        torch._foreach_copy_([job.state[name] for job in jobs], sources)  # pyright: ignore[reportPrivateImportUsage]


def write_units(views: Sequence[UnitView], tensors: Sequence[Tensor], stacked: Tensor) -> None:
    """Write units that were stacked over several parameters back to those parameters."""
    units = stacked.split([view.count for view in views])
    pairs = [
        view.write_targets(tensor, unit) for view, tensor, unit in zip(views, tensors, units, strict=True)
    ]
    into, sources = (list(chain.from_iterable(side)) for side in zip(*pairs, strict=True))
    torch._foreach_copy_(into, sources)  # pyright: ignore[reportPrivateImportUsage]


def _broadcast_mask(mask_B: Tensor, tensor: Tensor) -> Tensor:
    return mask_B.view(-1, *[1] * (tensor.ndim - 1))
