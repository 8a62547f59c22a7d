"""Files that the analysis writes: written atomically, and validated on reading with one-line errors."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hyperp.files import replacing
from hyperp.validation import invalid_field

Model = TypeVar("Model", bound=BaseModel)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file atomically, and create its folder.

    Raises:
        ValueError: the file cannot be written; names this file, not the temporary one beside it.
    """
    target = Path(path)
    if target.parent.exists() and not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: {target.parent} is not a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            file.write(text)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror or error}") from None


def load_json(path: str | Path, model: type[Model], version: int) -> Model:
    """Read a JSON file into a model.

    Raises:
        ValueError: in one line: the file is missing, not JSON or of another schema version, or the first
            field that is wrong.
    """
    return validate_content(path, read_json(path, version), model)


def read_json(path: str | Path, version: int) -> dict[str, Any]:
    """The content of a JSON file after a check of its schema version; raises as `load_json` does."""
    file = Path(path)
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != version:
        raise ValueError(f"{file}: schema_version must be {version}, got {found!r}; fit the law again")
    return raw


def validate_content(path: str | Path, raw: dict[str, Any], model: type[Model]) -> Model:
    """The content as a model; the ValueError names the first field that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {invalid_field(error)}") from None
