"""Read and validate a table of runs. An error is one line: the column, the value and what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.table.read import RawTable, apply_map, read_table, table_of_frame
from hyperp.analysis.table.repeats import number_repeats
from hyperp.analysis.table.spellings import guess_columns, read_lines, unread_columns
from hyperp.analysis.table.statuses import known_status, own_words
from hyperp.expression import columns_in
from hyperp.near_names import close_names, listed_names
from hyperp.run_table import CONTEXT, COVARIATES, STATUSES


@dataclass(frozen=True)
class Runs:
    """A valid table with one row a run: constructing it checks every value, see `check_frame`.

    Attributes:
        frame: the rows.
        path: the file that they were read from.
        sha256: of that file.
        sizes: columns beyond the standard covariates that hold sizes.
        mapping: the names that were given to columns when the table was read, the guessed ones too.
        remarks: what a reader should know about how the columns were read.
        own_seeds: whether the seeds are those of the table; otherwise repeats are numbered.
        guesses: the part of the mapping that nobody gave: standard columns found under another name.
        told: whether the user was told of the guesses already, so that the notes need not.
        where: for construction only: rows outside these column values may be invalid, and are then
            dropped.
    """

    frame: pd.DataFrame
    path: str
    sha256: str
    sizes: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    own_seeds: bool = True
    guesses: Mapping[str, str] = field(default_factory=dict)
    told: bool = False
    where: InitVar[Mapping[str, str] | None] = None
    _repeats: str | None = field(default=None, init=False)

    def __post_init__(self, where: Mapping[str, str] | None) -> None:
        own_seeds = self.own_seeds and "seed" in self.frame.columns
        frame = check_frame(self.frame, self.sizes, where)
        if not own_seeds and "loss" in frame.columns:
            keys = [*CONTEXT, *(n for n in (*COVARIATES, *self.sizes) if n in frame.columns), "lr"]
            frame, repeats = number_repeats(frame.assign(seed=0), keys)
            object.__setattr__(self, "_repeats", repeats)
        object.__setattr__(self, "own_seeds", own_seeds)
        object.__setattr__(self, "frame", frame)

    @property
    def notes(self) -> list[str]:
        """The guesses, the remarks, and whether runs were numbered as seeds."""
        guesses = [] if self.told else read_lines(self.guesses)
        return [*guesses, *self.remarks, *([self._repeats] if self._repeats else [])]

    def with_sizes(self, names: Sequence[str]) -> Self:
        """These runs with more columns as sizes, no longer read under a guessed name; else itself."""
        more = [name for name in names if name not in (*COVARIATES, *self.sizes)]
        if not more:
            return self
        guesses = {name: column for name, column in self.guesses.items() if column not in more}
        mapping = {n: c for n, c in self.mapping.items() if n in guesses or n not in self.guesses}
        frame = self.frame.drop(columns=[n for n in self.mapping if n not in mapping])
        return replace(self, frame=frame, sizes=(*self.sizes, *more), guesses=guesses, mapping=mapping)


def read_runs(
    source: str | Path | pd.DataFrame,
    mapping: Mapping[str, str] | None = None,
    sizes: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    loss: bool = True,
) -> Runs:
    """Read a Parquet, CSV or JSON lines file, the runs.parquet inside a folder, or a DataFrame.

    Standard columns that are missing are guessed from other names, see `spellings`; notes say which.

    Args:
        source: the file, the folder, "-" for standard input, or the DataFrame.
        mapping: names that the analysis knows, each with the column that holds it or an expression in
            columns, such as {"batch_tokens": "bs*2048"} or {"x": "lr/sqrt(`batch size`)"}; see `apply_map`.
        sizes: columns beyond the standard covariates that hold sizes.
        where: rows with these column values must be valid; of the others, invalid ones are dropped and valid
            ones stay.
        loss: whether the column loss is needed.

    Raises:
        ValueError: no such file, an unknown format, a malformed row, a missing or repeated column, two
            columns that may be the same standard one, or a value out of range.
    """
    if isinstance(source, pd.DataFrame):
        table, name = table_of_frame(source), "the DataFrame"
    else:
        table, name = _read_file(Path(source)), str(source)
    asked = (*(where or {}), *(c for source in (mapping or {}).values() for c in columns_in(source)))
    guessed = guess_columns(table.frame, mapping or {}, asked, sizes)
    names, remarks = {**(mapping or {}), **guessed.columns}, list(guessed.remarks)
    frame = apply_map(table.frame, names)
    require_columns(frame, ("lr", "loss") if loss else ("lr",), name)
    if "status" in frame.columns:
        frame["status"], unknown = known_status(frame["status"])
        remarks += [unknown] if unknown else []
    remarks += unread_columns(frame, names)
    rest = {"remarks": tuple(remarks), "guesses": guessed.columns, "where": where}
    try:
        return Runs(frame, table.path, table.sha256, tuple(sizes), names, **rest)
    except ValueError as error:
        told = read_lines(guessed.columns)
        raise ValueError(f"{error} ({', '.join(told)})" if told else str(error)) from None


def require_columns(frame: pd.DataFrame, needed: Sequence[str], source: str) -> None:
    """Raise ValueError for a column that is missing, with the closest one that is there."""
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        columns = list(map(str, frame.columns))
        near = (close_names(missing[0], columns, count=1) or ["COLUMN"])[0]
        raise ValueError(
            f"{source} lacks the column(s) {', '.join(missing)}; it has {listed_names(columns)}; "
            f"name them with {argument('mapping', {missing[0]: near})}"
        )


def _read_file(path: Path) -> RawTable:
    if path.is_dir() and not (path / "runs.parquet").is_file():
        raise ValueError(
            f"{argument('runs')}={path} is a folder without runs.parquet; make it with "
            f"`hyperp-sweep collect {path} -o {path / 'runs.parquet'}`"
        )
    return read_table(path)


def check_frame(
    frame: pd.DataFrame, sizes: Sequence[str] = (), where: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The rows with their types fixed, every value in range.

    A table need not have all columns: missing context columns become empty text, `seed` 0 and `status`
    finished. Missing covariates stay missing.

    Raises:
        ValueError: names the column, the first offending value and what is allowed.
    """
    check = _TableCheck(frame.reset_index(drop=True), where or {})
    for name in CONTEXT:
        check.text(name)
    check.status()
    check.rate()
    for name in (*COVARIATES, *sizes):
        if name in check.frame.columns:
            check.size(name)
    check.seed()
    if "base_lr" in check.frame.columns:
        check.frame["base_lr"] = check.numeric("base_lr")
    if "loss" in check.frame.columns:
        check.loss()
    return _without_implied_setting(check.done())


def _without_implied_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Empty the hash `setting` unless it alone tells some runs apart."""
    rest = [name for name in CONTEXT if name != "setting"]
    if frame.empty or frame.groupby(rest)["setting"].nunique().max() <= 1:
        frame["setting"] = ""
    return frame


class _TableCheck:
    """Raises for an invalid value in the rows that `where` selects, and marks other invalid rows to drop."""

    def __init__(self, frame: pd.DataFrame, where: Mapping[str, str]):
        self.frame = frame.copy(deep=False)
        self.inside = np.ones(len(frame), dtype=bool)
        if where:
            self.inside = self.frame.index.isin(filter_runs(self.frame, where).index)
        self.bad = np.zeros(len(frame), dtype=bool)

    def reject(self, name: str, wrong: np.ndarray, allowed: str) -> None:
        rows = np.flatnonzero(wrong & self.inside)
        if len(rows):
            value = self.frame[name].iloc[rows[0]]
            value = value.item() if isinstance(value, np.generic) else value
            raise ValueError(f"column {name} must be {allowed}, got {value!r} in row {rows[0] + 1}")
        self.bad |= wrong

    def text(self, name: str) -> None:
        if name not in self.frame.columns:
            self.frame[name] = ""
            return
        text = self.frame[name].astype("string")
        empty = (text.isna() | (text.str.strip() == "")).to_numpy(dtype=bool)
        if empty.all():  # the same as no column
            self.frame[name] = ""
            return
        self.reject(name, empty, "text that is not empty")
        self.frame[name] = text.astype(object)

    def status(self) -> None:
        if "status" not in self.frame.columns:
            self.frame["status"] = "finished"
        status = own_words(self.frame["status"])
        self.reject("status", ~status.isin(STATUSES).to_numpy(), f"one of {', '.join(STATUSES)}")
        self.frame["status"] = status

    def numeric(self, name: str) -> np.ndarray:
        column = self.frame[name]
        number = pd.to_numeric(column, errors="coerce").to_numpy(dtype="float64", na_value=np.nan)
        lost = np.isnan(number)
        if lost.any() and not pd.api.types.is_numeric_dtype(column):
            text = column[lost].astype("string").fillna("nan").str.strip().str.lower()
            wrong = np.zeros(len(column), dtype=bool)
            wrong[lost] = ~text.isin(("nan", "none", "")).to_numpy()
            self.reject(name, wrong, "a number")
        return number

    def size(self, name: str) -> None:
        """A size is whole if it can be. Other columns than the standard sizes may be 0, as a weight decay."""
        number = self.numeric(name)
        if name in COVARIATES:
            self.reject(name, ~((number > 0) & (number < np.inf)), "a positive finite number")
        else:
            self.reject(name, ~((number >= 0) & (number < np.inf)), "a finite number of at least 0")
        whole = not self.bad.any() and ((number % 1 == 0) & (number < 2**62)).all()
        self.frame[name] = number.astype("int64") if whole else number

    def rate(self) -> None:
        """A run that has not finished may have no rate, since it is only counted."""
        number = self.numeric("lr")
        wrong = ~((number > 0) & (number < np.inf))
        finished = (self.frame["status"] == "finished").to_numpy()
        self.reject("lr", wrong & finished, "a positive finite number")
        self.frame["lr"] = np.where(wrong, np.nan, number)

    def seed(self) -> None:
        if "seed" not in self.frame.columns:
            self.frame["seed"] = 0
        number = self.numeric("seed")
        wrong = ~((number >= 0) & (number < 2**62) & (number % 1 == 0))
        self.reject("seed", wrong, "a whole number of at least 0")
        self.frame["seed"] = np.where(wrong, 0, number).astype("int64")

    def loss(self) -> None:
        number = self.numeric("loss")
        finished = (self.frame["status"] == "finished").to_numpy()
        self.reject(
            "loss", finished & np.isfinite(number) & (number <= 0), "a positive number in a finished run"
        )
        self.frame["loss"] = number

    def done(self) -> pd.DataFrame:
        if not self.bad.any():
            return self.frame
        return self.frame[~self.bad].reset_index(drop=True)


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """["optimizer=muonh", "width=32"] as a dict; ValueError for anything else."""
    where: dict[str, str] = {}
    for condition in conditions:
        name, sign, value = condition.partition("=")
        if not (name and sign and value):
            raise ValueError(f"--where must be COLUMN=VALUE, such as optimizer=muonh, got {condition!r}")
        if name in where:
            raise ValueError(f"--where {name} must not be given twice, got {where[name]} and {value}")
        where[name] = value
    return where


def filter_runs(frame: pd.DataFrame, where: Mapping[str, str]) -> pd.DataFrame:
    """The rows, index kept, whose columns equal the given values; ValueError where none does."""
    for name, value in where.items():
        asked = argument("where", {name: value})
        if name not in frame.columns:
            raise ValueError(f"{asked}: no such column; there are {', '.join(map(str, frame.columns))}")
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            try:
                keep = column == float(value)
            except ValueError:
                raise ValueError(f"{asked}: column {name} holds numbers") from None
        else:
            keep = column.astype("string").fillna("") == value
        if not keep.any():
            present = ", ".join(str(v) for v in sorted(column.dropna().unique().tolist(), key=str)[:20])
            raise ValueError(f"{asked} matches no row; {name} holds {present}")
        frame = frame[keep]
    return frame
