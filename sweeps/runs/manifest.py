"""Lists of what was started, in the folder of a sweep, so that other processes find it again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from hyperp import files
from hyperp.terminal import invalid_field

T = TypeVar("T")
SCHEMA = 1


@dataclass(frozen=True)
class Manifest(Generic[T]):
    """A file `name` with a list of `entries`; `started` is what was done to them, `free` when it may go."""

    name: str
    entries: str
    types: TypeAdapter[list[T]]
    started: str
    free: str

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
        raise ValueError(f"{path} does not say what was {self.started} ({reason}); remove it if {self.free}")

    def write(self, root: Path, entries: Sequence[T]) -> None:
        """Replace them all; only under the lock of the sweep, or by whom it was handed to."""
        listed = self.types.dump_python(list(entries), mode="json")
        files.write_json(root / self.name, {"schema": SCHEMA, self.entries: listed})
