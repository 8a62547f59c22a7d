"""Foreign tables: read any Parquet or CSV, and give its columns the names that the analysis knows."""

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Source:
    """A column of the table, times a number."""

    column: str
    factor: float = 1.0


@dataclass(frozen=True)
class Table:
    """A table as it was found: the rows, where they came from and the SHA-256 of that file."""

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


def find_source(name: str, source: str, columns: Sequence[str]) -> Source:
    """Which column, and times what; a column whose own name holds a star comes first.

    Raises:
        ValueError: no such column, or the factor is not a positive finite number.
    """
    if source in columns:
        return Source(source)
    column, star, number = source.rpartition("*")
    column = column.strip()
    if not star or column not in columns:
        missing = column if star else source
        raise ValueError(f"--map {name}={source}: no column {missing!r}; there are {', '.join(columns)}")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(
            f"--map {name}={source}: the factor must be a positive number, got {number.strip()!r}"
        )
    return Source(column, factor)


def apply_map(frame: pd.DataFrame, mapping: Mapping[str, str]) -> pd.DataFrame:
    """The frame with every name of the mapping as a column, all taken from the columns as they were.

    Raises:
        ValueError: names the column: it is absent, or text where a factor asks for numbers.
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


def read_table(path: str | Path) -> Table:
    """Read a Parquet or CSV file, or the runs.parquet inside a folder, whatever its columns.

    A column of booleans becomes text, so that `--where kept=True` means what it says.

    Raises:
        ValueError: no such file, an unknown format, a column named twice, or no rows.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "runs.parquet"
    if not file.is_file():
        raise ValueError(f"RUNS={file} does not exist; give a Parquet file, a CSV or a folder of runs")
    if file.suffix not in (".parquet", ".csv"):
        raise ValueError(f"RUNS={file} ends in {file.suffix!r}; allowed are .parquet, .csv or a folder")
    header = _csv_header(file) if file.suffix == ".csv" else parquet_columns(file)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} names the column(s) {', '.join(repeated)} twice; each may appear once")
    frame = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    if frame.empty:
        raise ValueError(f"{file} holds no rows")
    frame = frame.assign(**{c: frame[c].astype(str) for c in frame.columns if frame[c].dtype == bool})
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Table(frame=frame, path=str(path), sha256=digest)


def _csv_header(file: Path) -> list[str]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        header = next(csv.reader(stream), [])
    if not header:
        raise ValueError(f"{file} is empty; a header line and one row a run are needed")
    return header


def parquet_columns(file: Path) -> list[str]:
    """The names of its columns; ValueError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
