"""One run of a lab's own trainer: its values, derived ones included, its identity, and its command."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from hyperp.config import RuntimeConfig
from hyperp.expression import parse_expression
from hyperp.near_names import listed_names
from hyperp.run_table import COVARIATES
from hyperp.sweeps.plan.command_section import OTHER_COLUMNS, PLACES, RESUME_PLACES, CommandSection, Values
from hyperp.sweeps.plan.placeholders import fill, names_in, require_known
from hyperp.validation import invalid_field

COLUMNS = (*OTHER_COLUMNS, *COVARIATES)  # may be derived for the table alone
NOT_IDENTITY = ("progress", "resume", "stop", "retries", "cwd", "commit", "dirty")  # change no result


@dataclass(frozen=True)
class CommandRun:
    """The configuration of one run that a command does. `folder` is the absolute working directory.

    Raises ValueError, naming the field, for a section or values that do not fit together.
    """

    trainer: CommandSection
    runtime: RuntimeConfig
    folder: str

    @cached_property
    def values(self) -> Values:
        """The values and what is derived from them, in order; a derived one may use those before it."""
        known: Values = dict(self.trainer.values)
        for name, text in self.trainer.derive.items():
            field = f"trainer.derive.{name}"
            numbers = {
                k: v for k, v in known.items() if isinstance(v, int | float) and not isinstance(v, bool)
            }
            expression = parse_expression(text, list(numbers), field)
            value = float(expression(lambda column, numbers=numbers: np.float64(numbers[column])))
            if not np.isfinite(value):
                raise ValueError(f"{field} must be finite, got {text} = {value:g}")
            known[name] = int(value) if value == int(value) else value
        return known

    def check_names(self) -> None:
        """Raise ValueError for a name in braces without a value, and for a value that nothing uses."""
        known, used = {**self.values, **dict.fromkeys(PLACES)}, set()
        resuming = {**known, **dict.fromkeys(RESUME_PLACES)}
        for field, text in self.trainer.texts().items():
            names = names_in(text, field)
            require_known(names, resuming if field.startswith("trainer.resume.arguments") else known, field)
            used |= names
        for text in self.trainer.derive.values():
            used |= set(parse_expression(text, list(known), "trainer.derive").columns)
        needed = {*self.trainer.values, *(n for n in self.trainer.derive if n not in COLUMNS)}
        for name in sorted(needed - used):
            section = "values" if name in self.trainer.values else "derive"
            raise ValueError(
                f"trainer.{section}.{name} must be used, or the trainer never learns it: as {{{name}}} in "
                f"trainer.command, env, result or resume, or in trainer.derive; "
                f"used are {listed_names(sorted(used))}"
            )

    def arguments(self, places: Mapping[str, Any], checkpoint: Path | None = None) -> list[str]:
        """The command with every name filled in; `places` are the values of PLACES.

        With a checkpoint, a match of `resume.when`, the arguments that go on from it are added.
        """
        values = {**self.values, **places}
        texts = [*self.trainer.command]
        if checkpoint is not None and self.trainer.resume:
            texts += self.trainer.resume.arguments
            values |= {"checkpoint": str(checkpoint), "checkpoint_folder": str(checkpoint.parent)}
        return [fill(text, values) for text in texts]

    def environment(self, places: Mapping[str, Any]) -> dict[str, str]:
        """The environment variables of the section, filled in."""
        return {name: fill(text, {**self.values, **places}) for name, text in self.trainer.env.items()}

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result of the run, as plain values.

        The trainer's code counts by its git commit, or without one by the name of its folder; what is derived
        counts where the command learns it.
        """
        section = self.trainer.model_dump(mode="json")
        kept = {key: value for key, value in section.items() if key not in NOT_IDENTITY}
        told = {n for text in (*self.trainer.command, *self.trainer.env.values()) for n in names_in(text, "")}
        kept["derive"] = {name: self.values[name] for name in self.trainer.derive if name in told}
        code = {"commit": self.trainer.commit} if self.trainer.commit else {"cwd": self.trainer.cwd}
        return kept | code

    def run_id(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of `identity()` as canonical JSON."""
        text = json.dumps(self.identity(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_values(self) -> dict[str, Any]:
        """Plain values, which `command_run_of` reads back."""
        return {
            "trainer": self.trainer.model_dump(mode="json"),
            "runtime": asdict(self.runtime),
            "folder": self.folder,
        }


def command_run_of(values: Mapping[str, Any]) -> CommandRun:
    """The run of plain values. Raises ValueError, naming the field."""
    try:
        section = CommandSection.model_validate(values["trainer"])
    except ValidationError as error:
        raise ValueError(invalid_field(error, "trainer")) from None
    folder = values.get("folder") or str(Path(section.cwd).expanduser().resolve())
    return CommandRun(section, RuntimeConfig(**values["runtime"]), folder)


def git_state(folder: Path) -> tuple[str | None, bool]:
    """The commit that a folder is at, and whether files in it differ from it; (None, False) without git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit, bool(commit and git("status", "--porcelain", "--", "."))
