"""Train many runs: plan a grid, run it here or in Slurm, and account for every run.

>>> from hyperp.sweeps import make_plan, run, submit, status, cancel, collect  # doctest: +SKIP

README.md in this folder has an example. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperp.sweeps.account import status as status
    from hyperp.sweeps.launch import cancel as cancel
    from hyperp.sweeps.launch import run as run
    from hyperp.sweeps.launch import submit as submit
    from hyperp.sweeps.plan.plan import make_plan as make_plan
    from hyperp.sweeps.table.runs import collect as collect

_HOMES = {
    "make_plan": "plan.plan",
    "run": "launch",
    "submit": "launch",
    "cancel": "launch",
    "status": "account",
    "collect": "table.runs",
}
__all__ = ["cancel", "collect", "make_plan", "run", "status", "submit"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
