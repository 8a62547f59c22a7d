"""The recorded facts of every trainer: version, source, optimizers and the names of its settings."""

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from hyperp.validation import Strict


class Name(Strict):
    """The type of one setting, and its choices where it has some."""

    type: Literal["int", "float", "str", "flag", "dict"]
    choices: list[str] | None = None


class Facts(Strict):
    """One trainer as it was when trainers.yaml was written."""

    title: str
    version: str
    source: str
    optimizers: dict[str, str]
    names: dict[str, Name]


@cache
def trainer_facts() -> dict[str, Facts]:
    """Every trainer of trainers.yaml by its short name."""
    text = (files("hyperp.analysis.handover") / "trainers.yaml").read_text()
    table: dict[str, Any] = yaml.safe_load(text)
    return {name: Facts(**facts) for name, facts in table.items()}
