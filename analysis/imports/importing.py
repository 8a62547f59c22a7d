"""Runs from other tools as runs.parquet, with a record of what was taken as what and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyperp import __version__
from hyperp.analysis.answers import Answer
from hyperp.analysis.errors import argument
from hyperp.analysis.imports.formats import Format, local_path, read_logs, recognise, require_format
from hyperp.analysis.imports.logged import At
from hyperp.analysis.imports.rows import rows_of_logs
from hyperp.analysis.table.read import apply_map, read_table, to_number
from hyperp.analysis.table.spellings import guess_columns, read_lines
from hyperp.analysis.table.statuses import known_status
from hyperp.analysis.table.validate import check_frame, require_columns
from hyperp.expression import columns_in
from hyperp.files import replacing
from hyperp.run_table import COVARIATES
from hyperp.validation import Strict

KEY = b"hyperp.import"  # of the metadata in the Parquet file
OPTIONAL = ("parameters", "flops")  # no law of the rate needs them, so that two candidates are no error


class ImportRecord(Strict):
    """What an import took as what; it is stored in the metadata of the Parquet file under the key KEY.

    Attributes:
        source: what was named.
        format, known_by: the format, and by what it was known.
        at: which value of the metric was taken; empty for a table, whose rows have one.
        columns: each standard column, and the column, metric or expression that it was read from.
        remarks: how the source was read.
        left_out: how many things are not in the table, by reason.
        runs: how many runs are, by status.
        version: of this package.
    """

    source: str
    format: str
    known_by: str
    at: str
    columns: dict[str, str]
    remarks: tuple[str, ...]
    left_out: dict[str, int]
    runs: dict[str, int]
    version: str = __version__


@dataclass(frozen=True, repr=False)
class Imported(Answer):
    """Imported runs: the table, and the record of how it was made."""

    frame: pd.DataFrame
    record: ImportRecord

    def headline(self) -> str:
        """How many runs there are, by status."""
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.record.runs.items()))
        return f"{sum(self.record.runs.values())} runs ({statuses})"

    def notes(self) -> list[str]:
        """The format, how the source was read, and what was taken as what."""
        told = (*self.record.remarks, *read_lines(self.record.columns))
        return [f"format {self.record.format}: {self.record.known_by}", *told]

    def left_out(self) -> list[str]:
        """A line for each reason why something is not in the table, with how many things that are."""
        return [f"left out: {reason}: {count}" for reason, count in self.record.left_out.items()]

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.frame

    def save(self, path: str | Path) -> None:
        """Write a Parquet file, whole or not at all, with the record in its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(_storable(self.frame), preserve_index=False)
        metadata = {**(table.schema.metadata or {}), KEY: self.record.model_dump_json().encode()}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, "wb") as file:
            pq.write_table(table.replace_schema_metadata(metadata), file)


def import_record(path: str | Path) -> ImportRecord | None:
    """The record in the metadata of a Parquet file; None if it was not imported."""
    import pyarrow.parquet as pq

    found = (pq.read_schema(Path(path)).metadata or {}).get(KEY)
    return None if found is None else ImportRecord.model_validate_json(found)


def import_runs(
    source: str | Path | Sequence[str | Path],
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
    metric: str | None = None,
    at: str = "last",
    config_keys: Sequence[str] = (),
    config: str | None = None,
) -> Imported:
    """Read runs from another tool's files, database or server, a row for each run.

    Args:
        source: a table, W&B chart, database, folder, pattern of log files, or entity/project of W&B.
        format: one of `formats.ALL_FORMATS`; recognised unless given.
        mapping: standard columns and what to read them from, as in `read_runs`; before all guesses.
        metric: the metric that is the loss.
        at: which of its values: "last", "min" (the lowest) or "step=N".
        config_keys: the settings to keep; all unless given.
        config: the configuration beside each log, or for a W&B chart the run table.

    Raises:
        ValueError: an unknown format, a missing library, a malformed file, or a value out of range.
    """
    sources = [str(one) for one in ([source] if isinstance(source, str | Path) else source)]
    kind, known_by = (require_format(sources, format), "as given") if format else recognise(sources)
    given, taken = dict(mapping or {}), {}
    if kind == "table":
        _refuse_for_table(at, config_keys, config)
        frame, remarks, left_out, value = read_table(local_path(sources[0])).frame, (), Counter[str](), ""
        given |= {} if metric is None else {"loss": metric}
    else:
        place = At.parse(at)
        logs = read_logs(sources, kind, config)
        rows = rows_of_logs(logs, metric, place, config_keys)
        frame, remarks, left_out, value = rows.frame, logs.remarks, Counter(rows.left_out), str(place)
        taken = {} if "loss" in given else {"loss": rows.metric}
    named, columns, more = _named(frame, given)
    kept, dropped = _without_unusable(named, columns)
    check_frame(kept)
    record = ImportRecord(
        source=" ".join(sources),
        format=kind,
        known_by=known_by,
        at=value,
        columns={**taken, **columns},
        remarks=(*remarks, *more),
        left_out=dict(left_out + dropped),
        runs={str(status): int(count) for status, count in _statuses(kept).value_counts().items()},
    )
    return Imported(kept, record)


def _refuse_for_table(at: str, config_keys: Sequence[str], config: str | None) -> None:
    for name, given in (("at", at != "last" and at), ("config_keys", config_keys), ("config", config)):
        if given:
            option = "--config-key" if name == "config_keys" else None
            raise ValueError(
                f"{argument(name, option=option)} is for runs that were logged step by step; in a table "
                f"with a row for each run, {argument('mapping', {'loss': 'COLUMN'})} names the column"
            )


def _named(frame: pd.DataFrame, given: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The table under standard names, these with their sources, and remarks. Guessed columns are renamed."""
    asked = [column for text in given.values() for column in columns_in(text)]
    guessed = guess_columns(frame, given, asked)
    found, remarks = dict(guessed.columns), list(guessed.remarks)
    for name in OPTIONAL:
        try:
            found |= guess_columns(frame, {**given, **found}, asked, wanted=(name,)).columns
        except ValueError as error:
            remarks.append(f"{name} is not read: {error}")
    columns = {**given, **found}
    named = apply_map(frame, columns).drop(columns=[c for c in found.values() if c not in columns])
    require_columns(named, ("lr", "loss"), "the source")
    if "status" in named.columns:
        named["status"], unknown = known_status(named["status"])
        remarks += [unknown] if unknown else []
    return named, columns, remarks


def _without_unusable(frame: pd.DataFrame, columns: Mapping[str, str]) -> tuple[pd.DataFrame, Counter[str]]:
    """The rows that have every standard size, and a rate if they finished; and counts of the others."""
    left_out = Counter[str]()
    for name in (*COVARIATES, "seed"):
        if name in columns:
            frame, left_out[f"runs without {name}"] = _with_values(frame, name, frame[name].notna())
    usable = (_statuses(frame) != "finished") | to_number(frame["lr"]).notna()
    frame, left_out["finished runs without a learning rate"] = _with_values(frame, "lr", usable)
    return frame, +left_out


def _statuses(frame: pd.DataFrame) -> pd.Series:
    if "status" in frame.columns:
        return frame["status"]
    return pd.Series("finished", frame.index)


def _with_values(frame: pd.DataFrame, name: str, there: pd.Series) -> tuple[pd.DataFrame, int]:
    if not there.any():
        raise ValueError(f"column {name} must have a value in some row, got none")
    return frame[there].reset_index(drop=True), int((~there).sum())


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of mixed kinds as text, which is how a CSV would have them; Parquet has one kind for each."""
    mixed = {}
    for name in frame.columns:
        kinds = {type(value) for value in frame[name].dropna()} if frame[name].dtype == object else set()
        if len(kinds) > 1:
            mixed[name] = frame[name].astype("string")
    return frame.assign(**mixed)
