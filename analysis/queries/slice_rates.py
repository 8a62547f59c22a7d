"""The rates at which to run a further slice, so that they bracket its optimum and tell where it lies.

Three rates determine a slice's optimum and floor once the shape of the basin is known from the other slices;
any further one mostly tests that shape. It counts as known if

- the law has a basin with errors (method hierarchical) and tunes the rate alone,
- the standard error of ln curvature at the slice's sizes is at most KNOWN_CURVATURE and that of the skew at
  most KNOWN_SKEW. An optimum half an octave from the middle of three rates an octave apart is then moved by
  at most an eighth of an octave, which is less than slices scatter by,
- DENSE_SLICES slices of the law have more than three rates, so that the data tested the basin's form.

The rates then lie an octave apart about the predicted optimum, as few as bracket it: the prediction interval
stays half an octave inside the outer ones, where the best rate is not the last. Three are enough for an
interval of half an octave each side, four for one octave, five for one and a half. Otherwise the rates are
spaced like those of the law's slices, over OCTAVES_OF_RATES each side; if the interval is wider than these
bracket, they are spaced more widely, up to an octave, and then there are more of them, up to MOST_OCTAVES.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.analysis.law.records import BasinRecord, SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.optima.likelihood.basin import excess_slope, skewed_excess
from hyperp.analysis.optima.likelihood.mode import MISFIT

KNOWN_CURVATURE = 0.25  # standard error of ln curvature
KNOWN_SKEW = 0.3  # standard error, per natural log
DENSE_SLICES = 3
FEWEST = 3  # rates
OCTAVES_OF_RATES = 1.5  # each side of the predicted optimum
MOST_OCTAVES = 4.0  # each side; beyond, a first look must tell where the optimum is
INSIDE = 0.5  # octaves between the ends of the interval and the outer rates


@dataclass(frozen=True)
class SliceRates:
    """The rates of a slice, the predicted interval of its optimum, and whether its basin is known."""

    rates: list[float]
    low: float
    high: float
    basin_known: bool


def choose_rates(law: Law, sizes: Mapping[str, float]) -> SliceRates:
    """The rates for a slice at these sizes; the rule stands at the top of this file."""
    centre, low, high = law.interval_at(sizes)
    half_width = max(math.log2(high / centre), math.log2(centre / low), 0.0)
    known = basin_known(law, sizes)
    octaves = _few_octaves(half_width) if known else _dense_octaves(law, half_width)
    return SliceRates([float(f"{centre * 2.0**k:.4g}") for k in octaves], low, high, known)


def basin_known(law: Law, sizes: Mapping[str, float]) -> bool:
    """Whether the basin is known well enough at these sizes for few rates."""
    basin = law.basin
    if basin is None or len(law.over) > 1 or not {"curvature", "skew"} <= basin.errors.keys():
        return False
    dense = [s for s in law.slices if s.used and len({point.lr for point in s.points}) > FEWEST]
    curvature = curvature_error(basin, sizes)
    return len(dense) >= DENSE_SLICES and curvature <= KNOWN_CURVATURE and basin.errors["skew"] <= KNOWN_SKEW


def curvature_error(basin: BasinRecord, sizes: Mapping[str, float]) -> float:
    """The standard error of ln curvature at these sizes."""
    away = [
        basin.bend_errors.get(name, 0.0) * math.log(sizes.get(name, middle) / middle)
        for name, (_, middle) in basin.bend.items()
    ]
    return math.hypot(basin.errors["curvature"], *away)


def slice_error(law: Law, sizes: Mapping[str, float], rates: Sequence[float], seeds: int) -> float | None:
    """The standard error (natural log) that the optimum of a slice with these rates will have.

    It follows from the basin and the noise of one run, at the predicted optimum; None where the law's method
    has neither.
    """
    if law.basin is None or law.basin.noise is None or law.basin.skew is None or law.basin.tail is None:
        return None
    skew, tail = law.basin.skew, law.basin.tail
    height = 2 * law.basin.at(sizes).coef[0]
    v = np.log(rates) - math.log(law.interval_at(sizes)[0])
    model, slope = height * skewed_excess(v, skew, tail), height * excess_slope(v, skew, tail)
    weight = 1 / (law.basin.noise**2 / seeds + (MISFIT * model) ** 2)
    level = 1 + model  # how the loss follows the floor, which is not known either
    information = weight @ slope**2 - (weight @ (slope * level)) ** 2 / (weight @ level**2)
    return float(information**-0.5)


def _few_octaves(half_width: float) -> np.ndarray:
    """Places of the rates about the predicted optimum, an octave apart."""
    count = max(FEWEST, math.ceil(2 * (min(half_width, MOST_OCTAVES - INSIDE) + INSIDE) - 1e-9) + 1)
    return np.arange(count) - (count - 1) / 2


def _dense_octaves(law: Law, half_width: float) -> np.ndarray:
    """Places of the rates about the predicted optimum, spaced like those of the law's slices or wider."""
    step = _usual_step([s for s in law.slices if s.used])
    count = math.ceil(OCTAVES_OF_RATES / step)
    span = min(max(OCTAVES_OF_RATES, half_width + INSIDE), MOST_OCTAVES)
    step = min(max(step, span / count), 1.0)
    count = max(count, math.ceil(span / step - 1e-9))
    return step * np.arange(-count, count + 1)


def _usual_step(used: Sequence[SliceRecord]) -> float:
    """The median spacing of the rates of slices, in octaves, between a quarter and one."""
    steps = np.concatenate([np.diff(sorted({math.log2(p.lr) for p in s.points})) for s in used])
    return float(np.clip(np.median(steps), 0.25, 1.0)) if len(steps) else 1.0
