"""Read a table from a file or a DataFrame, and give its columns the names that the analysis knows."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.table.comma_separated import read_csv, refuse_repeated
from hyperp.analysis.table.json_lines import read_json_lines
from hyperp.analysis.table.stored import load_stored
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
    """Read a Parquet, CSV or JSON lines file, the runs.parquet inside a folder, or standard input for "-".

    Raises:
        ValueError: no such file, an unknown format, what is malformed with its row and column, or no rows.
    """
    file = Path(path)
    stored = load_stored(file / "runs.parquet" if file.is_dir() else file)
    if stored.kind == "parquet":
        refuse_repeated(parquet_columns(io.BytesIO(stored.content), stored.name), stored.name)
        frame = pd.read_parquet(io.BytesIO(stored.content))
    else:
        frame = read_csv(stored) if stored.kind == "csv" else read_json_lines(stored)
    return RawTable(frame=_with_text_flags(frame, stored.name), path=str(path), sha256=stored.sha256)


def table_of_frame(frame: pd.DataFrame) -> RawTable:
    """A DataFrame as a table; the SHA-256 is that of its CSV.

    Raises:
        ValueError: a column named twice, or no rows.
    """
    refuse_repeated([str(name) for name in frame.columns], "the DataFrame")
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    return RawTable(frame=_with_text_flags(frame, "the DataFrame"), path="DataFrame", sha256=digest)


def _with_text_flags(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Booleans as the text "True" and "False", which is how `where` compares them."""
    if frame.empty:
        raise ValueError(f"{source} holds no rows")
    return frame.assign(**{c: frame[c].astype(str) for c in frame.columns if frame[c].dtype == bool})


def parquet_columns(file: Path | IO[bytes], name: str = "") -> list[str]:
    """The column names of a Parquet file; ValueError, which names the file, if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{name or file} is not a readable Parquet file: {str(error).splitlines()[0]}"
        ) from error
