"""Slices and their optima as records, which law.json, checks, transfer and plots share."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hyperp.analysis.law.records import OptimumRecord, Point, SeedSpread, SliceRecord
from hyperp.analysis.optima.estimation import mean_loss_by_setting
from hyperp.analysis.optima.optimum import Optimum
from hyperp.analysis.table.slices import Slice


def slice_record(
    one: Slice,
    optimum: Optimum,
    used: bool = False,
    reason: str | None = None,
    share: float | None = None,
) -> SliceRecord:
    """A slice and its optimum as a record; `reason` falls back to the optimum's own."""
    return SliceRecord(
        context=one.context,
        covariates=one.covariates,
        used=used,
        state=optimum.state,
        reason=optimum.reason if used else (reason or optimum.reason),
        points=_points(one),
        dropped=one.dropped,
        diverged=list(one.diverged),
        next_rates=list(optimum.next_rates),
        factor=one.factor,
        optimum=_optimum_record(optimum),
        share=share,
    )


def _points(one: Slice) -> list[Point]:
    """The mean loss at each distinct setting; none for a slice without runs."""
    if not len(one.lr):
        return []
    settings, means, counts = (values.tolist() for values in mean_loss_by_setting(one))
    return [
        Point(lr=at[0], loss=loss, seeds=n, also=dict(zip(one.tuned, at[1:], strict=True)))
        for at, loss, n in zip(settings, means, counts, strict=True)
    ]


def _optimum_record(optimum: Optimum) -> OptimumRecord | None:
    if optimum.lr is None:
        return None
    return OptimumRecord(
        lr=optimum.lr,
        se=optimum.se,
        low=optimum.low,
        high=optimum.high,
        df=optimum.df,
        loss=optimum.loss,
        curvature=optimum.curvature,
        seeds=optimum.seeds,
        window_rates=list(optimum.rates),
        also={name: 2.0**value for name, value in optimum.also.items()},
    )


def count_dropped(slices: Sequence[Slice]) -> dict[str, int]:
    """The number of dropped rows over all slices, by status."""
    total: Counter[str] = Counter()
    for one in slices:
        total.update(one.dropped)
    return {name: total[name] for name in sorted(total)}


def seed_spread(slices: Sequence[Slice], optima: Sequence[Optimum]) -> SeedSpread:
    """The spread of the loss over seeds, pooled over slices at the rates inside their windows."""
    squares = {"loss": 0.0, "paired": 0.0}
    df = {"loss": 0, "paired": 0}
    for one, optimum in zip(slices, optima, strict=True):
        keep = np.isin(one.lr, optimum.rates)
        if one.tuned or not keep.any():
            continue
        lr, seed, loss = one.lr[keep], one.seed[keep], one.loss[keep]
        rates, index = np.unique(lr, return_inverse=True)
        seeds, seed_index = np.unique(seed, return_inverse=True)
        rate_columns, seed_columns = np.eye(len(rates))[index], np.eye(len(seeds))[seed_index]
        for name, design in (("loss", rate_columns), ("paired", np.hstack([rate_columns, seed_columns]))):
            fit, _, rank, _ = np.linalg.lstsq(design, loss - loss.mean(), rcond=None)
            squares[name] += float(np.sum((loss - loss.mean() - design @ fit) ** 2))
            df[name] += len(loss) - int(rank)
    loss_sd = math.sqrt(squares["loss"] / df["loss"]) if df["loss"] else None
    # The difference of two losses has the variance of two residuals.
    paired = math.sqrt(2 * squares["paired"] / df["paired"]) if df["paired"] else None
    return SeedSpread(loss_sd=loss_sd, loss_df=df["loss"], difference_sd=paired, difference_df=df["paired"])
