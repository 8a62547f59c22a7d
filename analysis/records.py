"""Read a table of runs, or refuse it with one line: the column, the value and what is allowed."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperp.analysis.vocabulary import CONTEXT, COVARIATES

REQUIRED = (*CONTEXT, "width", "depth", "tokens", "batch_tokens", "lr", "loss")
# Absent means dense, a single seed, and that whoever wrote the table kept finished runs only.
DEFAULTS: dict[str, Any] = {"granularity": 1, "sparsity": 1, "seed": 0, "status": "finished"}
STATUSES = ("planned", "running", "finished", "diverged", "failed")


@dataclass(frozen=True)
class Runs:
    """A checked table: one row a run, `sha256` of the file that it was read from."""

    frame: pd.DataFrame
    path: str
    sha256: str


def read_runs(path: str | Path) -> Runs:
    """Read a Parquet or CSV file, or the runs.parquet inside a folder.

    Raises:
        ValueError: no such file, an unknown format, a missing or repeated column, or a value out of range.
    """
    file = _locate(Path(path))
    frame = _read(file)
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{file} lacks the column(s) {', '.join(missing)}; it has {', '.join(frame.columns)}"
        )
    if frame.empty:
        raise ValueError(f"{file} holds no rows")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Runs(frame=check_frame(frame), path=str(path), sha256=digest)


def _locate(path: Path) -> Path:
    if path.is_dir():
        if (path / "runs.parquet").is_file():
            return path / "runs.parquet"
        raise ValueError(
            f"RUNS={path} is a folder without runs.parquet; make it with "
            f"`hyperp-sweep collect {path} -o {path / 'runs.parquet'}`"
        )
    if not path.is_file():
        raise ValueError(f"RUNS={path} does not exist; give a Parquet file, a CSV file or a folder of runs")
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"RUNS={path} ends in {path.suffix!r}; allowed are .parquet, .csv or a folder")
    return path


def _read(file: Path) -> pd.DataFrame:
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), [])
        if not header:
            raise ValueError(f"{file} is empty; a header line and one row a run are needed")
    else:
        import pyarrow.parquet as pq

        try:
            header = pq.read_schema(file).names
        except Exception as error:
            raise ValueError(
                f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}"
            ) from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} names the column(s) {', '.join(repeated)} twice; each may appear once")
    return pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)


def check_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Defaults filled in, types fixed and every value in range; the rows stay as they are.

    Raises:
        ValueError: names the column, the first offending value and what is allowed.
    """
    frame = frame.assign(**{name: value for name, value in DEFAULTS.items() if name not in frame.columns})
    frame = frame.reset_index(drop=True)
    for name in CONTEXT:
        text = frame[name].astype("string")
        _reject(frame[name], text.isna() | (text.str.strip() == ""), "text that is not empty")
        frame[name] = text.astype(object)
    _reject(frame["status"], ~frame["status"].isin(STATUSES), f"one of {', '.join(STATUSES)}")
    for name in (*COVARIATES, "seed"):
        least = 0 if name == "seed" else 1
        number = _numeric(frame[name])
        wrong = ~((number >= least) & (number < 2**62) & (number % 1 == 0))
        _reject(frame[name], wrong, f"a whole number of at least {least}")
        frame[name] = number.astype("int64")
    frame["lr"] = _numeric(frame["lr"])
    _reject(frame["lr"], ~((frame["lr"] > 0) & (frame["lr"] < np.inf)), "a positive finite number")
    if "base_lr" in frame.columns:
        frame["base_lr"] = _numeric(frame["base_lr"])
    frame["loss"] = _numeric(frame["loss"])
    finished = frame["status"] == "finished"
    _reject(frame["loss"], finished & (frame["loss"] <= 0), "a positive number in a finished run")
    return frame


def _numeric(column: pd.Series) -> pd.Series:
    number = pd.to_numeric(column, errors="coerce")
    _reject(column, number.isna() & column.notna() & (column.astype(str).str.lower() != "nan"), "a number")
    return number.astype("float64")


def _reject(column: pd.Series, wrong: pd.Series, allowed: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        value = column.iloc[row]
        value = value.item() if isinstance(value, np.generic) else value
        raise ValueError(f"column {column.name} must be {allowed}, got {value!r} in row {row + 1}")


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """["optimizer=muonh", "width=32"] as a dict; ValueError for anything else."""
    where: dict[str, str] = {}
    for condition in conditions:
        name, sign, value = condition.partition("=")
        if not (name and sign and value):
            raise ValueError(f"--where must be COLUMN=VALUE, such as optimizer=muonh, got {condition!r}")
        where[name] = value
    return where


def filter_runs(frame: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """The rows, index kept, whose columns equal the given values; ValueError where none does."""
    for name, value in where.items():
        if name not in frame.columns:
            raise ValueError(f"--where {name}={value}: no such column; there are {', '.join(frame.columns)}")
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            try:
                keep = column == float(value)
            except ValueError:
                raise ValueError(f"--where {name}={value}: column {name} holds numbers") from None
        else:
            keep = column.astype("string").fillna("") == value
        if not keep.any():
            present = ", ".join(str(v) for v in sorted(column.dropna().unique().tolist())[:20])
            raise ValueError(f"--where {name}={value} matches no row; {name} holds {present}")
        frame = frame[keep]
    return frame
