"""Recommendations for the tests of what is handed to trainers."""

import textwrap
from dataclasses import replace
from typing import Any

import pytest

from hyperp.analysis.handover.base import Handover, Sourced
from hyperp.analysis.handover.write import TRANSLATORS

SIZES = {"width": 4096, "depth": 32, "tokens": 10**12, "batch_tokens": 2**22}
HIDDEN = Sourced(0.003, "the law")
OTHERS = dict.fromkeys(("embedding", "unembedding", "vector"), Sourced(0.012, "4 times by the rule"))


def context(optimizer: str, parametrization: str = "raw", schedule: str = "linear") -> dict[str, str]:
    return {"optimizer": optimizer, "parametrization": parametrization, "schedule": schedule}


ADAMW = Handover(
    headline="lr = 0.003, 95% prediction interval 0.002 to 0.004",
    context=context("adamw", "mup", "cosine"),
    sizes=SIZES,
    rates={"hidden": HIDDEN, **OTHERS},
    trainer="hyperp",
    sequence_length=4096,
)
MUON = replace(ADAMW, context=context("muon"), rates={"hidden": HIDDEN, **dict.fromkeys(OTHERS, HIDDEN)})
MUONH = replace(MUON, context=context("muonh"))
FOREIGN = replace(
    ADAMW,
    context={"optimizer": "lion", "schedule": "wsd"},
    rates={"hidden": HIDDEN},
    unknown_rates="no groups",
    trainer=None,
)
HANDOVERS = {"adamw": ADAMW, "muon": MUON, "muonh": MUONH, "foreign": FOREIGN}


def active(trainer: str, handover: Handover) -> dict[str, Any]:
    return {one.name: one.value for one in TRANSLATORS[trainer](handover).settings if one.active}


def untranslated(trainer: str, handover: Handover) -> str:
    return "\n".join(TRANSLATORS[trainer](handover).untranslated)


def python_lines(trainer: str, handover: Handover) -> list[str]:
    """The lines of Python among what a trainer has no setting for."""
    return [line.strip() for line in TRANSLATORS[trainer](handover).untranslated if line.startswith("  ")]


def python_code(trainer: str, handover: Handover) -> list[str]:
    """The same lines with their indentation, as a file would have them."""
    lines = [line for line in TRANSLATORS[trainer](handover).untranslated if line.startswith("  ")]
    return textwrap.dedent("\n".join(lines)).splitlines()


def assert_read(got: Any, value: Any, name: str) -> None:
    """Numbers that are not whole are written with six digits."""
    assert got == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name
