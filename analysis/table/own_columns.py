"""Runs to do, in the columns of the table that somebody keeps, for tables that are not of a hyperp sweep."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hyperp.analysis.errors import Refusal
from hyperp.analysis.vocabulary import trains_with_hyperp
from hyperp.expression import columns_in, parse_expression


@contextmanager
def points_in_own_columns(mapping: Mapping[str, str]) -> Iterator[None]:
    """Let a refusal show its points under the names from which the mapping reads."""
    try:
        yield
    except Refusal as refusal:
        refusal.own_points = in_own_columns(refusal.points, mapping)
        raise


def in_own_columns(
    points: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]
) -> list[dict[str, Any]] | None:
    """The points with every name and value as the table has it; None if a hyperp sweep can run them.

    A column that is a multiple of another is given as the other. One that is computed in another way is
    given under its expression.
    """
    if any(trains_with_hyperp(point) for point in points):
        return None
    return [dict(_own(n, v, mapping) for n, v in point.items() if n != "factor") for point in points]


def _own(name: str, value: Any, mapping: Mapping[str, str]) -> tuple[str, Any]:
    source = mapping.get(name)
    if source is None:
        return name, value
    columns = columns_in(source)
    if len(columns) != 1 or source == columns[0]:
        return source, value
    factor = parse_expression(source, columns, source).factor
    if factor is None:
        return source, value
    divided = [_round(v / factor) for v in value] if isinstance(value, list) else _round(value / factor)
    return columns[0], divided


def _round(value: float) -> int | float:
    """Ten digits, and a whole number as one."""
    rounded = float(f"{value:.10g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**62 else rounded
