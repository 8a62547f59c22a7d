"""Stability monitors: activations, gradients, updates and norms, looked at every so many steps.

On a step in between, nothing is computed and nothing kept. What is looked at never enters the training: the
weights are the same to the bit with and without it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hyperp.distributed.ranks import world
from hyperp.model.transformer import Transformer
from hyperp.monitoring.activations import look_inside
from hyperp.optim import GroupedOptimizer
from hyperp.optim.batch import LARGEST_BATCH
from hyperp.optim.linalg.norms import spectral_norm
from hyperp.optim.rule import RULES, Rule, make_rule, option_names
from hyperp.optim.sphere import FrobeniusSphere, SpectralSphere
from hyperp.optim.units import UnitView, stack_units, unit_views

TOKENS = 1024  # at most this many of the batch, but a sequence on each rank, pass through the model again
DIGITS = 6  # of every logged value; float32 has no more

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Matrices:
    """The matrices of one shape in a parameter: one, or those of its experts, or those of its split."""

    name: str
    role: str
    parameter: nn.Parameter
    piece: UnitView
    rule: Rule

    @property
    def held(self) -> Literal["spectral", "frobenius"] | None:
        """The norm that the rule holds at a radius."""
        sphere = getattr(self.rule, "sphere", None)
        if isinstance(sphere, SpectralSphere):
            return "spectral"
        return "frobenius" if isinstance(sphere, FrobeniusSphere) else None

    def radius(self, state: Mapping[str, Tensor]) -> Tensor:
        """(count,) from the optimizer's state of the parameter; NaN without a sphere, or without state."""
        sphere, known = getattr(self.rule, "sphere", None), math.nan
        device, count = self.parameter.device, self.piece.count
        if isinstance(sphere, FrobeniusSphere) and state:
            found = self.piece.stack_entry(self.piece.own_entries(state)["radius"])
            return found.to(device, torch.float32).expand(count)
        if isinstance(sphere, SpectralSphere):
            known = sphere.radius(*self.piece.shape)
        # Filled by the device itself: a copy from the host for each matrix would wait for it each time.
        return torch.full((count,), known, dtype=torch.float32, device=device)


class StabilityMonitors:
    """Looks at a model every `every` steps (0 is never) and at its last, number `steps`; or `looks` times.

    Call `before(step)` when the gradients of a step are complete and not clipped, `after(ids)` when the
    optimizer has stepped and the gradients are still there, and `take()` for what was seen. The host waits
    for the device once a look. With several processes all have to call it, since sharded tensors are made
    whole; what is told, on all of them, are the activations of the sequences of all.

    From `before` to `after` a copy of the weights is held (of this process's shards, where they are sharded),
    since what a step changed cannot be known otherwise: in steps that are looked at, memory has to hold the
    weights twice. Norms make sharded parameters whole a batch of matrices at a time.

    The activations are those of a pass of its own, without gradients, on the first sequences of the batch at
    the new weights. Hooks in the training pass would break a compiled graph, and would count each micro-batch
    by itself; a pass in a compiled model is done eagerly, for the same reason.

    Args:
        model: the decoder, whose blocks are looked into.
        optimizer: its groups say each parameter's role, its state each sphere's radius.
        every, steps, looks: when to look; `looks` above 0 are so many at equal shares of the steps, and at
            every step of fewer, in place of `every`, unless that is 0.
        autocast: the context that the model trains in.
        compiled: whether `model` was compiled in place.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer: GroupedOptimizer,
        *,
        every: int,
        steps: int,
        looks: int = 0,
        autocast: AbstractContextManager[Any] | None = None,
        compiled: bool = False,
    ):
        self.model, self.optimizer = model, optimizer
        self.every, self.steps, self.looks = every, steps, looks
        self.autocast, self.compiled = autocast or nullcontext(), compiled
        self.matrices = list(_matrices(optimizer))
        self.state: dict[str, Any] = {"looks": 0, "largest": {}, "smallest": {}, "last": {}}
        self._copies: list[Tensor] | None = None
        self._gradient_rms: dict[str, Tensor] = {}
        self._row: Row | None = None

    def due(self, step: int) -> bool:
        """Whether step number `step`, from 1, is looked at."""
        if self.looks and self.every:
            return step * self.looks // self.steps > (step - 1) * self.looks // self.steps
        return self.every > 0 and (step % self.every == 0 or step == self.steps)

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Keep what the step will change: a copy of the weights, and the size of the gradients."""
        if not self.due(step):
            return
        self._copies = [p.detach().clone() for p in self._parameters()]
        self._gradient_rms = self._rms_by_role([p.grad for p in self._parameters()])

    @torch.no_grad()
    def after(self, ids_BT: Tensor) -> None:
        """Look, if `before` did."""
        if self._copies is None:
            return
        changes, self._copies = self._copies, None
        for change, parameter in zip(changes, self._parameters(), strict=True):
            change.sub_(parameter)
        sizes = {"gradient_rms": self._gradient_rms, "update_rms": self._rms_by_role(changes)}
        del changes
        self._row = self._make_row(_to_host(sizes | self._norms() | self._activations(ids_BT)))
        self._summarize(self._row)

    def take(self) -> Row | None:
        """What the last look saw, once; None if there was none since.

        `matrices` has for each parameter the spectral norm, Frobenius norm and radius of its matrix, in lists
        of one. Of a stack, of experts or split rows, it has their number, the least, median and largest of
        each, and of the norm over the radius the ends and the index of the matrix that is farthest off.
        """
        row, self._row = self._row, None
        return row

    def summary(self) -> dict[str, Any]:
        """Largest and last value over the looks, of each quantity its largest layer or role; {} before any.

        `outlier_share` is the largest of the three; `smallest` has norm_over_radius. A value that was not
        finite is None.
        """
        if not self.state["looks"]:
            return {}
        values = {key: self.state[key] for key in ("largest", "smallest", "last")}
        return {"looks": self.state["looks"]} | {
            key: {name: v if math.isfinite(v) else None for name, v in group.items()}
            for key, group in values.items()
        }

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def _rms_by_role(self, tensors: Iterable[Tensor | None]) -> dict[str, Tensor]:
        """Root mean square over all entries of a role; a parameter without a tensor is left out."""
        roles = [group["role"] for group in self.optimizer.param_groups for _ in group["params"]]
        squares: dict[str, list[Tensor]] = {role: [] for role in roles}
        entries = dict.fromkeys(roles, 0)
        for role, tensor in zip(roles, tensors, strict=True):
            if tensor is not None:
                squares[role].append(_whole(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2)
                entries[role] += tensor.numel()
        return {
            role: (torch.stack(found).sum() / entries[role]).sqrt()
            for role, found in squares.items()
            if found
        }

    def _norms(self) -> dict[str, Tensor]:
        """Spectral norm, Frobenius norm and radius of every matrix, in the order of `matrices`."""
        spectral: dict[Matrices, Tensor] = {}
        frobenius: dict[Matrices, Tensor] = {}
        for batch in _batches(self.matrices):
            W = stack_units([one.piece.read(_whole(one.parameter)) for one in batch])
            counts = [one.piece.count for one in batch]
            spectral |= zip(batch, spectral_norm(W).split(counts), strict=True)
            frobenius |= zip(batch, torch.linalg.vector_norm(W, dim=(-2, -1)).split(counts), strict=True)
        radius = torch.cat([one.radius(self.optimizer.state.get(one.parameter, {})) for one in self.matrices])
        return {
            "spectral": torch.cat([spectral[one] for one in self.matrices]),
            "frobenius": torch.cat([frobenius[one] for one in self.matrices]),
            "radius": _known_to_any_rank(radius),
        }

    def _activations(self, ids_BT: Tensor) -> dict[str, Tensor]:
        ranks = world()
        sequences = max(1, TOKENS // ids_BT.shape[-1] // ranks.size)
        device = next(self._parameters()).device
        eagerly = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with eagerly, self.autocast:
            return look_inside(self.model, ids_BT[:sequences].to(device), ranks)

    def _make_row(self, found: dict[str, Any]) -> Row:
        norms = {name: iter(found.pop(name)) for name in ("spectral", "frobenius", "radius")}
        ratios: dict[str, list[float]] = {}
        matrices: dict[str, Row] = {}
        for one in self.matrices:
            values = {name: [next(source) for _ in range(one.piece.count)] for name, source in norms.items()}
            own = None
            if one.held:
                own = [a / b for a, b in zip(values[one.held], values["radius"], strict=True)]
                ratios.setdefault(one.role, []).extend(own)
            matrices[one.piece.key_for(one.name)] = _entry(values, own)
        found["norm_over_radius"] = {
            role: {"min": _extreme(min, values), "max": _extreme(max, values)}
            for role, values in ratios.items()
        }
        return _rounded({**found, "matrices": matrices})

    def _summarize(self, row: Row) -> None:
        last = {name: _extreme(max, _leaves(v)) for name, v in row.items() if name != "matrices" and v}
        outliers = [v for name, v in last.items() if name.endswith("_outliers")]
        last["outlier_share"] = _extreme(max, outliers)
        state = self.state
        state["looks"] += 1
        state["last"] = last
        for name, value in last.items():
            state["largest"][name] = _extreme(max, [value, state["largest"].get(name, value)])
        ratios = [value["min"] for value in row["norm_over_radius"].values()]
        if ratios:
            before = state["smallest"].get("norm_over_radius", math.inf)
            state["smallest"]["norm_over_radius"] = _extreme(min, [before, *ratios])


def _matrices(optimizer: GroupedOptimizer) -> Iterator[Matrices]:
    for group in optimizer.param_groups:
        names = option_names(RULES[group["algorithm"]])
        rule = make_rule(group["algorithm"], {name: group[name] for name in names})
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.ndim >= 2:
                for piece in unit_views(parameter.shape, group["split"], True):
                    yield Matrices(name, group["role"], parameter, piece, rule)


def _batches(matrices: Iterable[Matrices]) -> Iterator[list[Matrices]]:
    """Those of one shape together, no more entries at once than an optimizer step takes."""
    batches: dict[tuple[int, ...], list[Matrices]] = {}
    for one in matrices:
        limit = LARGEST_BATCH["cpu" if one.parameter.device.type == "cpu" else "other"]
        batch = batches.setdefault(one.piece.shape, [])
        count = sum(other.piece.count for other in (*batch, one))
        if batch and count * math.prod(one.piece.shape) > limit:
            yield batch
            batch = batches[one.piece.shape] = []
        batch.append(one)
    yield from batches.values()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _known_to_any_rank(radius: Tensor) -> Tensor:
    """State, and the radius with it, may lie on one rank alone."""
    if not world().together:
        return radius
    radius = torch.where(radius.isnan(), -torch.inf, radius)
    dist.all_reduce(radius, op=dist.ReduceOp.MAX)
    return torch.where(radius.isinf(), torch.nan, radius)


def _to_host(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of at most one dimension, in dicts, as floats and lists of floats, in one transfer.

    Every rank gets the main one's, so that what is kept of them is the same.
    """
    flat = torch.cat([value.reshape(-1).double() for value in _leaves(found)])
    if world().together:
        dist.broadcast(flat, src=0)
    numbers = iter(flat.tolist())

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: read(inner) for key, inner in value.items()}
        return [next(numbers) for _ in range(len(value))] if value.ndim else next(numbers)

    return read(found)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, list) else [value]


def _extreme(choose: Any, values: Sequence[float]) -> float:
    """`min`, `max` or `median`; NaN if any value is."""
    return math.nan if any(math.isnan(v) for v in values) else choose(values)


def _entry(values: dict[str, list[float]], ratios: list[float] | None) -> Row:
    """What the log says of the matrices of a parameter: every number of one matrix, of a stack its extremes.

    One number a matrix would make nearly all of the log of a model with many experts.
    """
    known = {**values, "radius": None if ratios is None else values["radius"]}
    if len(values["spectral"]) == 1:
        return known
    entry: Row = {"count": len(values["spectral"])}
    for name, found in known.items():
        ends = None if found is None else {"min": _extreme(min, found), "median": _extreme(median, found)}
        entry[name] = None if ends is None or found is None else {**ends, "max": _extreme(max, found)}
    if ratios is not None:
        off = [math.inf if math.isnan(ratio) else abs(ratio - 1) for ratio in ratios]
        ends = {"min": _extreme(min, ratios), "max": _extreme(max, ratios)}
        entry["norm_over_radius"] = {**ends, "worst": off.index(max(off))}
    return entry


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
