"""The optimum of one slice, or the state that says why the slice has none."""

from dataclasses import dataclass, field

import numpy as np

from hyperp.analysis.optima.parabola import Parabola
from hyperp.analysis.table.slices import Slice
from hyperp.analysis.vocabulary import State

MIN_RATES = 3  # a slice with fewer distinct rates cannot bracket its optimum


@dataclass(frozen=True)
class Optimum:
    """The best rate of a slice; from `log2_lr` on, None or empty where the method has none.

    Attributes:
        state: whether the slice brackets its optimum, or why not.
        reason: one line that explains any other state.
        next_rates: rates to run, so that the slice brackets its optimum.
        log2_lr: base-2 log of the best rate; that of a one-sided slice, where its method has one, is a guess.
        loss, curvature: of the fitted curve at its bottom; the curvature is loss per octave squared.
        rates: the rates that the curve was fitted to.
        seeds: number of seeds.
        runs: number of runs that the optimum averages.
        se: standard error of `log2_lr` in octaves; None without a degree of freedom. Of a parabola, the
            variance of the slope comes from the noise, or from the scatter of the seeds' own vertices over
            their number, whichever is larger.
        df: degrees of freedom of `se`.
        rounding: half the step, in octaves, between the rates about an optimum that is one of the slice's own
            rates or a mean of some; None where it is that of a curve. `se` is then its standard deviation, of
            a uniform distribution, without the noise of the losses, and there is no interval.
        low, high: ends of the interval, as rates; None where it is unbounded. Of a parabola, they are
            Fieller's.
        also, also_se: base-2 log and standard error of each quantity tuned beside the rate.
        parabola: the fit of the method `two-stage`, with `seed_variance`, the variance of its seeds' own
            vertices in octaves squared, and `seed_df`, the degrees of freedom of that.
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
    rounding: float | None = None
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
    """The optimum of a slice with fewer than MIN_RATES rates, with rates to add on both sides."""
    rates = np.unique(one.lr)
    reason = f"{len(rates)} rate(s) with a finished run, at least {MIN_RATES} are needed"
    add = (float(rates[0]) / 2, float(rates[-1]) * 2) if len(rates) else ()
    if not add and one.diverged:
        add = (one.diverged[0] / 4, one.diverged[0] / 2)
    return Optimum("too_few_rates", reason, tuple(r for r in add if r not in one.diverged))


def edge_optimum(one: Slice, rates: np.ndarray, low: bool) -> Optimum:
    """The optimum of a slice whose best rate is the lowest or highest one, with rates to add beyond it.

    Args:
        one: the slice.
        rates: its distinct rates, sorted.
        low: whether the best rate is the lowest one.
    """
    end = float(rates[0] if low else rates[-1])
    side = "lowest" if low else "highest"
    reason = f"the {side} rate {end:.4g} has the lowest loss"
    add = (end / 2, end / 4) if low else (end * 2, end * 4)
    wall = None if low else next((r for r in one.diverged if r > end), None)
    if wall is not None:
        # Training diverges beyond the highest finished rate, so the bottom lies between the two.
        reason += f" and {wall:.4g} diverged"
        step = (wall / end) ** (1 / 3)
        add = (end * step, end * step**2)
    return Optimum("edge_low" if low else "edge_high", reason, add)
