"""What it costs to train at another rate than the best one, by the basin, with an interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.law.records import BasinRecord, SliceRecord
from hyperp.analysis.optima.estimation import BasinEstimate, MethodResult
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.vocabulary import LN2

# D: shape parameters: ln curvature, skew, ln tail and an exponent of the curvature for each covariate

STEP = 1e-3  # of a shape parameter, for a derivative
LEAST = 1e-9  # percent; a price of zero has no logarithm


@dataclass(frozen=True)
class BasinPrice:
    """The basin of a context, and how well it is known.

    Attributes:
        basin: its record.
        cov: (D, D) covariance of its shape; None where the method has none.
    """

    basin: BasinRecord
    cov: np.ndarray | None = None

    @classmethod
    def of_method(cls, found: MethodResult, place: int) -> "BasinPrice | None":
        """The basin that a method fits about the slice at this place; None for a parabola of each slice."""
        estimate = found.basins[place]
        record = None if estimate is None else shape_record(estimate)
        if record is None:
            return None
        context = next((c for c in found.likelihoods if place in c.members), None)
        return cls(record, None if context is None else context.mode.cov)

    @classmethod
    def of_record(cls, basin: BasinRecord) -> "BasinPrice | None":
        """The basin of a law, whose errors it takes as independent; None for a median of parabolas."""
        record = shape_record(basin)
        if record is None:
            return None
        errors = [record.errors.get(name, 0.0) for name in ("curvature", "skew", "tail")]
        errors += [record.bend_errors.get(name, 0.0) for name in record.bend]
        return cls(record, np.diag(np.square(errors)))

    def percent(self, sizes: Mapping[str, float], octaves: float) -> float:
        """The excess loss, in percent, of a rate that the optimum at these sizes lies so far above."""
        return 100 * self.basin.at(sizes).penalty(-octaves * LN2)

    def log_error(self, sizes: Mapping[str, float], octaves: float) -> float:
        """The standard error of ln `percent` that the basin's own error makes."""
        skew, tail = self.basin.skew, self.basin.tail
        if self.cov is None or skew is None or tail is None:
            return 0.0

        def log_percent(skew: float, tail: float) -> float:
            moved = BasinPrice(self.basin.model_copy(update={"skew": skew, "tail": tail}))
            return math.log(max(moved.percent(sizes, octaves), LEAST))

        by_skew = log_percent(skew + STEP, tail) - log_percent(skew - STEP, tail)
        by_tail = log_percent(skew, tail * math.exp(STEP)) - log_percent(skew, tail * math.exp(-STEP))
        growth = [math.log(sizes.get(name, middle) / middle) for name, (_, middle) in self.basin.bend.items()]
        slope = np.array([1.0, by_skew / (2 * STEP), by_tail / (2 * STEP), *growth])
        return math.sqrt(max(float(slope @ self.cov @ slope), 0.0))

    def percent_range(
        self,
        sizes: Mapping[str, float],
        octaves: float,
        low: float | None,
        high: float | None,
        level: float,
    ) -> tuple[float | None, float | None]:
        """The interval of `percent`; zero is its low end if the interval of octaves holds zero.

        The errors of displacement and basin add as squares on each side, in ln percent (Zou and Donner, Stat.
        Med. 27, 2008). None where the displacement has no interval.
        """
        if low is None or high is None:
            return None, None
        quantile = t_quantile(10**6, level)
        middle = math.log(max(self.percent(sizes, octaves), LEAST))

        def log_end(end: float, sign: int) -> float:
            away = math.log(max(self.percent(sizes, end), LEAST)) - middle
            return middle + sign * math.hypot(away, quantile * self.log_error(sizes, end))

        cheap, dear = sorted((low, high), key=lambda end: self.percent(sizes, end))
        most = math.exp(log_end(dear, 1))
        return 0.0 if low < 0 < high else math.exp(log_end(cheap, -1)), most


def shape_record(one: BasinEstimate | BasinRecord) -> BasinRecord | None:
    """The basin as a record; None for a median of parabolas, as each slice has its own."""
    if one.skew is None and one.powers == [[2]]:
        return None
    return one if isinstance(one, BasinRecord) else BasinRecord.of(one)


def own_parabola(one: SliceRecord) -> BasinPrice | None:
    """The parabola at the optimum of a slice that is bracketed; None without a curvature."""
    best = one.optimum if one.state == "bracketed" else None
    if best is None or best.curvature is None or not best.loss:
        return None
    return BasinPrice(BasinRecord(powers=[[2]], coef=[best.curvature / best.loss / LN2**2]))


def interpolated_percent(one: SliceRecord, lowest: float, rate: float) -> float | None:
    """The excess loss, in percent, at a rate between those that were run; None beyond them."""
    x = np.log2([p.lr for p in one.points])
    if not x[0] <= math.log2(rate) <= x[-1]:
        return None
    near = np.sort(np.argsort(np.abs(x - math.log2(rate)), kind="stable")[:3])
    # A chord would lie above the curve by a quarter of the cost of one octave.
    losses = np.array([one.points[i].loss for i in near])
    return 100 * max(_interpolate(x[near], losses, math.log2(rate)) / lowest - 1, 0.0)


def _interpolate(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Lagrange's polynomial through up to three points."""
    others = [np.delete(x, i) for i in range(len(x))]
    return sum(float(y[i]) * float(np.prod((at - o) / (x[i] - o))) for i, o in enumerate(others))
