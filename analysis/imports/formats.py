"""The formats that runs are imported from, and how each is known by what a source holds."""

import glob
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from hyperp.analysis.errors import argument
from hyperp.analysis.imports.logged import Logs
from hyperp.analysis.imports.packages import read_only
from hyperp.analysis.imports.wandb_chart import chart_header, is_chart
from hyperp.analysis.table.stored import FORMATS as TABLES
from hyperp.analysis.table.stored import STANDARD_INPUT
from hyperp.near_names import listed_names

Format = Literal["table", "wandb-chart", "wandb", "tensorboard", "logs", "mlflow", "optuna", "ray"]
ALL_FORMATS: tuple[Format, ...] = get_args(Format)
SQLITE = b"SQLite format 3\x00"
PROJECT = re.compile(r"[\w.-]+/[\w.-]+")
OWN_TABLES: Mapping[Format, set[str]] = {
    "optuna": {"studies", "trials"},
    "mlflow": {"experiments", "runs", "metrics"},
}


def recognise(sources: Sequence[str]) -> tuple[Format, str]:
    """The format of what was named, and by what it was known.

    Raises:
        ValueError: it does not exist, or is none of the formats.
    """
    if len(sources) > 1:
        return "logs", f"{len(sources)} files"
    source = sources[0]
    path = local_path(source)
    if source == STANDARD_INPUT:
        return "table", "standard input"
    if path.is_dir():
        return _format_of_folder(path)
    if path.is_file():
        return _format_of_file(path)
    if glob.has_magic(source):
        return "logs", "a pattern of files"
    if source.startswith(("http://", "https://")):
        return "mlflow", "the address of a server"
    if PROJECT.fullmatch(source) and not path.parent.exists() and path.suffix not in TABLES:
        return "wandb", "entity/project"
    raise ValueError(
        f"{argument('source', option='SOURCE')}={source} does not exist; give a file, a folder, a quoted "
        "pattern of log files, or entity/project of W&B"
    )


def require_format(sources: Sequence[str], kind: str) -> Format:
    """The format that the user named, if these sources can be of it.

    Raises:
        ValueError: no such format, several sources of one that has one, or no file or folder as it needs.
    """
    asked = argument("format")
    if kind not in ALL_FORMATS:
        raise ValueError(f"{asked} must be one of {', '.join(ALL_FORMATS)}, got {kind!r}")
    found = cast(Format, kind)
    if len(sources) > 1 and found != "logs":
        raise ValueError(f"{asked} {found} must have one source, got {' '.join(sources)}")
    path = local_path(sources[0])
    if found in ("ray", "tensorboard") and not path.is_dir():
        raise ValueError(f"{asked} {found} must have a folder, got {sources[0]}")
    if found in ("optuna", "wandb-chart") and not path.is_file():
        raise ValueError(f"{asked} {found} must have a file, got {sources[0]}")
    if found in OWN_TABLES and path.is_file() and _format_of_file(path)[0] != found:
        raise ValueError(f"{asked} {found} must have an SQLite file of {found}, got {sources[0]}")
    return found


def local_path(source: str) -> Path:
    """The path of a source, also of the address of an SQLite file."""
    return Path(source.removeprefix("sqlite:///"))


def log_paths(sources: Sequence[str]) -> list[Path]:
    """The files that are named or match a pattern; ValueError for one of these that matches none."""
    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        root = Path(path.anchor)
        found = [path] if path.is_file() else sorted(root.glob(str(path.relative_to(root))))
        files = [one for one in found if one.is_file()]
        if not files:
            raise ValueError(f"{argument('source', option='SOURCE')}={source} matches no file")
        paths += files
    return list(dict.fromkeys(paths))


def _format_of_folder(folder: Path) -> tuple[Format, str]:
    from hyperp.analysis.imports.ray_tune import trial_folders
    from hyperp.analysis.imports.tensorboard_events import event_folders

    if (folder / "runs.parquet").is_file():
        return "table", "a folder with runs.parquet"
    if trials := trial_folders(folder):
        return "ray", f"params.json and result.json in {len(trials)} folders"
    if next(folder.glob("*/meta.yaml"), None) is not None:
        return "mlflow", "a meta.yaml for each experiment"
    if events := event_folders(folder):
        return "tensorboard", f"events in {len(events)} folders"
    raise ValueError(
        f"{folder} holds no runs of Ray Tune, TensorBoard or MLflow; logs of one run each are named by a "
        f"quoted pattern, such as '{folder}/*/metrics.jsonl'"
    )


def _format_of_file(path: Path) -> tuple[Format, str]:
    with path.open("rb") as file:
        if file.read(len(SQLITE)) == SQLITE:
            return _format_of_database(path)
    if path.suffix == ".csv" and is_chart(chart_header(path)):
        return "wandb-chart", "columns RUN - METRIC with __MIN and __MAX"
    return "table", "a row for each run"


def _format_of_database(path: Path) -> tuple[Format, str]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        names = {name for (name,) in connection.execute("select name from sqlite_master where type='table'")}
    except sqlite3.Error as error:
        raise ValueError(f"{path} is not a readable SQLite file: {error}") from None
    finally:
        connection.close()
    for tool, tables in OWN_TABLES.items():
        if tables <= names:
            return tool, f"the tables {', '.join(sorted(tables))}"
    raise ValueError(
        f"{path} is an SQLite file, but of neither Optuna nor MLflow: it has {listed_names(sorted(names))}"
    )


def read_logs(sources: Sequence[str], kind: Format, config: str | None) -> Logs:
    """The runs of a source of any format but a table, whose rows need no choice of a value.

    Raises:
        ValueError: the source is not of this format, or a library is missing.
    """
    path = local_path(sources[0])
    match kind:
        case "logs":
            from hyperp.analysis.imports.log_files import read_log_files

            return read_log_files(log_paths(sources), config)
        case "ray":
            from hyperp.analysis.imports.ray_tune import read_ray

            return read_ray(path)
        case "tensorboard":
            from hyperp.analysis.imports.tensorboard_events import read_tensorboard

            return read_tensorboard(path, config)
        case "optuna":
            from hyperp.analysis.imports.optuna_storage import read_optuna

            return read_optuna(path)
        case "mlflow":
            from hyperp.analysis.imports.mlflow_store import read_mlflow

            remote = sources[0].startswith(("http://", "https://"))
            return read_mlflow(sources[0] if remote else _address(path))
        case "wandb":
            from hyperp.analysis.imports.wandb_api import read_wandb

            return read_wandb(sources[0])
        case "wandb-chart":
            from hyperp.analysis.imports.wandb_chart import read_chart

            return read_chart(path, None if config is None else Path(config))
    raise ValueError(f"format must be one of {', '.join(ALL_FORMATS)}, got {kind!r}")


def _address(path: Path) -> str:
    """The address of a folder or of an SQLite file, which is only read, not upgraded to another version."""
    return read_only(path) if path.is_file() else path.resolve().as_uri()
