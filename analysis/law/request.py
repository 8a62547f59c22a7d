"""What a law is asked for, and whether that makes sense of the table that it is asked of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from hyperp.analysis.optima.estimation import MethodOptions
from hyperp.analysis.optima.methods import DEFAULT_METHOD
from hyperp.analysis.vocabulary import (
    DEFAULT_REACH,
    LEVEL,
    METHODS,
    NOT_COVARIATES,
    WINDOW,
    MethodName,
    Space,
)
from hyperp.run_table import COVARIATES


@dataclass(frozen=True)
class FitRequest:
    """What to fit.

    `by` are the covariates whose exponents are estimated, `fix` exponents held at a value, such as {"depth":
    -0.5}, `over` what is tuned within a slice, the rate first, `also_by` the covariates of the second
    (all of `by` unless given), `slice_by` columns beyond the standard covariates that tell slices apart.
    `where` are column values that select the rows to fit; the other slices stay in the law's file as
    excluded. `window` is the half-width of the parabola's window in octaves, `level` the coverage of
    every interval, and `reach` how far beyond its range the law will recommend. With `given`, every row
    already is an optimum.
    """

    by: tuple[str, ...]
    fix: Mapping[str, float]
    where: Mapping[str, str]
    over: tuple[str, ...] = ("lr",)
    also_by: tuple[str, ...] = ()
    slice_by: tuple[str, ...] = ()
    method: MethodName = DEFAULT_METHOD
    space: Space = "log"
    given: bool = False
    window: float = WINDOW
    level: float = LEVEL
    reach: float = DEFAULT_REACH

    @property
    def extra(self) -> list[str]:
        """Columns beyond the standard covariates that tell slices apart."""
        return [n for n in (*self.by, *self.fix, *self.slice_by) if n not in COVARIATES]

    @property
    def options(self) -> MethodOptions:
        """What a method needs to know."""
        return MethodOptions(self.over, self.by, self.window, self.level)


def check_request(request: FitRequest, frame: pd.DataFrame) -> None:
    """ValueError unless what is asked makes sense of this table; `by` may be empty.

    `by`, `fix` and `over` must name different columns of numbers that are there.
    """
    _check_over(request.over, frame)
    if request.method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {request.method!r}")
    if request.space not in ("log", "linear"):
        raise ValueError(f"--space must be log or linear, got {request.space!r}")
    named = [*request.by, *request.fix]
    for name in (*named, *request.slice_by):
        if name not in frame.columns or name in NOT_COVARIATES:
            there = [n for n in COVARIATES if n in frame.columns]
            raise ValueError(
                f"covariate must be one of {', '.join(there or COVARIATES)}, or another column of sizes, "
                f"got {name!r}"
            )
        if (*named, *request.over).count(name) > 1:
            raise ValueError(f"covariate {name} is given twice in --by, --fix and --tuned; once is allowed")
    for name in request.also_by:
        if name not in request.by:
            raise ValueError(f"--also-by must name some of --by {','.join(request.by)}, got {name!r}")
    for name, value in request.fix.items():
        if not math.isfinite(value):
            raise ValueError(f"--fix {name} must be a finite exponent, got {value}")
    if not (math.isfinite(request.window) and request.window > 0):
        raise ValueError(f"--window must be a positive number of octaves, got {request.window}")
    if not request.reach >= 1:
        raise ValueError(f"--reach must be at least 1, got {request.reach}")


def _check_over(over: tuple[str, ...], frame: pd.DataFrame) -> None:
    if over[:1] != ("lr",) or len(set(over)) != len(over) or len(over) > 2:
        raise ValueError(f"--tuned must be lr, or lr and one more column, got {','.join(over)}")
    for name in over[1:]:
        if name not in frame.columns or name in NOT_COVARIATES:
            there = [n for n in COVARIATES if n in frame.columns]
            raise ValueError(
                f"--tuned must be lr, or lr and one more column that was tuned, such as "
                f"{' or '.join(there or COVARIATES)}, got {','.join(over)}"
            )
