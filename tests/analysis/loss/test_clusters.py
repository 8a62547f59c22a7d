"""Rows of one run: how they are recognised, and what resampling them together changes."""

from typing import cast

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.bootstrap import bootstrap_loss, parameter_intervals
from hyperp.analysis.loss.clusters import residual_correlation
from hyperp.analysis.loss.fit import LossFit, fit_loss_law, published_parameters
from hyperp.analysis.loss.points import loss_points
from tests.analysis.law_command import shared_table

MODELS = [1e8, 1.5e8, 2.2e8, 3.3e8, 5e8, 7e8, 1e9, 1.5e9, 2.2e9, 3.3e9, 5e9, 7e9, 1e10, 1.5e10]


def gemstones() -> pd.DataFrame:
    frame = pd.read_csv(shared_table("gemstones_hot.csv"))
    return frame.rename(columns={"params_active_precise": "parameters", "final_loss": "loss"})


def checkpoints(between: float = 0.01, within: float = 0.002, seed: int = 0) -> pd.DataFrame:
    """Six checkpoints of each of 14 runs; each run is off by its own factor."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, n in enumerate(MODELS):
        own = between * rng.normal()
        for tokens in np.arange(1, 7) * 1e10:
            law = 1.8 + 480 * n**-0.35 + 2100 * tokens**-0.37
            loss = law * np.exp(own + within * rng.normal())
            rows.append({"name": f"model {index}", "parameters": n, "tokens": tokens, "loss": loss})
    return pd.DataFrame(rows)


def interval(fit: LossFit, name: str, count: int = 400) -> tuple[float, float]:
    return parameter_intervals(fit, bootstrap_loss(fit, count, seed=0))[name]


def test_the_runs_of_gemstones():
    """220 checkpoints of 22 runs: resampled as if they were runs, their intervals are half as wide."""
    rows, runs = (loss_points(gemstones(), "chinchilla", cluster=name) for name in (None, "run_name"))
    assert (len(rows.loss_n), rows.clusters, runs.clusters) == (220, None, 22)
    fit = fit_loss_law(runs)
    assert fit.objective == pytest.approx(0.001981613, rel=0, abs=1e-9)
    found = dict(zip(fit.names, published_parameters(fit, fit.z_P[None])[0].tolist(), strict=True))
    assert found["alpha"] == pytest.approx(0.29289, rel=0, abs=2e-5)
    assert found["beta"] == pytest.approx(0.71298, rel=0, abs=2e-5)
    np.testing.assert_allclose(interval(fit_loss_law(rows), "alpha", 1000), (0.258, 0.330), rtol=0, atol=4e-3)
    low, high = interval(fit, "alpha", 4000)  # few resamples reach as low, so that end is rough
    assert low == pytest.approx(0.218, rel=0, abs=0.03)
    assert high == pytest.approx(0.432, rel=0, abs=0.008)
    related = residual_correlation(fit.residual_n, cast(np.ndarray, runs.cluster_n))
    assert related == pytest.approx(0.72, rel=0, abs=0.03)


def test_a_smaller_threshold_of_gemstones():
    fit = fit_loss_law(loss_points(gemstones(), "chinchilla"), delta=1e-4)
    assert fit.objective == pytest.approx(0.000207505, rel=0, abs=1e-9)


def test_rows_that_look_like_checkpoints_are_named():
    (line,) = loss_points(checkpoints(), "chinchilla").warnings
    assert "84 of 84 rows" in line
    assert "14 runs" in line
    assert "cluster='name'" in line
    (line,) = loss_points(checkpoints().drop(columns="name"), "chinchilla").warnings
    assert "cluster='COLUMN'" in line
    assert loss_points(checkpoints(), "chinchilla", cluster="name").warnings == ()


def grid_of_runs(tokens: list[float]) -> pd.DataFrame:
    rows = [{"parameters": n, "tokens": d} for n in MODELS for d in tokens]
    frame = pd.DataFrame(rows)
    return frame.assign(loss=1.8 + 480 * frame["parameters"] ** -0.35 + 2100 * frame["tokens"] ** -0.37)


@pytest.mark.parametrize(
    "frame",
    [
        grid_of_runs([1e10, 2e10, 4e10, 8e10, 16e10]),
        checkpoints().assign(run_id=lambda f: [f"r{i}" for i in range(len(f))]),
        checkpoints().drop(columns="name").assign(file=lambda f: [f"r{i}" for i in range(len(f))]),
        checkpoints().drop(columns="name").assign(lr=lambda f: 1e-3 * (1 + f["tokens"] / 1e10)),
        pd.DataFrame({"tokens": np.arange(1, 9), "parameters": 1e8 * 2.0 ** np.arange(8), "loss": 3.0}),
    ],
    ids=[
        "doublings",
        "a run id for each row",
        "a file for each row",
        "a rate for each row",
        "all sizes differ",
    ],
)
def test_runs_of_their_own_are_no_checkpoints(frame):
    assert loss_points(frame, "chinchilla").warnings == ()


def test_profiles_at_equal_compute_are_no_checkpoints():
    """Models are repeated at ever larger tokens there too, one run at each budget."""
    frame = pd.read_csv(shared_table("isoflop_profiles.csv")).rename(columns={"params": "parameters"})
    for _, one in frame.groupby("experiment"):
        assert loss_points(one, "chinchilla").warnings == ()


def test_a_repeated_run_id_is_taken_by_itself():
    frame = checkpoints()
    given = loss_points(frame.rename(columns={"name": "run_id"}), "chinchilla")
    asked = loss_points(frame, "chinchilla", cluster="name")
    assert (given.cluster, given.clusters) == ("run_id", 14)
    np.testing.assert_array_equal(given.cluster_n, asked.cluster_n)
    unique = frame.assign(run_id=[f"r{i}" for i in range(len(frame))])
    assert loss_points(unique, "chinchilla").cluster is None


def test_runs_have_wider_intervals_than_rows():
    frame = checkpoints()
    rows, runs = (
        interval(fit_loss_law(loss_points(frame, "chinchilla", cluster=name)), "alpha")
        for name in (None, "name")
    )
    assert runs[1] - runs[0] > 1.5 * (rows[1] - rows[0])


def test_intervals_by_run_hold_the_truth():
    inside, repeats = 0, 40
    for seed in range(repeats):
        fit = fit_loss_law(loss_points(checkpoints(seed=seed), "chinchilla", cluster="name"))
        low, high = parameter_intervals(fit, bootstrap_loss(fit, 100, seed))["alpha"]
        inside += low <= 0.35 <= high
    assert inside >= 0.85 * repeats  # 95% less three standard errors of 40 repeats


def test_few_runs_get_intervals_from_their_residuals():
    frame = checkpoints()
    few = frame[frame["name"].isin([f"model {i}" for i in (0, 2, 4, 6, 8, 10, 12)])]
    fit = fit_loss_law(loss_points(few, "chinchilla", cluster="name"))
    draws = bootstrap_loss(fit, 100)
    assert draws.kind == "noise"
    many = fit_loss_law(loss_points(frame, "chinchilla", cluster="name"))
    assert bootstrap_loss(many, 100).kind == "pairs"


def test_a_mean_over_seeds_joins_its_runs():
    """Two seeds of each model, the mean of which is a point at each of six tokens: 14 clusters, not 28."""
    frame = pd.concat(
        [checkpoints().assign(seed=s, run_id=lambda f, s=s: f["name"] + f" {s}") for s in (0, 1)]
    )
    points = loss_points(frame.reset_index(drop=True), "chinchilla")
    assert (len(points.loss_n), points.cluster, points.runs, points.clusters) == (84, "run_id", 28, 14)


def test_the_order_of_rows_changes_no_resample():
    frame = checkpoints()
    shuffled = frame.sample(frac=1, random_state=1)
    one, two = (fit_loss_law(loss_points(f, "chinchilla", cluster="name")) for f in (frame, shuffled))
    np.testing.assert_array_equal(bootstrap_loss(one, 20, 3).z_RP, bootstrap_loss(two, 20, 3).z_RP)


def test_one_run_has_no_intervals():
    frame = pd.DataFrame({"flops": np.geomspace(1e18, 1e21, 8), "run": "a"})
    frame["loss"] = 1.7 + 1.2 * (frame["flops"] / 1e19) ** -0.12
    fit = fit_loss_law(loss_points(frame, "power", cluster="run"))
    with pytest.raises(Refusal, match=r"8 points .*one run"):
        bootstrap_loss(fit, 20)


def test_correlation_of_residuals():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(2000), 4)
    residual = 0.03 * rng.normal(size=2000)[cluster] + 0.01 * rng.normal(size=8000)
    assert residual_correlation(residual, cluster) == pytest.approx(0.9, rel=0, abs=0.01)
    assert residual_correlation(residual, np.arange(8000)) is None


@pytest.mark.parametrize(
    ("change", "cluster", "text"),
    [
        ({}, "run", "cluster='run': no such column; .*name, parameters"),
        ({"name": [None, *["a"] * 83]}, "name", "cluster='name'.* row 1"),
    ],
)
def test_bad_input_is_one_line(change, cluster, text):
    with pytest.raises(ValueError, match=text):
        loss_points(checkpoints().assign(**change), "chinchilla", cluster=cluster)
