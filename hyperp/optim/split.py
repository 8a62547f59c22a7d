"""Which rows of a fused parameter make up which matrix, as data that a parameter group carries.

Fused projections hold several matrices (queries, keys and values in one parameter, gate and up in another),
and each matrix belongs on a sphere of its own. A split lists the ranges of rows that make up each matrix::

    model.attention.qkv.param_splits = {"weight": qkv_split(16, 4, 64, by="head")}
    optimizer = SSO(model)

or, without a module, {"params": [...], "split": gate_up_split(4096)} in a parameter group. With any split,
matrices are read from the parameter and written back to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

from torch import Tensor, nn

from hyperp.optim import checks

# For each matrix, the ranges (first row, row after the last) that make it up from top to bottom.
Split = tuple[tuple[tuple[int, int], ...], ...]
SplitBy = Literal["component", "group", "head"]


def split_rows(sizes: Iterable[int]) -> Split:
    """Matrices that lie under each other and have these numbers of rows."""
    sizes = list(sizes)
    for size in sizes:
        checks.whole_number("sizes", size, 1)
    return tuple(((start, stop),) for start, stop in pairwise(accumulate(sizes, initial=0)))


def gate_up_split(hidden: int) -> Split:
    """The two halves of a fused gate and up projection, `hidden` rows each."""
    return split_rows([hidden, hidden])


def qkv_split(
    query_heads: int, kv_heads: int, head_size: int, *, by: SplitBy = "component", interleaved: bool = False
) -> Split:
    """The matrices of a fused projection to queries, keys and values of grouped-query attention.

    Args:
        query_heads, kv_heads, head_size: numbers of heads, and rows of each.
        by: "component" makes three matrices, "group" one for each key-value head with its queries, "head" one
            for each head (arXiv 2601.08393 trains by head).
        interleaved: whether rows lie group by group, (queries, key, value) of each key-value head, as in
            Megatron-LM; otherwise all queries come first, then all keys, then all values.
    """
    for name, value in (("query_heads", query_heads), ("kv_heads", kv_heads), ("head_size", head_size)):
        checks.whole_number(name, value, 1)
    checks.one_of("by", by, ("component", "group", "head"))
    if query_heads % kv_heads:
        raise ValueError(f"kv_heads must divide query_heads={query_heads}, got {kv_heads}")
    share = query_heads // kv_heads
    heads = [(i * head_size, (i + 1) * head_size) for i in range(query_heads + 2 * kv_heads)]
    groups = []  # of each key-value head: its queries, its key, its value
    for g in range(kv_heads):
        if interleaved:
            rows = heads[g * (share + 2) : (g + 1) * (share + 2)]
        else:
            rows = heads[g * share : (g + 1) * share]
            rows = [*rows, heads[query_heads + g], heads[query_heads + kv_heads + g]]
        groups.append(rows)
    if by == "head":
        return tuple((head,) for head in heads)
    if by == "group":
        return tuple(_merge_adjacent(rows) for rows in groups)
    queries = [head for rows in groups for head in rows[:share]]
    return (
        _merge_adjacent(queries),
        _merge_adjacent([rows[-2] for rows in groups]),
        _merge_adjacent([rows[-1] for rows in groups]),
    )


def check_split(split: Any, rows: int, name: str) -> Split:
    """`split` as tuples. Raises ValueError unless it has each of the `rows` rows exactly once."""
    try:
        made = tuple(tuple((int(a), int(b)) for a, b in matrix) for matrix in split)
    except (TypeError, ValueError):
        raise ValueError(
            f"split of {name} must list ranges of rows for each matrix, such as (((0, 8),), ((8, 16),)), "
            f"got {split!r}"
        ) from None
    at = 0
    for start, stop in sorted(part for matrix in made for part in matrix):
        if start != at or stop <= start:
            break
        at = stop
    if at != rows or not all(made):
        raise ValueError(f"split of {name} must take each of its {rows} rows exactly once, got {made}")
    return made


def splits_of(model: nn.Module) -> dict[Tensor, Split]:
    """The splits that modules declare for their own parameters in `param_splits`."""
    found: dict[Tensor, Split] = {}
    for path, module in model.named_modules():
        declared = getattr(module, "param_splits", {})
        if not isinstance(declared, Mapping):
            raise ValueError(f"param_splits of {path} must map parameter names to splits, got {declared!r}")
        for name, split in declared.items():
            parameter = module._parameters.get(name)
            if parameter is None:
                own = ", ".join(module._parameters) or "it has none"
                raise ValueError(
                    f"param_splits of {path} names {name!r}, but must name one of its own: {own}"
                )
            found[parameter] = check_split(split, parameter.shape[-2], f"{path}.{name}")
    return found


def _merge_adjacent(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    made: list[tuple[int, int]] = []
    for start, stop in ranges:
        if made and made[-1][1] == start:
            made[-1] = (made[-1][0], stop)
        else:
            made.append((start, stop))
    return tuple(made)
