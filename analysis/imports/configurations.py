"""The configuration of a run in a file beside its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hyperp.analysis.table.json_lines import flattened, parse_object
from hyperp.analysis.table.stored import Stored, decoded

# In this order, in the folder of the log and then in the one above it.
NAMES = (
    *("config.json", "config.yaml", "config.yml", "params.json", "hparams.yaml", "hparams.json"),
    *("args.json", "args.yaml", ".hydra/config.yaml"),
)


def configuration_beside(log: Path, name: str | None = None) -> Path | None:
    """The configuration of the run whose log this is; `name` in place of the usual names."""
    for folder in (log.parent, log.parent.parent):
        for one in (name,) if name is not None else NAMES:
            if (folder / one).is_file() and folder / one != log:
                return folder / one
    return None


def read_configuration(path: Path) -> dict[str, Any]:
    """The settings with nested keys joined by dots.

    Raises:
        ValueError: the file is no JSON or YAML mapping.
    """
    text = decoded(Stored(str(path), "jsonl", path.read_bytes(), ""))
    if path.suffix == ".json":
        found = parse_object(text, f"{path}:")
    else:
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold a mapping, got {str(found)[:40]!r}")
    return flattened({key: _unwrapped(value) for key, value in found.items()})


def _unwrapped(value: Any) -> Any:
    """The value of a key of W&B's config.yaml, which keeps it beside a description."""
    if isinstance(value, Mapping) and "value" in value and set(value) <= {"value", "desc"}:
        return value["value"]
    return value
