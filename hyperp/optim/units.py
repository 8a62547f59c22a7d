"""Units of a parameter: the matrices (or whole tensors) in it that an update rule treats one by one.

A 2-D parameter is one matrix, a 3-D one (experts, d_out, d_in) as many as it has experts, and a split divides
the rows of either into several. Units of one shape, of however many parameters, are stacked to (B, *unit) for
a batched update and written back to where they were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hyperp.optim.split import Split


@dataclass(frozen=True)
class UnitView:
    """The units of one shape in a parameter; `ranges` are their rows, None where they are all of it.

    `index` numbers the pieces of a parameter. `stacked` says that units lie along a first axis of their own.
    """

    index: int
    count: int
    shape: tuple[int, ...]
    stacked: bool
    ranges: Split | None

    def key_for(self, name: str) -> str:
        """Of an entry of the parameter's state, which holds those of all its pieces."""
        return name if self.index == 0 else f"{name}.{self.index}"

    def read(self, tensor: Tensor) -> Tensor:
        """(count, *unit) of the parameter or its gradient; a view where they are all of it."""
        if self.ranges is None:
            return tensor if self.stacked else tensor.unsqueeze(0)
        units = []
        for matrix in self.ranges:
            parts = [tensor[..., start:stop, :] for start, stop in matrix]
            units.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2))
        return torch.cat(units) if tensor.ndim > 2 else torch.stack(units)

    def write_targets(self, tensor: Tensor, stacked: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the parameter, and what of `stacked` (count, *unit) has to be copied to each."""
        if self.ranges is None:
            return [tensor], [stacked if self.stacked else stacked.squeeze(0)]
        into, sources = [], []
        per = self.count // len(self.ranges)  # a unit is in every expert of a 3-D parameter
        for matrix, unit in zip(self.ranges, stacked.split(per), strict=True):
            unit = unit if tensor.ndim > 2 else unit.squeeze(0)
            for (start, stop), part in zip(
                matrix, unit.split([b - a for a, b in matrix], dim=-2), strict=True
            ):
                into.append(tensor[..., start:stop, :])
                sources.append(part)
        return into, sources

    def stack_entry(self, value: Tensor) -> Tensor:
        """(count, ...) of an entry of the state."""
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
    """The pieces of a parameter of this shape. `matrices` is whether a unit has to be a matrix."""
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
    """(B, *unit) from the units of several parameters; floating point in at least float32."""
    stacked = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if not stacked.is_floating_point():
        return stacked
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))
