"""Units of a parameter: the matrices in it, or the whole tensor, that a rule updates one by one.

A 2-D parameter is one matrix, and a 3-D one (experts, d_out, d_in) has a matrix for each expert. A split
divides the rows of either into several matrices. Units of one shape, of any number of parameters, are stacked
to (B, *unit) for a batched update, and then written back to where they were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hyperp.optim.split import Split


@dataclass(frozen=True)
class UnitView:
    """The units of one shape in a parameter: how to read and write them, and how to name their state.

    Attributes:
        index: number of this view among those of the parameter.
        count: number of units.
        shape: shape of one unit.
        stacked: whether the units lie along a first axis of their own.
        ranges: the rows of each unit; None if the units are the whole parameter.
    """

    index: int
    count: int
    shape: tuple[int, ...]
    stacked: bool
    ranges: Split | None

    def key_for(self, name: str) -> str:
        """Name of an entry in the parameter's state, which holds the entries of all its views."""
        return name if self.index == 0 else f"{name}.{self.index}"

    def read(self, tensor: Tensor) -> Tensor:
        """The units of the parameter or its gradient as (count, *unit); no copy without a split."""
        if self.ranges is None:
            return tensor if self.stacked else tensor.unsqueeze(0)
        units = []
        for matrix in self.ranges:
            parts = [tensor[..., start:stop, :] for start, stop in matrix]
            units.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2))
        return torch.cat(units) if tensor.ndim > 2 else torch.stack(units)

    def write_targets(self, tensor: Tensor, stacked: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the parameter, and the part of `stacked` (count, *unit) to copy to each of them."""
        if self.ranges is None:
            return [tensor], [stacked if self.stacked else stacked.squeeze(0)]
        into, sources = [], []
        experts = self.count // len(self.ranges)  # every expert of a 3-D parameter has each of the ranges
        for matrix, unit in zip(self.ranges, stacked.split(experts), strict=True):
            unit = unit if tensor.ndim > 2 else unit.squeeze(0)
            for (start, stop), part in zip(
                matrix, unit.split([b - a for a, b in matrix], dim=-2), strict=True
            ):
                into.append(tensor[..., start:stop, :])
                sources.append(part)
        return into, sources

    def stack_entry(self, value: Tensor) -> Tensor:
        """An entry of the state as (count, ...)."""
        return value if self.stacked else value.unsqueeze(0)

    def unstack_entry(self, value: Tensor) -> Tensor:
        """The inverse of `stack_entry`."""
        return value if self.stacked else value.squeeze(0)

    def own_entries(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entries of the parameter's state that belong to these units, under the names of their rule."""
        suffix = str(self.index) if self.index else ""
        parts = [(key.partition("."), value) for key, value in state.items()]
        return {name: value for (name, _, index), value in parts if index == suffix}


@cache
def unit_views(shape: torch.Size, split: Split | None, matrices: bool) -> tuple[UnitView, ...]:
    """The views of a parameter of this shape; without `matrices`, its units are whole tensors."""
    experts = shape[0] if len(shape) == 3 else 1
    if split is None or not matrices:
        stacked = len(shape) == 3
        return (UnitView(0, experts, tuple(shape[1:] if stacked else shape), stacked, None),)
    by_rows: dict[int, list] = {}
    for matrix in split:
        by_rows.setdefault(sum(stop - start for start, stop in matrix), []).append(matrix)
    return tuple(
        UnitView(i, experts * len(matrices), (rows, shape[-1]), True, tuple(matrices))
        for i, (rows, matrices) in enumerate(by_rows.items())
    )


def stack_units(parts: Sequence[Tensor]) -> Tensor:
    """The units of several parameters as (B, *unit); floating point becomes at least float32."""
    stacked = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if not stacked.is_floating_point():
        return stacked
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))
