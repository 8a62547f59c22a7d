"""The simulator has the properties that it promises, by its own truth and by the runs that it draws."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.oracles.sweep_simulator import (
    PARABOLA,
    Basin,
    CubicBasin,
    SkewedBasin,
    SweepDesign,
    simulate_sweep,
)

QUIET = SweepDesign(noise=0.0, spike_share=0.0, tau=0.0, wall=np.inf)
BASINS = (SkewedBasin(), CubicBasin(), CubicBasin(0.004, -0.0008), PARABOLA)


def many(design: SweepDesign, sweeps: int = 40) -> pd.DataFrame:
    """The runs of several sweeps, with their octaves above the own optimum of their slice."""
    frames = []
    for seed in range(sweeps):
        frame, truth = simulate_sweep(design, seed)
        best = dict(zip(truth.sizes["tokens"], truth.optima, strict=True))
        frames.append(frame.assign(sweep=seed, above=np.log2(frame["lr"] / frame["tokens"].map(best))))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("basin", BASINS)
def test_basin_has_its_bottom_at_the_optimum_and_rises_outwards(basin: Basin) -> None:
    octaves = np.linspace(-8, 4, 2401)
    excess = basin.excess(octaves)
    assert octaves[excess.argmin()] == pytest.approx(0, abs=1e-12)
    assert excess.min() == pytest.approx(0, abs=1e-12)
    assert (np.diff(excess[octaves <= 0]) < 0).all()
    assert (np.diff(excess[octaves >= 0]) > 0).all()


def test_skewed_basin_has_half_a_percent_an_octave_above_and_less_below() -> None:
    basin = SkewedBasin()
    assert basin.excess(np.array(1.0)) == pytest.approx(0.005, rel=1e-12)
    step = 1e-4
    slope = (basin.excess(np.array(step)) - basin.excess(np.array(-step))) / (2 * step)
    assert slope == pytest.approx(0, abs=1e-7)
    assert 0.5 < basin.excess(np.array(-1.0)) / 0.005 < 0.8


@pytest.mark.parametrize("basin", BASINS)
def test_runs_without_noise_follow_basin_and_truth(basin: Basin) -> None:
    frame, truth = simulate_sweep(replace(QUIET, basin=basin, growth=0.3, tau=0.1), 3)
    for tokens, curve in frame.groupby("tokens"):
        sizes = {"tokens": float(str(tokens))}
        excess = truth.excess(curve["lr"].to_numpy(), truth.slice_rate(sizes), sizes)
        lowest = curve["loss"] / (1 + excess)
        np.testing.assert_allclose(lowest, lowest.iloc[0], rtol=1e-12, atol=0)


def test_same_seed_same_sweep() -> None:
    first, truth = simulate_sweep(SweepDesign(), 1)
    again, same = simulate_sweep(SweepDesign(), 1)
    pd.testing.assert_frame_equal(first, again)
    np.testing.assert_array_equal(truth.optima, same.optima)
    assert not simulate_sweep(SweepDesign(), 2)[0]["loss"].equals(first["loss"])


def test_table_has_every_slice_rate_and_seed_once() -> None:
    design = SweepDesign(slices=4, widths=3, rates=5, seeds=3)
    frame, _ = simulate_sweep(design, 0)
    assert list(frame.columns) == ["width", "tokens", "lr", "seed", "loss", "status"]
    assert len(frame) == 4 * 3 * 5 * 3
    assert not frame.duplicated(["width", "tokens", "lr", "seed"]).any()
    assert frame["tokens"].max() / frame["tokens"].min() == pytest.approx(32, rel=1e-6)
    assert frame["width"].nunique() == 3


def test_law_bends_and_interacts_as_it_says() -> None:
    design = replace(QUIET, slices=5, widths=3, bend=0.01, interaction=0.02)
    _, truth = simulate_sweep(design, 0)
    centre = {name: float(np.exp(np.log(values).mean())) for name, values in truth.sizes.items()}

    def log_rate(width: float, tokens: float) -> float:
        sizes = {"width": centre["width"] * np.exp(width), "tokens": centre["tokens"] * np.exp(tokens)}
        return float(np.log(truth.law_rate(sizes)))

    middle = log_rate(0, 0)
    both = log_rate(1, 1) - log_rate(1, 0) - log_rate(0, 1) + middle
    bend = (log_rate(0, 1) + log_rate(0, -1)) / 2 - middle
    slope = (log_rate(0, 1) - log_rate(0, -1)) / 2
    assert (both, bend, slope) == pytest.approx((0.02, 0.01, truth.exponents["tokens"]), rel=1e-6)
    np.testing.assert_allclose(truth.optima, truth.law_rate(truth.sizes), rtol=1e-12, atol=0)


def test_growth_multiplies_the_excess() -> None:
    _, truth = simulate_sweep(replace(QUIET, growth=0.3), 0)
    low, high = ({"tokens": float(t)} for t in (truth.sizes["tokens"][0], truth.sizes["tokens"][-1]))
    ratio = truth.excess(0.02, 0.01, high) / truth.excess(0.02, 0.01, low)
    assert float(ratio) == pytest.approx(32**0.3, rel=1e-6)


def test_seeds_share_half_of_the_variance() -> None:
    # This basin is flat, so that a run's loss over the mean of its number of tokens is its noise.
    design = replace(QUIET, basin=CubicBasin(1e-9, 0.0), noise=0.003, slices=12, seeds=3)
    frame = many(design)
    noise = frame["loss"] / frame.groupby("tokens")["loss"].transform("mean") - 1
    table = noise.groupby([frame["sweep"], frame["tokens"], frame["seed"]])
    within = table.var(ddof=1).mean()
    assert noise.std() == pytest.approx(0.003, rel=0.05)
    assert within == pytest.approx(0.003**2 / 2, rel=0.05)


def test_runs_beyond_the_wall_diverge_and_a_quarter_says_finished() -> None:
    frame = many(SweepDesign(noise=0.001, rates=9))
    beyond = frame["above"] > 2.2
    assert (frame.loc[~beyond, "status"] == "finished").all()
    assert frame.loc[frame["status"] == "diverged", "loss"].isna().all()
    marked = frame[beyond & (frame["status"] == "finished")]
    assert len(marked) / beyond.sum() == pytest.approx(0.25, abs=0.05)
    assert marked["loss"].min() > 1.2 * frame.loc[~beyond, "loss"].min()


def test_two_percent_of_the_runs_have_a_spike() -> None:
    spiked = many(replace(QUIET, spike_share=0.02))
    plain = many(QUIET)
    ratio = spiked["loss"] / plain["loss"] - 1
    seen = ratio > 1e-9
    assert seen.mean() == pytest.approx(0.02, abs=0.006)
    assert 0.01 <= ratio[seen].min() <= ratio[seen].max() <= 0.03


def test_optima_scatter_about_the_law_by_tau_and_so_does_a_target() -> None:
    scatter, fresh = [], []
    for seed in range(60):
        _, truth = simulate_sweep(SweepDesign(slices=12, tau=0.2), seed)
        scatter.append(np.log2(truth.optima / truth.law_rate(truth.sizes)))
        target = truth.design.target(8)
        fresh.append(np.log2(float(truth.target_rate(target) / truth.law_rate(target))))
        assert target["tokens"] == 8 * truth.sizes["tokens"].max()
    assert np.std(scatter) == pytest.approx(0.2, rel=0.1)
    assert np.std(fresh) == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("side", ["high", "low"])
@pytest.mark.parametrize("place", ["largest", "smallest", "any"])
def test_edge_slices_miss_their_optimum_by_less_than_a_spacing(side: str, place: str) -> None:
    design = SweepDesign(rates=9, spacing=0.5, edge_slices=2, edge_side=side, edge_place=place)  # type: ignore[arg-type]
    frame = many(design, 20)
    ends = frame.groupby(["sweep", "tokens"])["above"].agg(["min", "max"])
    gap = -ends["max"] if side == "high" else ends["min"]
    outside = gap[gap >= 0]
    assert outside.groupby("sweep").size().eq(2).all()
    assert outside.max() < 0.5
    tokens = outside.index.get_level_values("tokens")
    if place != "any":
        wanted = sorted(design.sizes()["tokens"], reverse=place == "largest")[:2]
        assert set(tokens) == set(wanted)


def test_tracking_grids_are_on_the_lattice_of_the_others() -> None:
    frame, truth = simulate_sweep(SweepDesign(tracking=True, rates=5, tau=0.0, centre_off=0.4), 5)
    steps = np.log2(frame["lr"]) - np.log2(frame["lr"].min())
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9, rtol=0)
    middle = frame.groupby("tokens")["lr"].median().to_numpy()
    assert np.abs(np.log2(middle / truth.optima)).max() < 1.0


def test_design_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="rates"):
        SweepDesign(rates=0)
    with pytest.raises(ValueError, match="edge_slices"):
        SweepDesign(slices=3, edge_slices=4)
