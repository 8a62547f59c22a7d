"""Test whether the recommended rate wins at the scale for which it was recommended.

For each other rate r, over the n seeds that finished at both rates, d(s) = loss(recommended, s) - loss(r, s).
The recommended rate passes against r if mean d <= sd / sqrt(n): it is better, or worse by at most the
standard deviation of that mean over seeds. sd is the standard deviation of d(s) about its mean, pooled over
the other rates; if every rate has a single seed, it is the law's own `difference_sd`. Rates without a common
seed are compared by their means, with the law's `loss_sd`. A rate whose runs all diverged loses, and a
recommended rate fails if any of its runs diverged. The rate passes if it passes every comparison.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hyperp.analysis.answers import Answer
from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import Recommendation, recommend_rate
from hyperp.analysis.table.slices import Slice, cut_slices, varying_columns
from hyperp.analysis.table.validate import Runs, filter_runs
from hyperp.analysis.wording import format_degrees
from hyperp.validation import Strict

RATE_TOLERANCE = 0.02  # relative; a rate copied from the printed recommendation is the recommended one


class RateRow(Strict):
    """One rate that was run; `difference` is recommended minus this rate's loss, `allowed` its limit."""

    lr: float
    ratio: float
    recommended: bool
    seeds: int
    mean_loss: float | None
    loss_sd: float | None
    difference: float | None
    allowed: float | None
    passed: bool
    note: str


class Validation(Answer, Strict):
    """The verdict, its rule and a row for every rate; `spread_from` is the source of the seeds' spread."""

    passed: bool
    verdict: str
    rule: str
    spread_from: str
    recommendation: Recommendation
    rows: list[RateRow]

    def headline(self) -> str:
        """The verdict."""
        return self.verdict

    def to_frame(self) -> pd.DataFrame:
        """A row for each rate that was run."""
        return pd.DataFrame([row.model_dump() for row in self.rows])


def validate_law(law: Law, runs: Runs, where: dict[str, str] | None = None) -> Validation:
    """Compare the law's recommended rate with the others that were run at one target scale.

    Raises:
        ValueError: several scales or contexts, another context than the law's, or no run within 2% of the
            recommended rate.
        Refusal: only the recommended rate was run.
    """
    extra = [*law.ranges, *law.held]
    frame = runs.with_sizes([n for n in extra if n in runs.frame.columns]).frame
    one = _target_slice(cut_slices(filter_runs(frame, where or {}), extra=extra), law)
    known = {n: v for n, v in one.covariates.items() if n in law.ranges or n in law.held}
    # The runs exist, so the law may be tested beyond its largest extrapolation factor.
    recommendation = recommend_rate(law, known, extrapolate=True)
    rates = sorted({*one.lr.tolist(), *one.diverged})
    chosen = min(rates, key=lambda rate: abs(math.log(rate / recommendation.lr)))
    if abs(chosen / recommendation.lr - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"lr must include the recommended {recommendation.lr:.6g} to within {RATE_TOLERANCE:.0%}, "
            f"the nearest run has {chosen:.6g}"
        )
    others = [rate for rate in rates if rate != chosen]
    if not others:
        points = one.next_point([chosen / 2, chosen * 2])
        raise Refusal("only the recommended rate was run; run half and twice that rate as well", [points])
    return _compare_rates(law, one, recommendation, chosen, others)


def _target_slice(slices: Sequence[Slice], law: Law) -> Slice:
    if len(slices) != 1:
        raise ValueError(
            f"{argument('runs')} must hold one target scale, but {', '.join(varying_columns(slices))} vary; "
            f"use {argument('where')}"
        )
    for name, value in law.context.items():
        if slices[0].context[name] != value:
            raise ValueError(f"{name} must be the law's {value!r}, got {slices[0].context[name]!r}")
    return slices[0]


def _compare_rates(
    law: Law, one: Slice, recommendation: Recommendation, chosen: float, others: list[float]
) -> Validation:
    best = _losses_by_seed(one, chosen)
    differences = {rate: _paired_differences(best, _losses_by_seed(one, rate)) for rate in others}
    pooled, source = _seed_spread(law, list(differences.values()))
    rows = [_rate_row(one, chosen, chosen, None, None, bool(best) and chosen not in one.diverged)]
    for rate, d in differences.items():
        losses = _losses_by_seed(one, rate)
        if not losses or not best:
            rows.append(_rate_row(one, rate, chosen, None, None, not losses and bool(best)))
            continue
        if len(d):
            difference, allowed = float(d.mean()), (pooled or 0.0) / math.sqrt(len(d))
        else:
            difference = float(np.mean(list(best.values())) - np.mean(list(losses.values())))
            allowed = (law.seed_spread.loss_sd or 0.0) * math.sqrt(1 / len(best) + 1 / len(losses))
        rows.append(_rate_row(one, rate, chosen, difference, allowed, difference <= allowed))
    rows.sort(key=lambda row: row.lr)
    passed = all(row.passed for row in rows)
    return Validation(
        passed=passed,
        verdict=_verdict(rows, passed),
        rule="mean loss difference (recommended minus other) at most the SD of that mean over seeds",
        spread_from=source,
        recommendation=recommendation,
        rows=rows,
    )


def _losses_by_seed(one: Slice, rate: float) -> dict[int, float]:
    keep = one.lr == rate
    return dict(zip(one.seed[keep].tolist(), one.loss[keep].tolist(), strict=True))


def _paired_differences(first: dict[int, float], second: dict[int, float]) -> np.ndarray:
    return np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def _seed_spread(law: Law, differences: list[np.ndarray]) -> tuple[float | None, str]:
    """The standard deviation over seeds of a paired difference, and where it comes from."""
    df = sum(len(d) - 1 for d in differences if len(d))
    if df > 0:
        squares = sum(float(np.sum((d - d.mean()) ** 2)) for d in differences if len(d))
        return math.sqrt(squares / df), f"the seeds of these runs, {format_degrees(df)}"
    own = law.seed_spread
    if own.difference_sd is not None:
        return own.difference_sd, f"the law's records, {format_degrees(own.difference_df)}"
    return None, "none: no rate was repeated with another seed, so only a strict win passes"


def _rate_row(
    one: Slice, rate: float, chosen: float, difference: float | None, allowed: float | None, passed: bool
) -> RateRow:
    losses = list(_losses_by_seed(one, rate).values())
    return RateRow(
        lr=rate,
        ratio=rate / chosen,
        recommended=rate == chosen,
        seeds=len(losses),
        mean_loss=float(np.mean(losses)) if losses else None,
        loss_sd=float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
        difference=difference,
        allowed=allowed,
        passed=passed,
        note="" if rate not in one.diverged else ("a seed diverged" if losses else "diverged"),
    )


def _verdict(rows: list[RateRow], passed: bool) -> str:
    chosen = next(row for row in rows if row.recommended)
    if not chosen.passed:
        return f"FAIL: the recommended rate {chosen.lr:.4g} has a run that diverged, or none that finished"
    losers = [
        row for row in rows if not row.passed and row.difference is not None and row.allowed is not None
    ]
    if not passed:
        worst = max(losers, key=lambda row: row.difference or 0.0)
        return (
            f"FAIL: {worst.lr:.4g} beats the recommended {chosen.lr:.4g} by {worst.difference:.4f} nats, "
            f"more than the seeds' spread of {worst.allowed:.4f}"
        )
    best = all(row.difference is None or row.difference <= 0 for row in rows)
    return f"PASS: the recommended rate {chosen.lr:.4g} " + (
        "has the lowest mean loss" if best else "is within the seeds' spread of the lowest mean loss"
    )
