"""The best learning rate of each slice with its standard error, or the state that says why there is none."""

from dataclasses import dataclass, field

import numpy as np

from hyperp.analysis.optima.parabola import Parabola
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import State

MIN_RATES = 3


@dataclass(frozen=True)
class Optimum:
    """What a slice says about its best rate; from `log2_lr` on, None or empty unless `state` is bracketed.

    `loss` and `curvature` (per octave squared) are of the curve at its bottom, `rates` those that it was
    fitted to. `se` is in octaves, `df` its degrees of freedom; None without any. `low` and `high` are
    rates, None when unbounded. `runs` is how many runs the optimum averages, `also` the base-2 logs of
    what is tuned beside the rate. Of a parabola, `se` takes the slope's variance from the noise or from
    the scatter of the seeds' own optima (`seed_variance`, octaves squared, with `seed_df`) over their
    number, whichever is larger, and `df` from the same, and `low` and `high` are Fieller's.
    """

    state: State
    reason: str | None
    next_rates: tuple[float, ...] = ()
    log2_lr: float | None = None
    loss: float | None = None
    curvature: float | None = None
    rates: tuple[float, ...] = ()
    seeds: int = 0
    runs: int = 1
    se: float | None = None
    df: int = 0
    low: float | None = None
    high: float | None = None
    also: dict[str, float] = field(default_factory=dict)
    also_se: dict[str, float] = field(default_factory=dict)
    parabola: Parabola | None = None
    seed_variance: float = 0.0
    seed_df: int = 0

    @property
    def lr(self) -> float | None:
        """The optimum as a rate."""
        return None if self.log2_lr is None else 2.0**self.log2_lr


def too_few_rates_optimum(one: Slice) -> Optimum:
    """The optimum of a slice with fewer than three rates."""
    rates = np.unique(one.lr)
    reason = f"{len(rates)} rate(s) with a finished run, at least 3 are needed"
    add = (float(rates[0]) / 2, float(rates[-1]) * 2) if len(rates) else ()
    if not add and one.diverged:
        add = (one.diverged[0] / 4, one.diverged[0] / 2)
    return Optimum("too_few_rates", reason, tuple(r for r in add if r not in one.diverged))


def edge_optimum(one: Slice, rates: np.ndarray, low: bool) -> Optimum:
    """The optimum of a slice whose best rate is at an end of `rates` (sorted), with rates to add beyond."""
    end = float(rates[0] if low else rates[-1])
    side = "lowest" if low else "highest"
    reason = f"the {side} rate {end:.4g} has the lowest loss"
    add = (end / 2, end / 4) if low else (end * 2, end * 4)
    wall = None if low else next((r for r in one.diverged if r > end), None)
    if wall is not None:
        # Beyond the last finished rate it diverges, so the bottom lies between the two.
        reason += f" and {wall:.4g} diverged"
        step = (wall / end) ** (1 / 3)
        add = (end * step, end * step**2)
    return Optimum("edge_low" if low else "edge_high", reason, add)
