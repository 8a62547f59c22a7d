"""Transfer along an axis: the drift of synthetic curves, what ignoring it costs, and both extrapolated."""

import math

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.queries.check import check_runs
from hyperp.analysis.queries.transfer import Transfer, bracketing_points, measure_transfer
from hyperp.analysis.report.text.slices import slice_rows
from hyperp.analysis.report.text.transfer import transfer_rows
from hyperp.analysis.table.validate import Runs, check_frame

DRIFT = -0.5


@pytest.fixture(scope="module")
def answer(make_ladder) -> Transfer:
    """Four widths whose optimum falls by half an octave a doubling; 1% of the loss at one octave."""
    frames = [
        make_ladder(
            tokens=(131072,),
            log2_at_64k=-4.0 + DRIFT * k,
            covariates={"width": 32 * 2**k},
            noise=2e-4,
            skew=0,
            rng_seed=k,
        )
        for k in range(4)
    ]
    runs = Runs(pd.concat(frames), "runs.parquet", "0" * 64)
    (found,) = measure_transfer(check_runs(runs).slices, "width")
    return found


def test_the_drift_is_recovered_inside_its_interval(answer):
    drift = answer.drift
    assert drift.low < DRIFT < drift.high
    np.testing.assert_allclose(drift.octaves_per_doubling, DRIFT, rtol=0, atol=0.03)


def test_every_larger_value_has_its_penalty(answer):
    assert [p.at for p in answer.penalties] == [64, 128, 256]
    for doublings, found in enumerate(answer.penalties, start=1):
        np.testing.assert_allclose(found.percent, 1.0 * (DRIFT * doublings) ** 2, rtol=0.25, atol=0)
    assert answer.penalty == answer.penalties[-1]


def test_drift_and_penalty_are_extrapolated_with_their_interval(answer):
    assert [a.at for a in answer.ahead] == [512, 1024, 2048]
    for found in answer.ahead:
        doublings = math.log2(found.at / 32)
        np.testing.assert_allclose(
            found.octaves, doublings * answer.drift.octaves_per_doubling, rtol=1e-9, atol=0
        )
        np.testing.assert_allclose(found.low, doublings * answer.drift.low, rtol=1e-9, atol=0)
        assert found.percent_low < found.percent < found.percent_high
        np.testing.assert_allclose(found.percent, (DRIFT * doublings) ** 2, rtol=0.25, atol=0)


def _transfer_of(make_ladder, drift: float, widths: tuple[int, ...], depths: tuple[float, ...]) -> Transfer:
    frames = [
        make_ladder(
            tokens=(131072,),
            log2_at_64k=-4.0 + drift * math.log2(width / 32),
            covariates={"width": width},
            noise=1e-4,
            skew=0,
            rng_seed=k,
            depth=depth,
        )
        for k, (width, depth) in enumerate(zip(widths, depths, strict=True))
    ]
    runs = Runs(pd.concat(frames), "runs.parquet", "0" * 64)
    (found,) = measure_transfer(check_runs(runs, method="two-stage").slices, "width")
    return found


@pytest.mark.parametrize("widths", [(32, 256), (32, 128, 512, 2048)])
def test_drift_is_for_each_doubling_however_far_apart_the_values(make_ladder, widths):
    found = _transfer_of(make_ladder, -0.25, widths, (0.01,) * len(widths))
    assert found.drift is not None
    np.testing.assert_allclose(found.drift.octaves_per_doubling, -0.25, rtol=0, atol=0.02)


def test_the_extrapolated_cost_is_by_the_basin_of_the_largest(make_ladder):
    found = _transfer_of(make_ladder, -0.5, (32, 64, 128), (0.01, 0.01, 0.04))
    for ahead in found.ahead:
        assert ahead.percent is not None
        np.testing.assert_allclose(ahead.percent, 4.0 * ahead.octaves**2, rtol=0.1, atol=0)


def test_a_drift_whose_interval_holds_zero_may_cost_nothing(make_ladder):
    found = _transfer_of(make_ladder, 0.0, (32, 64, 128, 256), (0.01,) * 4)
    assert found.drift is not None
    assert found.drift.low is not None
    assert found.drift.low < 0
    assert [a.percent_low for a in found.ahead] == [0.0] * 3
    assert all(a.percent_high is not None and a.percent_high > 0 for a in found.ahead)


def test_curves_without_an_optimum_are_named_beside_the_drift(make_ladder):
    parts = [
        make_ladder(tokens=(131072,), covariates={"width": 32 * 2**k}, octaves=span, noise=2e-4, rng_seed=k)
        for k, span in enumerate([(-9, -1), (-9, -1), (-14, -9), (-9, -1)])
    ]
    runs = Runs(pd.concat(parts), "runs.parquet", "0" * 64)
    (found,) = measure_transfer(check_runs(runs).slices, "width")
    assert found.excluded == [128]
    assert transfer_rows([found])[0][4].endswith(", without width 128")


def test_points_that_would_bracket_an_optimum_carry_the_factor_of_their_slice(make_ladder):
    """Optima above every rate, each 0.7 times its base rate: the file of points needs both."""
    parts = [
        make_ladder(tokens=(131072,), covariates={"width": width}, octaves=(-14, -9)) for width in (32, 64)
    ]
    frame = pd.concat(parts)
    runs = Runs(frame.assign(base_lr=frame["lr"] / 0.7), "runs.parquet", "0" * 64)
    slices = check_runs(runs).slices
    points = bracketing_points(slices, measure_transfer(slices, "width"))
    assert [p["width"] for p in points] == [32, 64]
    assert all(min(p["lr"]) > 2**-9 for p in points)
    np.testing.assert_allclose([p["factor"] for p in points], 0.7, rtol=1e-9, atol=0)


def test_an_unknown_axis_is_named_in_the_error(make_ladder):
    runs = Runs(make_ladder(), "runs.parquet", "0" * 64)
    with pytest.raises(ValueError, match=r"over must .* width, .* got 'N'"):
        measure_transfer(check_runs(runs).slices, "N")


@pytest.mark.parametrize("seed_shift", [0.05, 0.2])
def test_intervals_of_a_few_coarse_curves_cover_and_are_narrow_enough(make_ladder, seed_shift):
    """Four sizes, five rates an octave apart, three seeds: hardly a residual beside the shared basin."""
    inside, halves, drifts, wide = [], [], [], []
    for sample in range(40):
        frames = [
            make_ladder(
                tokens=(131072,),
                log2_at_64k=-4.0,
                octaves=(-6, -2),
                covariates={"width": 32 * 2**k},
                seeds=3,
                depth=0.05,
                skew=0.2,
                noise=0.002,
                seed_shift=seed_shift,
                rng_seed=4 * sample + k,
            )
            for k in range(4)
        ]
        (found,) = measure_transfer(check_runs(Runs(pd.concat(frames), "r", "0" * 64)).slices, "width")
        true = 2.0**-4.5  # at 131072 tokens, for the ladder's exponent of -0.5
        inside += [point.low < true < point.high for point in found.points]
        halves += [math.log2(point.high / point.low) / 2 for point in found.points]
        drifts.append(found.drift.low < 0 < found.drift.high)
        wide.append((found.drift.high - found.drift.low) / 2)
    assert np.mean(inside) >= 0.88
    assert np.mean(drifts) >= 0.9
    assert np.median(halves) < 0.5


def test_two_curves_that_leave_no_degree_of_freedom_have_a_drift_without_an_interval():
    losses = {64: (3.650, 3.612, 3.630), 128: (3.421, 3.405, 3.452)}
    rows = [
        (w, lr, x) for w, three in losses.items() for lr, x in zip((0.01, 0.02, 0.04), three, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["width", "lr", "loss"])
    found = check_runs(Runs(check_frame(frame), "runs.csv", "0" * 64), method="shared")
    (answer,) = measure_transfer(found.slices, "width")
    assert answer.drift is not None
    assert -1 < answer.drift.octaves_per_doubling < 0
    assert (answer.drift.se, answer.drift.low, answer.drift.high) == (None, None, None)
    assert "no residual degrees of freedom" in answer.drift.basis
    assert answer.drift.basis in transfer_rows([answer])[0]
    assert all(a.low is a.high is a.percent_low is a.percent_high is None for a in answer.ahead)
    assert [row[-1] for row in slice_rows(found.slices, ["width"])] == ["unknown"] * 2
    assert any("degree of freedom" in line for line in found.warnings)
