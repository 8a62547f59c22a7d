"""The default law's 95% intervals hold what they say on simulated sweeps whose law is known.

The sweeps are those of `tests/benchmarks/estimator_designs.py`, with other seeds than the benchmark's. A test
fails where a coverage is below its goal by more than 1 in 200 sets of so many sweeps would be by chance.
"""

import pandas as pd
import pytest
from scipy.stats import binom

from hyperp.analysis.vocabulary import METHODS
from tests.benchmarks.estimator_designs import SCENARIOS
from tests.benchmarks.estimator_scores import Task, coverage, score_task

METHOD = "hierarchical"
FIRST = 10_000  # replicates of the benchmark are below
pytestmark = pytest.mark.skipif(METHOD not in METHODS, reason=f"no method {METHOD}")


def scores_of(scenario: str, sweeps: int) -> pd.DataFrame:
    """The scores of `sweeps` sweeps of every cell of a scenario; nothing but a refusal may stop a fit."""
    found = []
    for cell in SCENARIOS[scenario].cells:
        found += score_task(Task(scenario, cell, (METHOD,), range(FIRST, FIRST + sweeps)))
    scores = pd.DataFrame(found)
    assert "failed" not in scores, scores["failed"].dropna().iloc[0]
    return scores if "refused" in scores else scores.assign(refused=None)


def assert_covers(scores: pd.DataFrame, measure: str, goal: float, width: float = float("inf")) -> None:
    """The coverage is the goal or within chance of it, and the median width at most `width`."""
    held, of, median = coverage(scores, measure)
    assert held >= binom.ppf(0.005, of, goal), f"{measure}: {held} of {of}"
    assert median <= width


def test_exact_law() -> None:
    scores = scores_of("exact", 2)
    assert scores["refused"].isna().mean() >= 0.95
    assert_covers(scores, "near", 0.95, width=1.6)
    assert_covers(scores, "far", 0.95)
    assert_covers(scores, "exponent", 0.95)
    assert scores["regret"].mean() <= 0.06


@pytest.mark.parametrize("scenario", ["bend-7", "bend-12"])
def test_bend(scenario: str) -> None:
    scores = scores_of(scenario, 3)
    assert_covers(scores, "near", 0.92)
    assert_covers(scores, "far", 0.90)


def test_curvature_that_grows() -> None:
    assert_covers(scores_of("growth-0.3", 3), "exponent", 0.93)


@pytest.mark.parametrize("edges", [1, 2, 3])
def test_edges_are_answered_and_covered(edges: int) -> None:
    scores = scores_of(f"edges-{edges}", 1)
    assert scores["refused"].isna().mean() >= 0.9
    assert_covers(scores, "near", 0.93, width=1.4)


def test_own_intervals_of_slices() -> None:
    assert_covers(scores_of("slices", 1), "slice", 0.92)


def test_four_slices() -> None:
    assert_covers(scores_of("four", 4), "near", 0.93, width=1.6)


def test_interaction() -> None:
    assert_covers(scores_of("interaction", 4), "near", 0.92)
