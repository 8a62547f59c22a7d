"""Leverage: a known ratio is recovered with an interval that covers, only where both curves were measured."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.fit import predict_loss
from hyperp.analysis.loss.leverage import compute_leverage, log_compute_at_loss


def curves(
    ratios: dict[str, float], noise: float = 0.0, n: int = 8, seed: int = 0, **floors: float
) -> pd.DataFrame:
    """Curves that reach the baseline's losses with 1/ratio of its compute."""
    rng = np.random.default_rng(seed)
    flops = np.geomspace(1e18, 1e21, n)
    frames = []
    for name, ratio in ratios.items():
        loss = floors.get(name, 1.7) + 1.2 * (ratio * flops / 1e19) ** -0.12
        loss *= np.exp(noise * rng.normal(size=n))
        frames.append(pd.DataFrame({"optimizer": name, "flops": flops, "loss": loss}))
    return pd.concat(frames, ignore_index=True)


def test_a_known_ratio_comes_back():
    answer, _ = compute_leverage(
        curves({"muon": 1, "muonh": 0.7, "sso": 1.58}, noise=1e-9), "muon", resamples=50
    )
    assert [c.other.name for c in answer.comparisons] == ["muonh", "sso"]
    for comparison, ratio in zip(answer.comparisons, (0.7, 1.58), strict=True):
        found = [row.leverage for row in comparison.rows]
        np.testing.assert_allclose(found, ratio, rtol=1e-4, atol=0)
        for row in comparison.rows:
            assert row.baseline_flops / row.other_flops == pytest.approx(row.leverage, rel=1e-12, abs=0)


def test_leverage_stays_inside_what_both_measured():
    frame = curves({"muon": 1, "sso": 30}, noise=1e-4)
    answer, (muon, sso) = compute_leverage(frame, "muon", resamples=50)
    (found,) = answer.comparisons
    assert found.overlap is not None
    for row in found.rows:
        assert found.overlap[0] * (1 - 1e-9) <= row.loss <= found.overlap[1] * (1 + 1e-9)
        assert 1e18 * (1 - 1e-6) <= row.baseline_flops <= 1e21 * (1 + 1e-6)
        assert 1e18 * (1 - 1e-6) <= row.other_flops <= 1e21 * (1 + 1e-6)
    assert found.at_largest == found.rows[-1]
    assert found.rows[-1].baseline_flops == pytest.approx(1e21, rel=1e-6, abs=0)
    assert found.rows[0].other_flops == pytest.approx(1e18, rel=1e-6, abs=0)
    assert muon.losses[0] > sso.losses[0]


def test_changing_sides_inverts_it():
    frame = curves({"muon": 1, "sso": 1.5}, noise=0.002)
    one, two = (compute_leverage(frame, name, resamples=200)[0].comparisons[0] for name in ("muon", "sso"))
    assert one.overlap == pytest.approx(two.overlap, rel=1e-9, abs=0)
    for a, b in ((one.rows[0], two.rows[0]), (one.rows[-1], two.rows[-1])):
        assert a.leverage * b.leverage == pytest.approx(1, rel=1e-6, abs=0)


def test_a_ratio_that_grows_is_followed():
    frame = curves({"muon": 1, "sso": 1}, noise=1e-9, sso=1.6)
    rows = compute_leverage(frame, "muon", resamples=50)[0].comparisons[0].rows
    excess = np.array([row.loss for row in rows])
    expected = ((excess - 1.6) / (excess - 1.7)) ** (1 / 0.12)
    np.testing.assert_allclose([row.leverage for row in rows], expected, rtol=1e-3, atol=0)
    assert rows[-1].leverage > 1.5 * rows[0].leverage


def test_inversion_of_a_law():
    _, (series, _) = compute_leverage(curves({"muon": 1, "sso": 1.5}, noise=0.001), "muon", resamples=20)
    flops = np.geomspace(1e17, 1e23, 7)
    z = series.draws.z_RP
    back = log_compute_at_loss(series.fit, z[:1], predict_loss(series.fit, z[:1], flops[None])[0])
    np.testing.assert_allclose(back[0], np.log(flops), rtol=1e-9, atol=0)
    assert np.isposinf(log_compute_at_loss(series.fit, z, np.array([0.9 * z[:, 0].min()]))).all()


def test_intervals_hold_the_truth():
    inside, repeats = [], 50
    for seed in range(repeats):
        frame = curves({"muon": 1, "sso": 1.5}, noise=0.002, n=7, seed=seed)
        rows = compute_leverage(frame, "muon", resamples=200, seed=seed)[0].comparisons[0].rows
        inside.append([(r.low or 0) <= 1.5 <= (r.high or np.inf) for r in (rows[0], rows[12], rows[-1])])
    assert (np.mean(inside, axis=0) >= 0.86).all()  # 95% less three standard errors of 50 repeats


def test_an_interval_without_an_end_says_so():
    frame = curves({"muon": 1, "sso": 1.2}, noise=0.03, n=5, seed=3)
    row = compute_leverage(frame, "muon", resamples=300)[0].comparisons[0].at_largest
    assert row is not None
    assert row.low is None or row.high is None or row.high / row.low > 3


def test_rows_in_another_order_change_nothing():
    frame = curves({"muon": 1, "sso": 1.5}, noise=0.002)
    one, two = (
        compute_leverage(f, "muon", resamples=50)[0] for f in (frame, frame.sample(frac=1, random_state=2))
    )
    assert one == two


def test_no_overlap_is_refused_with_what_to_run():
    frame = curves({"muon": 1, "sso": 1e4})
    with pytest.raises(Refusal, match=r"muon .*sso .*run muon beyond 1e[+]21 FLOPs or sso below 1e[+]18"):
        compute_leverage(frame, "muon", resamples=20)


def test_one_that_cannot_be_compared_does_not_stop_the_others():
    frame = curves({"muon": 1, "sso": 1.5, "far": 1e4}, noise=1e-4)
    answer, _ = compute_leverage(frame, "muon", resamples=20)
    problems = {c.other.name: c.problem for c in answer.comparisons}
    assert problems["sso"] is None
    assert "do not overlap" in str(problems["far"])


@pytest.mark.parametrize(
    ("change", "baseline", "over", "text"),
    [
        ({}, "adam", "optimizer", "baseline=.*adam.* .*muon, sso"),
        ({}, "muon", "colour", "baseline: no column .colour"),
        ({"optimizer": "muon"}, "muon", "optimizer", "optimizer must .*got muon"),
        ({"metric": ["nats", "bits"] * 8}, "muon", "optimizer", "metric must .*got bits, nats"),
    ],
)
def test_bad_input_is_one_line(change, baseline, over, text):
    with pytest.raises(ValueError, match=text):
        compute_leverage(curves({"muon": 1, "sso": 1.5}).assign(**change), baseline, over)


def test_a_baseline_with_too_few_points_is_refused():
    frame = curves({"muon": 1, "sso": 1.5}).drop(index=range(5))
    with pytest.raises(Refusal, match="optimizer=muon: 3 distinct"):
        compute_leverage(frame, "muon")
    with pytest.raises(Refusal, match="optimizer=muon: 3 distinct"):
        compute_leverage(frame, "sso")
