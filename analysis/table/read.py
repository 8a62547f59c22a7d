"""Read a table from a file or a DataFrame, and give its columns the names that the analysis knows."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.expression import PLAIN, parse_expression


@dataclass(frozen=True)
class RawTable:
    """A table before validation: its rows, where they came from, and the SHA-256 of that file."""

    frame: pd.DataFrame
    path: str
    sha256: str


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """["loss=smooth loss", "batch_tokens=bs*2048"] as {name: source}; ValueError for anything else."""
    mapping: dict[str, str] = {}
    for text in texts:
        name, sign, source = text.partition("=")
        name, source = name.strip(), source.strip()
        if not (name and sign and source):
            raise ValueError(f"--map must be NAME=COLUMN or NAME=EXPRESSION, got {text!r}")
        if name in mapping:
            raise ValueError(f"--map names {name} twice: {mapping[name]!r} and {source!r}")
        mapping[name] = source
    return mapping


def apply_map(frame: pd.DataFrame, mapping: Mapping[str, str]) -> pd.DataFrame:
    """The frame with every name of the mapping as a further column; names may swap columns.

    A source that is a column's whole name is that column, whatever it holds. Any other is an expression, see
    `expression`, whose words are columns of the frame or else other names of the mapping.

    Raises:
        ValueError: a source that is no column and no expression, or computes with text; names the word.
    """
    return frame.assign(**_Sources(frame, mapping).all())


class _Sources:
    """The columns that a mapping makes of a frame."""

    def __init__(self, frame: pd.DataFrame, mapping: Mapping[str, str]):
        self.frame = frame
        self.mapping = mapping
        self.columns = [str(name) for name in frame.columns]

    def all(self) -> dict[str, pd.Series]:
        return {name: self.column(name, ()) for name in self.mapping}

    def column(self, name: str, within: tuple[str, ...]) -> pd.Series:
        """The column that the mapping makes under this name; `within` are the names that ask for it."""
        source = self.mapping[name]
        asked = argument("mapping", {name: source})
        if not isinstance(source, str):
            raise ValueError(
                f"{argument('mapping')} must give {name} a column or an expression, got {source!r}"
            )
        if name in within:
            raise ValueError(f"{asked}: {name} must not be computed from itself")
        if source in self.columns:
            return self.frame[source]
        if (product := _spaced_product(source, self.columns)) is not None:
            source = product
        others = [other for other in self.mapping if other not in (*self.columns, name)]
        expression = parse_expression(source, [*self.columns, *others], asked)

        def numbers(column: str) -> np.ndarray:
            there = column in self.columns
            values = self.frame[column] if there else self.column(column, (*within, name))
            return to_number(values).to_numpy()

        return pd.Series(expression(numbers), index=self.frame.index, name=name, dtype="float64")


def _spaced_product(source: str, columns: Sequence[str]) -> str | None:
    """`COLUMN`*NUMBER of COLUMN*NUMBER, where the column's name is no plain word but needs no backquotes."""
    column, star, number = source.rpartition("*")
    spaced = star and column.strip() in columns and not PLAIN.fullmatch(column.strip())
    return f"`{column.strip()}`*{number}" if spaced else None


def to_number(column: pd.Series) -> pd.Series:
    """The column as float64, absent values as NaN; ValueError names the first value that is text."""
    number = pd.to_numeric(column, errors="coerce").astype("float64")
    wrong = number.isna() & column.notna() & (column.astype(str).str.strip().str.lower() != "nan")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(f"column {column.name} must be a number, got {column.iloc[row]!r} in row {row + 1}")
    return number


def read_table(path: str | Path) -> RawTable:
    """Read a Parquet or CSV file with any columns, or the runs.parquet inside a folder.

    Raises:
        ValueError: no such file, an unknown format, a column named twice, a row that is longer than the
            header, or no rows.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "runs.parquet"
    if not file.is_file():
        raise ValueError(
            f"{argument('runs')}={file} does not exist; give a Parquet file, a CSV or a folder of runs"
        )
    if file.suffix not in (".parquet", ".csv"):
        raise ValueError(
            f"{argument('runs')}={file} ends in {file.suffix!r}; allowed are .parquet, .csv or a folder"
        )
    header = _csv_header(file) if file.suffix == ".csv" else parquet_columns(file)
    _refuse_repeated(header, str(file))
    frame = _read_csv(file, header) if file.suffix == ".csv" else pd.read_parquet(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return RawTable(frame=_with_text_flags(frame, str(file)), path=str(path), sha256=digest)


def table_of_frame(frame: pd.DataFrame) -> RawTable:
    """A DataFrame as a table; the SHA-256 is that of its CSV.

    Raises:
        ValueError: a column named twice, or no rows.
    """
    _refuse_repeated([str(name) for name in frame.columns], "the DataFrame")
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    return RawTable(frame=_with_text_flags(frame, "the DataFrame"), path="DataFrame", sha256=digest)


def _refuse_repeated(header: Sequence[str], source: str) -> None:
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise ValueError(f"{source} names the column(s) {', '.join(repeated)} twice; each may appear once")


def _with_text_flags(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Booleans as the text "True" and "False", which is how `where` compares them."""
    if frame.empty:
        raise ValueError(f"{source} holds no rows")
    return frame.assign(**{c: frame[c].astype(str) for c in frame.columns if frame[c].dtype == bool})


def _csv_header(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        header = next(csv.reader(stream), [])
    if not header:
        raise ValueError(f"{file} is empty; it must have a header line and a row for each run")
    return header


def _read_csv(file: Path, header: Sequence[str]) -> pd.DataFrame:
    """The rows under their header. Empty fields beyond it, such as after a last comma, are no values.

    pandas alone would take the first column of such rows for an index, and move every value by one column.
    """
    try:
        wrong = _first_wide_row(file, len(header))
    except csv.Error:  # such as a very long field, which pandas can read
        wrong = None
    if wrong is not None:
        raise ValueError(f"{file}: {wrong}, but the header names {len(header)} columns")
    return pd.read_csv(file, index_col=False, usecols=range(len(header)))


def _first_wide_row(file: Path, width: int) -> str | None:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.reader(stream)
        next(rows)
        for number, row in enumerate((row for row in rows if row), start=1):
            if len(row) > width and any(field.strip() for field in row[width:]):
                return f"row {number} (line {rows.line_num}) has {len(row)} values"
    return None


def parquet_columns(file: Path) -> list[str]:
    """The column names of a Parquet file; ValueError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
