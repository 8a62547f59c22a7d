"""Read a table from a file or a DataFrame, and give its columns the names that the analysis knows."""

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyperp.analysis.errors import argument


@dataclass(frozen=True)
class ScaledColumn:
    """A column of the table, and the number that it is multiplied by."""

    column: str
    factor: float = 1.0


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
            raise ValueError(f"--map must be NAME=COLUMN or NAME=COLUMN*NUMBER, got {text!r}")
        if name in mapping:
            raise ValueError(f"--map names {name} twice: {mapping[name]!r} and {source!r}")
        mapping[name] = source
    return mapping


def find_source(name: str, source: str, columns: Sequence[str]) -> ScaledColumn:
    """The column and the factor that `source` names; a column whose own name contains a star comes first.

    Raises:
        ValueError: no such column, or the factor is not a positive finite number.
    """
    asked = argument("mapping", {name: source})
    if source in columns:
        return ScaledColumn(source)
    column, star, number = source.rpartition("*")
    column = column.strip()
    if not star or column not in columns:
        missing = column if star else source
        raise ValueError(f"{asked}: no column {missing!r}; there are {', '.join(columns)}")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(f"{asked}: the factor must be a positive number, got {number.strip()!r}")
    return ScaledColumn(column, factor)


def apply_map(frame: pd.DataFrame, mapping: Mapping[str, str]) -> pd.DataFrame:
    """The frame with every name of the mapping as a further column; names may swap columns.

    Raises:
        ValueError: a column is absent, or has a factor but holds text; names the column.
    """
    columns = [str(name) for name in frame.columns]
    made: dict[str, pd.Series] = {}
    for name, text in mapping.items():
        source = find_source(name, text, columns)
        made[name] = frame[source.column]
        if source.factor != 1.0:
            made[name] = to_number(made[name]) * source.factor
    return frame.assign(**made)


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
        ValueError: no such file, an unknown format, a column named twice, or no rows.
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
    frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
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
    repeated = sorted({name for name in header if header.count(name) > 1})
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


def parquet_columns(file: Path) -> list[str]:
    """The column names of a Parquet file; ValueError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
