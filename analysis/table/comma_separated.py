"""A CSV with a row for each run. What is malformed is named with its row and column, and never repaired."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

import pandas as pd

from hyperp.analysis.table.stored import Stored, decoded

OTHER_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+([eE][+-]?\d+)?\s*")
GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2}(,\d{3})+\s*")


def read_csv(stored: Stored) -> pd.DataFrame:
    """The rows under their header. Empty fields beyond it, such as after a last comma, are no values.

    pandas alone would take the first column of such rows for an index, and move every value by one column.

    Raises:
        ValueError: in one line with file, row and column: another encoding or separator, a column named
            twice, a row with more or fewer values than the header, a decimal comma.
    """
    text = decoded(stored)
    # A field may be longer than the module's own limit; the limit is of the module, so it is put back.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next((row for row in rows if row), [])
        _check_header(header, stored.name)
        _check_rows(_numbered(rows), header, stored.name)
    except csv.Error as error:
        raise ValueError(f"{stored.name}: line {rows.line_num} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return pd.read_csv(io.StringIO(text), index_col=False, usecols=range(len(header)))


def refuse_repeated(header: Sequence[str], source: str) -> None:
    """Raise ValueError for a column that is named twice."""
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise ValueError(f"{source} names the column(s) {', '.join(repeated)} twice; each may appear once")


def _check_header(header: Sequence[str], source: str) -> None:
    if not any(name.strip() for name in header):
        raise ValueError(f"{source} is empty; it must have a header line and a row for each run")
    for sign, word in OTHER_SEPARATORS.items():
        if len(header) <= header[0].count(sign):
            raise ValueError(f"{source} must be separated by commas, got {word} in the header")
    refuse_repeated(header, source)


def _numbered(rows: Iterator[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, each with its place for the text of an error."""
    number = 0
    for row in rows:
        if row:
            number += 1
            yield f"row {number} (line {getattr(rows, 'line_num', number + 1)})", row


def _check_rows(rows: Iterator[tuple[str, list[str]]], header: Sequence[str], source: str) -> None:
    width = len(header)
    for place, row in rows:
        if len(row) < width or (len(row) > width and any(field.strip() for field in row[width:])):
            raise ValueError(f"{source}: {place} has {len(row)} values, but the header names {width} columns")
        for name, field in zip(header, row, strict=False):
            if "," in field and DECIMAL_COMMA.fullmatch(field) and not GROUPED.fullmatch(field):
                raise ValueError(
                    f"{source}: {place}, column {name} must be a number with a decimal point, got {field!r}"
                )
