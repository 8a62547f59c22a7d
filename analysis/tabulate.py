"""From slices to the records that the law's file, the checks, the transfer and the plots share."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hyperp.analysis.law import OptimumRecord, Point, SeedSpread, SliceRecord
from hyperp.analysis.optimum import Optimum
from hyperp.analysis.parabola import rate_means
from hyperp.analysis.slices import Slice


def record(one: Slice, optimum: Optimum, used: bool = False, reason: str | None = None) -> SliceRecord:
    """A slice and its optimum as a record; `reason` falls back to the optimum's own."""
    points = []
    if len(one.lr):
        rates, means = rate_means(one.lr, one.seed, one.loss)
        counts = Counter(one.lr.tolist())
        points = [
            Point(lr=r, loss=m, seeds=counts[r]) for r, m in zip(rates.tolist(), means.tolist(), strict=True)
        ]
    return SliceRecord(
        context=one.context,
        covariates=one.covariates,
        used=used,
        state=optimum.state,
        reason=None if used else (reason or optimum.reason),
        points=points,
        dropped=one.dropped,
        diverged=list(one.diverged),
        next_rates=list(optimum.next_rates),
        factor=one.factor,
        optimum=_optimum_record(optimum),
    )


def _optimum_record(optimum: Optimum) -> OptimumRecord | None:
    parabola = optimum.parabola
    if parabola is None:
        return None
    return OptimumRecord(
        lr=2.0**parabola.vertex,
        se=optimum.se,
        low=optimum.low,
        high=optimum.high,
        df=optimum.df,
        loss=parabola.floor,
        curvature=parabola.curvature,
        seeds=optimum.seeds,
        window_rates=parabola.rates.tolist(),
    )


def count_dropped(slices: Sequence[Slice]) -> dict[str, int]:
    """Dropped rows by status over all slices."""
    total: Counter[str] = Counter()
    for one in slices:
        total.update(one.dropped)
    return {name: total[name] for name in sorted(total)}


def seed_spread(slices: Sequence[Slice], optima: Sequence[Optimum]) -> SeedSpread:
    """Pooled spread over seeds at the rates inside the slices' windows."""
    squares = {"loss": 0.0, "paired": 0.0}
    df = {"loss": 0, "paired": 0}
    for one, optimum in zip(slices, optima, strict=True):
        if optimum.parabola is None:
            continue
        keep = np.isin(one.lr, optimum.parabola.rates)
        lr, seed, loss = one.lr[keep], one.seed[keep], one.loss[keep]
        rates, index = np.unique(lr, return_inverse=True)
        seeds, seed_index = np.unique(seed, return_inverse=True)
        rate_columns, seed_columns = np.eye(len(rates))[index], np.eye(len(seeds))[seed_index]
        for name, design in (("loss", rate_columns), ("paired", np.hstack([rate_columns, seed_columns]))):
            fit, _, rank, _ = np.linalg.lstsq(design, loss - loss.mean(), rcond=None)
            squares[name] += float(np.sum((loss - loss.mean() - design @ fit) ** 2))
            df[name] += len(loss) - int(rank)
    loss_sd = math.sqrt(squares["loss"] / df["loss"]) if df["loss"] else None
    # A difference of two losses holds two residuals.
    paired = math.sqrt(2 * squares["paired"] / df["paired"]) if df["paired"] else None
    return SeedSpread(loss_sd=loss_sd, loss_df=df["loss"], difference_sd=paired, difference_df=df["paired"])
