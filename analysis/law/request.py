"""The request to fit a law, and whether it makes sense for a table."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from hyperp.analysis.errors import argument
from hyperp.analysis.law.hierarchy.estimate import BEND_SD, TAU_SD
from hyperp.analysis.optima.estimation import MethodOptions
from hyperp.analysis.vocabulary import (
    DEFAULT_METHOD,
    DEFAULT_REACH,
    LEVEL,
    METHODS,
    NOT_COVARIATES,
    WINDOW,
    MethodName,
    Space,
)
from hyperp.expression import columns_in
from hyperp.run_table import COVARIATES

MOST_TUNED = 3  # a quadratic form in three quantities has six coefficients, besides floor and optimum


@dataclass(frozen=True)
class FitRequest:
    """What to fit.

    Attributes:
        by: the covariates whose exponents are estimated.
        fix: exponents held at a value, such as {"depth": -0.5}.
        where: column values that select the rows to fit; the other slices stay in the law as excluded.
        over: what is tuned within a slice, the rate first.
        also_by: the covariates of what is tuned beside the rate; all of `by` if empty.
        slice_by: columns beyond the standard covariates that tell slices apart.
        method: how optima are found.
        space: of the least squares.
        given: every row is already an optimum.
        window: half-width of the parabola's window in octaves.
        level: coverage of every interval.
        reach: largest factor beyond its range at which the law recommends.
        tau_sd: scale of the half-Student t prior of the scatter about the law, in octaves.
        bend_sd: SD of the law's bends, per natural log squared; 0 for a pure power law.
        prior: by covariate, mean and SD of a prior on its exponent.
        se: with `given`, the column of standard errors of ln lr.
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
    tau_sd: float = TAU_SD
    bend_sd: float = BEND_SD
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    se: str | None = None

    @property
    def hierarchical(self) -> bool:
        """Whether the law is the hierarchical one; otherwise its optima are regressed."""
        return self.method == "hierarchical" and self.space == "log"

    @property
    def extra(self) -> list[str]:
        """Columns beyond the standard covariates that tell slices apart."""
        return [n for n in (*self.by, *self.fix, *self.slice_by) if n not in COVARIATES]

    @property
    def options(self) -> MethodOptions:
        """The options of the method that finds optima."""
        return MethodOptions(self.over, self.by, self.window, self.level)


def check_request(request: FitRequest, frame: pd.DataFrame, mapping: Mapping[str, str] | None = None) -> None:
    """Check that a request fits this table, read with this mapping; `by` may be empty.

    Raises:
        ValueError: `by`, `fix` and `over` do not name different numeric columns of the table, a size is
            computed from the rate so that no slice has two rates, or an option is out of range.
    """
    _check_over(request.over, frame)
    if request.method not in METHODS:
        raise ValueError(f"{argument('method')} must be one of {', '.join(METHODS)}, got {request.method!r}")
    if request.space not in ("log", "linear"):
        raise ValueError(f"{argument('space')} must be log or linear, got {request.space!r}")
    named = [*request.by, *request.fix]
    for name in (*named, *request.slice_by):
        if name not in frame.columns or name in NOT_COVARIATES:
            there = [n for n in COVARIATES if n in frame.columns]
            close = difflib.get_close_matches(name, map(str, frame.columns), n=1)
            raise ValueError(
                f"covariate must be one of {', '.join(there or COVARIATES)}, or another column of sizes, "
                f"got {name!r}{f'; did you mean {close[0]}?' if close else ''}"
            )
        if (*named, *request.over).count(name) > 1:
            by, fix, tuned = argument("by"), argument("fix"), argument("over", option="--tuned")
            raise ValueError(f"covariate {name} must be given once in {by}, {fix} and {tuned}, got it twice")
    for name in (*named, *request.slice_by):
        _check_computed_size(name, frame, mapping or {})
    for name in request.also_by:
        if name not in request.by:
            among = argument("by", ",".join(request.by))
            raise ValueError(f"{argument('also_by')} must name some of {among}, got {name!r}")
    for name, value in request.fix.items():
        if not math.isfinite(value):
            raise ValueError(f"{argument('fix')} {name} must be a finite exponent, got {value}")
    for name in request.over if request.given else ():
        if (low := frame[name].min()) <= 0:
            raise ValueError(f"column {name} must be above 0 in a table of optima, got {low:g}")
    if not (math.isfinite(request.window) and request.window > 0):
        raise ValueError(f"{argument('window')} must be a positive number of octaves, got {request.window}")
    if not 0 < request.level < 1:
        raise ValueError(f"{argument('level')} must lie between 0 and 1, got {request.level}")
    if not (math.isfinite(request.tau_sd) and request.tau_sd > 0):
        raise ValueError(f"{argument('tau_sd')} must be a positive number of octaves, got {request.tau_sd}")
    if not (math.isfinite(request.bend_sd) and request.bend_sd >= 0):
        raise ValueError(f"{argument('bend_sd')} must be 0 or a positive number, got {request.bend_sd}")
    for name, (mean, sd) in request.prior.items():
        if name not in request.by:
            among = argument("by", ",".join(request.by))
            raise ValueError(f"{argument('prior')} must name some of {among}, got {name!r}")
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise ValueError(
                f"{argument('prior')} {name} must be a finite mean and a positive SD, got {mean} and {sd}"
            )
    if request.prior and not request.hierarchical:
        raise ValueError(f"{argument('prior')} needs {argument('method', 'hierarchical')} in log space")
    if request.se is not None:
        if not request.given:
            raise ValueError(
                f"{argument('se')} needs {argument('given', option='--optima')}, got {request.se!r}"
            )
        if request.se not in frame.columns:
            raise ValueError(f"{argument('se')} must be a column of the table, got {request.se!r}")
    if not request.reach >= 1:
        raise ValueError(f"{argument('reach')} must be at least 1, got {request.reach}")


def _check_computed_size(name: str, frame: pd.DataFrame, mapping: Mapping[str, str]) -> None:
    """Refuse a size that changes with the rate alone, such as batch/(lr*wd) where wd does not follow lr."""
    source, own = mapping.get(name, ""), columns_in(mapping.get("lr", ""))
    rates = {"lr", *own} if len(own) == 1 else {"lr"}
    others = [column for column in columns_in(source) if column not in rates]
    if len(others) == len(columns_in(source)):
        return
    alike = frame.groupby(others) if others else frame.groupby(np.zeros(len(frame)))
    values = alike[["lr", name]].nunique()
    if ((values["lr"] > 1) & (values[name] > 1)).any():
        asked, tuned = argument("mapping", {name: source}), argument("over", f"lr,{name}", "--tuned")
        raise ValueError(
            f"{asked}: a size must be the same at every rate, got one that changes with lr; {tuned} takes "
            "what is tuned"
        )


def _check_over(over: tuple[str, ...], frame: pd.DataFrame) -> None:
    tuned, got = argument("over", option="--tuned"), ",".join(over)
    if over[:1] != ("lr",) or len(set(over)) != len(over) or len(over) > MOST_TUNED:
        raise ValueError(f"{tuned} must be lr, or lr and one or two more columns, got {got}")
    for name in over[1:]:
        if name not in frame.columns or name in NOT_COVARIATES:
            there = [n for n in COVARIATES if n in frame.columns]
            raise ValueError(
                f"{tuned} must be lr, or lr and one or two more columns that were tuned, such as "
                f"{' or '.join(there or COVARIATES)}, got {got}"
            )
