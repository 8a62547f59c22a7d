"""Stability monitors: activations, gradients, updates and norms, measured every so many steps.

On the steps in between nothing is computed and nothing is kept. Monitors do not influence the training: the
weights are the same to the bit with and without them.
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

from hyperp.distributed.ranks import current_ranks
from hyperp.model.transformer import Transformer
from hyperp.monitoring.activations import activation_statistics
from hyperp.optim import GroupedOptimizer
from hyperp.optim.batch import LARGEST_BATCH
from hyperp.optim.linalg.norms import spectral_norm
from hyperp.optim.rule import Rule, rule_of_group
from hyperp.optim.sphere import FrobeniusSphere, SpectralSphere
from hyperp.optim.units import UnitView, stack_units, unit_views

TOKENS = 1024  # of the batch, at most, that pass through the model again; at least one sequence on each rank
DIGITS = 6  # significant ones of every logged value; float32 has hardly more

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class MatrixStack:
    """The matrices of one shape in a parameter: a single one, those of all experts, or those of a split."""

    name: str
    role: str
    parameter: nn.Parameter
    view: UnitView
    rule: Rule

    @property
    def held_norm(self) -> Literal["spectral", "frobenius"] | None:
        """The norm that the rule holds at a radius; None without a sphere."""
        sphere = getattr(self.rule, "sphere", None)
        if isinstance(sphere, SpectralSphere):
            return "spectral"
        return "frobenius" if isinstance(sphere, FrobeniusSphere) else None

    def radius(self, state: Mapping[str, Tensor]) -> Tensor:
        """Radii (count,), from the optimizer's state of the parameter; NaN without a sphere or a state."""
        sphere, known = getattr(self.rule, "sphere", None), math.nan
        device, count = self.parameter.device, self.view.count
        if isinstance(sphere, FrobeniusSphere) and state:
            found = self.view.stack_entry(self.view.own_entries(state)["radius"])
            return found.to(device, torch.float32).expand(count)
        if isinstance(sphere, SpectralSphere):
            known = sphere.radius(*self.view.shape)
        # Filled on the device: copying from the host would wait for the device once for each matrix.
        return torch.full((count,), known, dtype=torch.float32, device=device)


class StabilityMonitors:
    """Measures a model every `every` steps (0 is never) and at its last step; or `looks` times in a run.

    Call `before_step(step)` when the gradients of a step are complete and not yet clipped,
    `after_step(ids)` when the optimizer has stepped and the gradients are still there, and `take()` for the
    measurements. The host waits for the device once in each measured step. With several ranks all of them
    must call these methods, since sharded tensors are gathered; all ranks get the same measurements, and the
    activations are over the sequences of all ranks.

    What a step has changed is measured against a copy of the weights (of this rank's shards, where they are
    sharded), so in measured steps the memory holds the weights twice. For norms, sharded parameters are
    gathered a batch of matrices at a time.

    Activations come from a forward pass of their own, without gradients, on the first sequences of the batch
    and with the new weights. Hooks in the training pass would break a compiled graph and would see every
    micro-batch by itself; for the same reason, the pass through a compiled model runs eagerly.

    Args:
        model: the decoder to measure.
        optimizer: its groups give every parameter's role, its state every sphere's radius.
        every, steps, looks: when to measure, in a run of `steps` steps. If `looks` and `every` are both above
            0, `looks` measurements are spread evenly over the run, and a run of fewer steps is measured at
            each of them.
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
        self.matrices = list(_matrix_stacks(optimizer))
        self.state: dict[str, Any] = {"looks": 0, "largest": {}, "smallest": {}, "last": {}}
        self._copies: list[Tensor] | None = None
        self._gradient_rms: dict[str, Tensor] = {}
        self._row: Row | None = None

    def due(self, step: int) -> bool:
        """Whether step number `step`, counted from 1, is measured."""
        if self.looks and self.every:
            return step * self.looks // self.steps > (step - 1) * self.looks // self.steps
        return self.every > 0 and (step % self.every == 0 or step == self.steps)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Keep what a measured step will change: a copy of the weights, and the size of the gradients."""
        if not self.due(step):
            return
        self._copies = [p.detach().clone() for p in self._parameters()]
        self._gradient_rms = self._rms_by_role([p.grad for p in self._parameters()])

    @torch.no_grad()
    def after_step(self, ids_BT: Tensor) -> None:
        """Measure, if `before_step` has prepared for it. `ids_BT` is this rank's batch."""
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
        """Return the last measurement, once; None if there is no new one.

        `matrices` has for each parameter the spectral norm, Frobenius norm and radius of its matrix, in lists
        of one. For a stack of matrices (experts or split rows) it has their number, the minimum, median and
        maximum of each quantity, and of the norm over the radius the minimum, the maximum and the index of
        the matrix that is farthest from 1.
        """
        row, self._row = self._row, None
        return row

    def summary(self) -> dict[str, Any]:
        """The largest and the last value of every quantity over all measurements; {} before the first.

        A value is that of the largest layer or role. `outlier_share` is the largest of the three shares of
        outliers; `smallest` has norm_over_radius. A value that was not finite is None.
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
        """Root mean square over all entries of each role; a parameter without a tensor is left out."""
        roles = [group["role"] for group in self.optimizer.param_groups for _ in group["params"]]
        squares: dict[str, list[Tensor]] = {role: [] for role in roles}
        entries = dict.fromkeys(roles, 0)
        for role, tensor in zip(roles, tensors, strict=True):
            if tensor is not None:
                squares[role].append(_full_tensor(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2)
                entries[role] += tensor.numel()
        return {
            role: (torch.stack(found).sum() / entries[role]).sqrt()
            for role, found in squares.items()
            if found
        }

    def _norms(self) -> dict[str, Tensor]:
        """Spectral norm, Frobenius norm and radius of every matrix, in the order of `self.matrices`."""
        spectral: dict[MatrixStack, Tensor] = {}
        frobenius: dict[MatrixStack, Tensor] = {}
        for batch in _shape_batches(self.matrices):
            W = stack_units([one.view.read(_full_tensor(one.parameter)) for one in batch])
            counts = [one.view.count for one in batch]
            spectral |= zip(batch, spectral_norm(W).split(counts), strict=True)
            frobenius |= zip(batch, torch.linalg.vector_norm(W, dim=(-2, -1)).split(counts), strict=True)
        radius = torch.cat([one.radius(self.optimizer.state.get(one.parameter, {})) for one in self.matrices])
        return {
            "spectral": torch.cat([spectral[one] for one in self.matrices]),
            "frobenius": torch.cat([frobenius[one] for one in self.matrices]),
            "radius": _radius_of_any_rank(radius),
        }

    def _activations(self, ids_BT: Tensor) -> dict[str, Tensor]:
        ranks = current_ranks()
        sequences = max(1, TOKENS // ids_BT.shape[-1] // ranks.size)
        device = next(self._parameters()).device
        with self.autocast:
            ids_BT = ids_BT[:sequences].to(device)
            return activation_statistics(self.model, ids_BT, ranks, self.compiled)

    def _make_row(self, found: dict[str, Any]) -> Row:
        norms = {name: iter(found.pop(name)) for name in ("spectral", "frobenius", "radius")}
        ratios: dict[str, list[float]] = {}
        matrices: dict[str, Row] = {}
        for one in self.matrices:
            values = {name: [next(source) for _ in range(one.view.count)] for name, source in norms.items()}
            own = None
            if one.held_norm:
                own = [a / b for a, b in zip(values[one.held_norm], values["radius"], strict=True)]
                ratios.setdefault(one.role, []).extend(own)
            matrices[one.view.key_for(one.name)] = _stack_entry(values, own)
        found["norm_over_radius"] = {role: _extremes(values) for role, values in ratios.items()}
        return _round_all({**found, "matrices": matrices})

    def _summarize(self, row: Row) -> None:
        last = {
            name: _unless_nan(max, _leaf_values(v)) for name, v in row.items() if name != "matrices" and v
        }
        outliers = [v for name, v in last.items() if name.endswith("_outliers")]
        last["outlier_share"] = _unless_nan(max, outliers)
        state = self.state
        state["looks"] += 1
        state["last"] = last
        for name, value in last.items():
            state["largest"][name] = _unless_nan(max, [value, state["largest"].get(name, value)])
        ratios = [value["min"] for value in row["norm_over_radius"].values()]
        if ratios:
            before = state["smallest"].get("norm_over_radius", math.inf)
            state["smallest"]["norm_over_radius"] = _unless_nan(min, [before, *ratios])


def _matrix_stacks(optimizer: GroupedOptimizer) -> Iterator[MatrixStack]:
    for group in optimizer.param_groups:
        rule = rule_of_group(group)
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.ndim >= 2:
                for view in unit_views(parameter.shape, group["split"], True):
                    yield MatrixStack(name, group["role"], parameter, view, rule)


def _shape_batches(matrices: Iterable[MatrixStack]) -> Iterator[list[MatrixStack]]:
    """Batches of matrices of one shape, with no more entries than an optimizer step processes at once."""
    batches: dict[tuple[int, ...], list[MatrixStack]] = {}
    for one in matrices:
        limit = LARGEST_BATCH["cpu" if one.parameter.device.type == "cpu" else "other"]
        batch = batches.setdefault(one.view.shape, [])
        count = sum(other.view.count for other in (*batch, one))
        if batch and count * math.prod(one.view.shape) > limit:
            yield batch
            batch = batches[one.view.shape] = []
        batch.append(one)
    yield from batches.values()


def _full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _radius_of_any_rank(radius: Tensor) -> Tensor:
    """The radius from the rank that knows it: the optimizer's state may be on one rank only."""
    if not current_ranks().is_distributed:
        return radius
    radius = torch.where(radius.isnan(), -torch.inf, radius)
    dist.all_reduce(radius, op=dist.ReduceOp.MAX)
    return torch.where(radius.isinf(), torch.nan, radius)


def _to_host(found: Mapping[str, Any]) -> dict[str, Any]:
    """Convert tensors of at most one dimension, in nested dicts, to floats and lists, in one transfer.

    Every rank gets the numbers of rank 0, so that all ranks keep the same ones.
    """
    flat = torch.cat([value.reshape(-1).double() for value in _leaf_values(found)])
    if current_ranks().is_distributed:
        dist.broadcast(flat, src=0)
    numbers = iter(flat.tolist())

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: read(inner) for key, inner in value.items()}
        return [next(numbers) for _ in range(len(value))] if value.ndim else next(numbers)

    return read(found)


def _leaf_values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for inner in value for leaf in _leaf_values(inner)] if isinstance(value, list) else [value]


def _unless_nan(choose: Any, values: Sequence[float]) -> float:
    """`choose(values)`, such as their minimum or median; NaN if any value is NaN."""
    return math.nan if any(math.isnan(v) for v in values) else choose(values)


def _extremes(values: Sequence[float]) -> dict[str, float]:
    return {"min": _unless_nan(min, values), "max": _unless_nan(max, values)}


def _stack_entry(values: dict[str, list[float]], ratios: list[float] | None) -> Row:
    """What is logged for one parameter: all numbers of a single matrix, or a summary of a stack.

    Otherwise the numbers of single matrices would fill the log of a model with many experts.
    """
    known = {**values, "radius": None if ratios is None else values["radius"]}
    if len(values["spectral"]) == 1:
        return known
    entry: Row = {"count": len(values["spectral"])}
    for name, found in known.items():
        chosen = {"min": min, "median": median, "max": max}
        entry[name] = found and {key: _unless_nan(choose, found) for key, choose in chosen.items()}
    if ratios is not None:
        off = [math.inf if math.isnan(ratio) else abs(ratio - 1) for ratio in ratios]
        entry["norm_over_radius"] = {**_extremes(ratios), "worst": off.index(max(off))}
    return entry


def _round_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round_all(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_round_all(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
