"""Fit learning-rate laws with intervals, recommend a rate, report.

    from hyperp.analysis import fit_law, load_law, Refusal

The names below are loaded on first use: importing this package costs nothing, and nothing here imports torch.
See README.md in this folder.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperp.analysis.api import (
        Law,
        check,
        fit_law,
        load_law,
        next_runs,
        read_runs,
        transfer,
        validate,
        write_report,
    )
    from hyperp.analysis.api_loss import fit_loss, isoflop, leverage
    from hyperp.analysis.api_opinion import doctor, opinion
    from hyperp.analysis.errors import Refusal
    from hyperp.analysis.imports.importing import import_runs

__all__ = [
    "Law",
    "Refusal",
    "check",
    "doctor",
    "fit_law",
    "fit_loss",
    "import_runs",
    "isoflop",
    "leverage",
    "load_law",
    "next_runs",
    "opinion",
    "read_runs",
    "transfer",
    "validate",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"Refusal": "errors", "import_runs": "imports.importing"}
    homes |= dict.fromkeys(("fit_loss", "isoflop", "leverage"), "api_loss")
    homes |= dict.fromkeys(("doctor", "opinion"), "api_opinion")
    return getattr(import_module(f"hyperp.analysis.{homes.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
