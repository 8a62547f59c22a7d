"""Fits simulated sweeps and scores the laws against what the sweeps were drawn from."""

import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hyperp.analysis import Refusal, fit_law
from tests.benchmarks.estimator_designs import SCENARIOS, Row
from tests.oracles.sweep_simulator import SweepTruth, simulate_sweep

COVERED = {  # measure -> columns of the scores: how many intervals hold the truth, of how many; their width
    "near": ("near_held", "near_of", "near_width"),
    "far": ("far_held", "far_of", "far_width"),
    "exponent": ("exponent_held", "exponent_of", "exponent_width"),
    "slice": ("slice_held", "slice_of", "slice_width"),
}
KEYS = ("scenario", "cell", "replicate", "method")
OUTCOMES = ("refused", "failed", "seconds", "regret", "beyond_wall")
COLUMNS = (*KEYS, *OUTCOMES, *(name for names in COVERED.values() for name in names))  # of the scores


@dataclass(frozen=True)
class Task:
    """A few sweeps of one cell: what one process does at a time."""

    scenario: str
    cell: str
    methods: tuple[str, ...]
    replicates: range


def score_task(task: Task) -> list[dict[str, Any]]:
    """The scores of every sweep of a task by every method."""
    scenario = SCENARIOS[task.scenario]
    design = scenario.cells[task.cell]
    place = [list(SCENARIOS).index(task.scenario), list(scenario.cells).index(task.cell)]
    scores = []
    for replicate in task.replicates:
        frame, truth = simulate_sweep(design, [*place, replicate])
        targets = {"near": design.target(*scenario.near), "far": design.target(*scenario.far)}
        for method in task.methods:
            which = {"scenario": task.scenario, "cell": task.cell, "replicate": replicate, "method": method}
            scores.append({**which, **score_fit(frame, truth, method, targets)})
    return scores


def score_fit(
    frame: pd.DataFrame, truth: SweepTruth, method: Any, targets: dict[str, dict[str, float]], **options: Any
) -> dict[str, Any]:
    """The scores of one fit: what its intervals hold, their widths in octaves, and its regret in %.

    `options` are further ones of `fit_law`. A refusal leaves `refused`, its reason; any other exception
    `failed`, the end of its traceback.
    """
    start = time.perf_counter()
    try:
        law = fit_law(frame, truth.design.by, method=method, **options)
    except Refusal as refusal:
        return {"refused": refusal.reason, "seconds": time.perf_counter() - start}
    except Exception:
        return {"failed": traceback.format_exc(limit=-3), "seconds": time.perf_counter() - start}
    score: dict[str, Any] = {"seconds": time.perf_counter() - start}
    for name, target in targets.items():
        value, low, high = law.interval_at(target)
        optimum = float(truth.target_rate(target))
        score |= _held(name, [(low, optimum, high)])
        if name == "near":
            score["regret"] = 100 * float(truth.excess(value, optimum, target))
            score["beyond_wall"] = math.log2(value / optimum) > truth.design.wall
    exponent = law.exponents["tokens"]
    score["exponent_held"] = int(exponent.low <= truth.exponents["tokens"] <= exponent.high)
    score |= {"exponent_of": 1, "exponent_width": exponent.high - exponent.low}
    own = [
        (one.optimum.low, truth.slice_rate(one.covariates), one.optimum.high)
        for one in law.slices
        if one.state == "bracketed" and one.optimum and one.optimum.low and one.optimum.high
    ]
    return score | _held("slice", own)


def _held(name: str, intervals: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """How many of these (low, truth, high) hold, of how many, and their median width in octaves."""
    held = sum(low <= truth <= high for low, truth, high in intervals)
    widths = [math.log2(high / low) for low, _, high in intervals]
    width = float(np.median(widths)) if widths else math.nan
    return {f"{name}_held": held, f"{name}_of": len(intervals), f"{name}_width": width}


def summarize_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each scenario, cell and method, with the counts and every score."""
    keys = ["scenario", "cell", "method"]
    return pd.DataFrame(
        [
            {**dict(zip(keys, key, strict=True)), **_summary(group)}
            for key, group in scores.groupby(keys, sort=False)
        ]
    )


def _summary(scores: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {
        "sweeps": len(scores),
        "refused": int(scores["refused"].notna().sum()),
        "failed": int(scores["failed"].notna().sum()),
        "seconds": scores["seconds"].median(),
        "regret": scores["regret"].mean(),
        "beyond_wall": int(scores["beyond_wall"].eq(True).sum()),
    }
    for measure in COVERED:
        held, of, width = coverage(scores, measure)
        low, high = binomial_interval(held, of)
        found |= {
            f"{measure}_coverage": held / of if of else math.nan,
            f"{measure}_low": low,
            f"{measure}_high": high,
            f"{measure}_of": of,
            f"{measure}_width": width,
        }
    return found


def coverage(scores: pd.DataFrame, measure: str) -> tuple[int, int, float]:
    """How many intervals hold the truth, of how many, and the median of their widths over sweeps."""
    held, of, width = COVERED[measure]
    return int(scores[held].sum()), int(scores[of].sum()), float(scores[width].median())


def binomial_interval(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion; the slices of one sweep count as independent."""
    if not of:
        return 0.0, 1.0
    found = binomtest(hits, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def row_text(row: Row, scores: pd.DataFrame, method: str) -> str:
    """The cell of the table for a row and a method: the score, its interval, its counts."""
    scores = scores[scores["scenario"] == row.scenario]
    own = scores[scores["method"] == method]
    if not len(own):
        return ""
    if row.measure == "answered":
        return _answered_text(scores, own)
    answered = own[own["refused"].isna() & own["failed"].isna()]
    lost = f"; {own['refused'].notna().sum()} refused"
    lost += f", {own['failed'].notna().sum()} failed" if own["failed"].notna().any() else ""
    if row.measure == "regret":
        return _regret_text(answered) + _beside_shared(scores, answered) + lost
    held, of, width = coverage(answered, row.measure)
    unit = "" if row.measure == "exponent" else " oct"
    return f"{_share(held, of)}, width {width:.2f}{unit}{lost}"


def _answered_text(scores: pd.DataFrame, own: pd.DataFrame) -> str:
    """Of the sweeps that the method shared refuses, how many this one answers."""
    keys = ["cell", "replicate"]
    today = scores[(scores["method"] == "shared") & scores["refused"].notna()][keys]
    if own["method"].iloc[0] == "shared" or not (scores["method"] == "shared").any():
        return ""
    both = own.merge(today, on=keys)
    return _share(int((both["refused"].isna() & both["failed"].isna()).sum()), len(both))


def _regret_text(scores: pd.DataFrame) -> str:
    regret, count = scores["regret"], len(scores)
    if not count:
        return "none"
    half = 1.96 * float(regret.std()) / math.sqrt(count) if count > 1 else math.nan
    wall = f", {scores['beyond_wall'].eq(True).sum()} beyond the wall" if scores["beyond_wall"].any() else ""
    return f"{regret.mean():.3f} ± {half:.3f}% of {count}{wall}"


def _beside_shared(scores: pd.DataFrame, own: pd.DataFrame) -> str:
    """The regret over that of shared, on the sweeps that both answer."""
    keys = ["cell", "replicate"]
    both = own.merge(scores[scores["method"] == "shared"], on=keys, suffixes=("", "_shared"))
    both = both.dropna(subset=["regret", "regret_shared"])
    if not len(both) or own["method"].iloc[0] == "shared":
        return ""
    return f", {both['regret'].mean() / both['regret_shared'].mean():.2f} times shared's"


def _share(hits: int, of: int) -> str:
    if not of:
        return "none"
    low, high = binomial_interval(hits, of)
    return f"{hits / of:.1%} ({low:.1%} to {high:.1%}) of {of}"
