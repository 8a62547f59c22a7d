"""JSON lists of what was started, in the folder of a sweep, so that other processes find it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from hyperp import files
from hyperp.validation import invalid_field

T = TypeVar("T")
SCHEMA = 1


@dataclass(frozen=True)
class Manifest(Generic[T]):
    """A JSON file `name` below a sweep's root, with a list under the key `entries`.

    The error about a damaged file says what it lists (`action`, such as "submitted") and when a user may
    remove it (`removable_if`).
    """

    name: str
    entries: str
    types: TypeAdapter[list[T]]
    action: str
    removable_if: str

    def read(self, root: Path) -> list[T]:
        """The entries below `root`, oldest first. Raises ValueError if the file is damaged."""
        path = root / self.name
        try:
            value: Any = json.loads(path.read_text())
            if not isinstance(value, dict) or value.get("schema") != SCHEMA:
                raise ValueError(f"schema must be {SCHEMA}")
            return self.types.validate_python(value.get(self.entries))
        except FileNotFoundError:
            return []
        except ValidationError as error:
            reason = invalid_field(error, self.entries)
        except ValueError as error:  # of JSON or of UTF-8
            reason = str(error)
        raise ValueError(
            f"{path} does not say what was {self.action} ({reason}); remove it if {self.removable_if}"
        )

    def write(self, root: Path, entries: Sequence[T]) -> None:
        """Replace all entries. The caller holds the lock of the sweep."""
        listed = self.types.dump_python(list(entries), mode="json")
        files.write_json(root / self.name, {"schema": SCHEMA, self.entries: listed})
