"""Transfer along an axis: the drift of synthetic curves, what ignoring it costs, and both extrapolated."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import transfer
from hyperp.analysis.queries.check import describe_table, find_optima
from hyperp.analysis.queries.transfer import Transfer, bracketing_points, measure_transfer
from hyperp.analysis.report.text.slices import slice_rows
from hyperp.analysis.report.text.transfer import transfer_columns, transfer_rows
from hyperp.analysis.table.validate import Runs, check_frame
from hyperp.analysis.vocabulary import DEFAULT_METHOD, MethodName
from tests.oracles.sweep_simulator import SweepDesign, simulate_sweep

DRIFT = -0.5


def _transfer(runs: Runs, method: MethodName = DEFAULT_METHOD) -> Any:
    """The transfer over width of a table with one group."""
    (found,) = measure_transfer(find_optima(runs, method=method), "width")
    return found


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
    return _transfer(runs)


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
    widths = []
    for found in answer.ahead:
        doublings = math.log2(found.at / 32)
        np.testing.assert_allclose(found.octaves, DRIFT * doublings, rtol=0, atol=0.1)
        assert found.low < found.octaves < found.high
        widths.append(found.high - found.low)
        assert found.percent_low < found.percent < found.percent_high
        np.testing.assert_allclose(found.percent, (DRIFT * doublings) ** 2, rtol=0.25, atol=0)
    assert widths == sorted(widths)


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
    return _transfer(runs, method="two-stage")


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


def _widths(make_ladder, spans, widths=(32, 64, 128, 256), drift=DRIFT, **shape) -> Runs:
    """A curve for each width, with rates over its span of octaves."""
    parts = [
        make_ladder(
            tokens=(131072,),
            log2_at_64k=-4.0 + drift * math.log2(width / 32),
            covariates={"width": width},
            octaves=span,
            rng_seed=k,
            **{"noise": 2e-4, **shape},
        )
        for k, (width, span) in enumerate(zip(widths, spans, strict=True))
    ]
    return Runs(pd.concat(parts), "runs.parquet", "0" * 64)


def test_curves_without_an_optimum_are_named_beside_the_drift(make_ladder):
    """Two rates are no curve. One that ends at its best rate is one for the hierarchical method alone."""
    runs = _widths(make_ladder, [(-9, -1), (-9, -1), (-6, -5), (-9, -1)])
    found = _transfer(runs)
    assert found.excluded == [128]
    assert transfer_rows([found])[0][4].endswith(", without width 128")


def test_a_curve_that_ends_at_its_best_rate_bounds_the_drift(make_ladder):
    """The optimum of the largest width lies above its rates; by the other two it does not move."""
    spans = [(-9, -1), (-9, -1), (-12, -5)]
    runs = _widths(make_ladder, spans, (32, 64, 256), drift=0.0)
    found = _transfer(runs)
    short = _transfer(_widths(make_ladder, spans[:2], (32, 64), drift=0.0))
    last = found.points[-1]
    assert (last.state, last.lr, last.high) == ("edge_high", None, None)
    assert last.low is not None
    assert "above" in transfer_rows([found])[0][3]
    assert found.drift is not None
    assert short.drift is not None
    assert (found.excluded, found.drift.one_sided) == ([], 1)
    assert found.drift.low > short.drift.low
    assert [p.at for p in found.penalties] == [64]
    assert [a.at for a in found.ahead] == [512, 1024, 2048]
    other = _transfer(runs, method="shared")
    assert other.excluded == [256]


def test_one_sided_curves_alone_are_refused(make_ladder):
    runs = _widths(make_ladder, [(-9, -1), (-12, -6), (-12, -6), (-12, -6)], drift=0.0)
    found = _transfer(runs)
    assert (found.drift, found.problem) == (None, "1 of 4 curves have an optimum, 2 are needed")


@pytest.mark.parametrize("method", ["hierarchical", "shared"])
def test_a_drift_is_priced_with_the_skewed_basin(make_ladder, method):
    """Two octaves above the optimum this basin is 1.5 times as high as its parabola."""
    runs = _widths(make_ladder, [(-10, 0)] * 3, (32, 64, 128), drift=-1.0, skew=0.2)
    found = _transfer(runs, method=method)
    for octaves, cost in zip((1.0, 2.0), found.penalties, strict=True):
        true = 2 * (np.exp(0.6 * octaves) - 1 - 0.6 * octaves) / 0.36  # depth 1%
        np.testing.assert_allclose(cost.percent, true, rtol=0.15, atol=0)
        assert cost.percent_low < cost.percent < cost.percent_high
        np.testing.assert_allclose(cost.nats, cost.percent / 100 * found.points[-1].loss, rtol=0.1, atol=0)


def test_a_basin_that_steepens_with_the_axis_is_extrapolated(make_ladder):
    parts = [
        _widths(make_ladder, [(-9, -1)], (32 * 2**k,), drift=0.0, depth=0.005 * 2**k, skew=0).frame
        for k in range(5)
    ]
    runs = Runs(pd.concat(parts).assign(lr=lambda f: f["lr"] / f["width"] ** 0.5), "runs.parquet", "0" * 64)
    found = _transfer(runs)
    assert found.basin is not None
    for ahead in found.ahead:
        true = 0.5 * (ahead.at / 32) * ahead.octaves**2
        np.testing.assert_allclose(ahead.percent, true, rtol=0.5, atol=0)


def test_seeds_alone_stand_beside_the_drift(make_ladder):
    runs = _widths(make_ladder, [(-9, -1)] * 3, (32, 64, 128), seeds=3)
    found = _transfer(runs)
    seeds = found.drift.by_seed
    assert (seeds.of, len(seeds.values)) == (3, 3)
    np.testing.assert_allclose(seeds.mean, found.drift.octaves_per_doubling, rtol=0, atol=0.03)
    assert "by seeds alone" in transfer_columns([found])
    single = Runs(runs.frame[runs.frame["seed"] == 0], "runs.parquet", "0" * 64)
    one = _transfer(single)
    assert one.drift.by_seed is None
    assert len(transfer_columns([one])) == len(transfer_rows([one])[0]) == len(transfer_columns([found])) - 1


def test_points_that_would_bracket_an_optimum_carry_the_factor_of_their_slice(make_ladder):
    """Optima above every rate, each 0.7 times its base rate: the file of points needs both."""
    parts = [
        make_ladder(tokens=(131072,), covariates={"width": width}, octaves=(-14, -9)) for width in (32, 64)
    ]
    frame = pd.concat(parts)
    runs = Runs(frame.assign(base_lr=frame["lr"] / 0.7), "runs.parquet", "0" * 64)
    slices = describe_table(find_optima(runs)).slices
    points = bracketing_points(slices, measure_transfer(find_optima(runs), "width"))
    assert [p["width"] for p in points] == [32, 64]
    assert all(min(p["lr"]) > 2**-9 for p in points)
    np.testing.assert_allclose([p["factor"] for p in points], 0.7, rtol=1e-9, atol=0)


def test_an_unknown_axis_is_named_in_the_error(make_ladder):
    runs = Runs(make_ladder(), "runs.parquet", "0" * 64)
    with pytest.raises(ValueError, match=r"over must .* width, .* got 'N'"):
        measure_transfer(find_optima(runs), "N")


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
        found = _transfer(Runs(pd.concat(frames), "r", "0" * 64))
        true = 2.0**-4.5  # at 131072 tokens, for the ladder's exponent of -0.5
        inside += [point.low < true < point.high for point in found.points]
        halves += [math.log2(point.high / point.low) / 2 for point in found.points]
        drifts.append(found.drift.low < 0 < found.drift.high)
        wide.append((found.drift.high - found.drift.low) / 2)
    assert np.mean(inside) >= 0.88
    assert np.mean(drifts) >= 0.9
    assert np.median(halves) < 0.5


@pytest.mark.parametrize("exponent", [0.0, -0.3])
def test_the_drift_of_three_simulated_widths_is_covered(exponent):
    """40 sweeps with spikes, diverged runs and optima that scatter by a tenth of an octave."""
    design = SweepDesign(slices=1, widths=3, width_range=4.0, width_exponent=exponent, tau=0.1)
    inside, wide, costs = [], [], []
    for sample in range(40):
        frame, truth = simulate_sweep(design, [77, sample])
        found: Any = transfer(frame, "width")[0]
        for ahead in found.ahead:
            target = {"tokens": float(truth.sizes["tokens"][0]), "width": float(ahead.at)}
            true = 100 * float(truth.excess(found.points[0].lr, truth.target_rate(target), target))
            costs.append(ahead.percent_low <= true <= ahead.percent_high)
        inside.append(found.drift.low <= exponent <= found.drift.high)
        wide.append(found.drift.high - found.drift.low)
    assert np.mean(inside) >= 0.9
    assert np.mean(costs) >= 0.9
    assert np.median(wide) < 0.55  # octaves per doubling; it is 0.42


@pytest.fixture
def bare() -> Runs:
    """Two widths of three rates and one seed: no degree of freedom is left beside the optima."""
    losses = {64: (3.650, 3.612, 3.630), 128: (3.421, 3.405, 3.452)}
    rows = [
        (w, lr, x) for w, three in losses.items() for lr, x in zip((0.01, 0.02, 0.04), three, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["width", "lr", "loss"])
    return Runs(check_frame(frame), "runs.csv", "0" * 64)


def test_two_curves_without_a_degree_of_freedom_have_a_wide_interval_by_the_priors(bare):
    answer = _transfer(bare)
    drift = answer.drift
    assert drift.low < 0 < drift.high
    assert 0.8 < drift.high - drift.low < 4
    assert "two curves cannot show" in drift.basis
    assert "prior alone" in drift.basis
    assert answer.penalty.percent_high > 2 * answer.penalty.percent
    assert answer.ahead[0].percent_high > 2 * answer.ahead[0].percent


def test_two_curves_without_a_degree_of_freedom_have_a_drift_without_an_interval(bare):
    table = find_optima(bare, method="shared")
    found = describe_table(table)
    (answer,) = measure_transfer(table, "width")
    assert answer.drift is not None
    assert -1 < answer.drift.octaves_per_doubling < 0
    assert (answer.drift.se, answer.drift.low, answer.drift.high) == (None, None, None)
    assert "no residual degrees of freedom" in answer.drift.basis
    assert answer.drift.basis in transfer_rows([answer])[0]
    assert all(a.low is a.high is a.percent_low is a.percent_high is None for a in answer.ahead)
    assert [row[-1] for row in slice_rows(found.slices, ["width"])] == ["unknown"] * 2
    assert any("degree of freedom" in line for line in found.warnings)
