"""What a way of finding optima is given, and what it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.optima.parabola import mean_loss_by_rate
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import LEVEL, WINDOW


@dataclass(frozen=True)
class MethodOptions:
    """What a method may need beside slices.

    `over` is what is tuned, the rate first; `by` names the covariates, whose logs a method that fits all
    slices together takes for where their optima lie.
    """

    over: tuple[str, ...] = ("lr",)
    by: tuple[str, ...] = ()
    window: float = WINDOW
    level: float = LEVEL


@dataclass(frozen=True)
class BasinEstimate:
    """Relative excess loss about an optimum: sum of coef * prod(v ** powers), v in natural logs of `over`.

    `bend` has, for each covariate that the curvature follows, its exponent and the size where that is 1.
    """

    powers: list[list[int]]
    coef: list[float]
    bend: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodResult:
    """An optimum for each slice, the basin that it shares where one is known, and what the method noted."""

    optima: list[Optimum]
    basins: list[BasinEstimate | None]
    by_runs: bool = False  # whether an optimum counts as often as the runs that it averages
    notes: list[str] = field(default_factory=list)


Method = Callable[[Sequence[Slice], MethodOptions], MethodResult]


def mean_loss_by_setting(one: Slice, options: MethodOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct settings (n, p), and the mean loss and the number of runs at each, over seeds."""
    settings = np.column_stack([one.lr, *one.tuned.values()])
    distinct, index, count = np.unique(settings, axis=0, return_inverse=True, return_counts=True)
    if len(options.over) == 1:
        return distinct, mean_loss_by_rate(one.lr, one.seed, one.loss)[1], count
    return distinct, np.bincount(index.ravel(), weights=one.loss) / count, count
