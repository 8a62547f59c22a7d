"""Data sets that share the exponents of a loss law, tied exponents, and the level of the intervals."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import fit_loss
from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.bootstrap import bootstrap_loss, parameter_intervals
from hyperp.analysis.loss.data_sets import exponent_warnings
from hyperp.analysis.loss.fit import LossFit, fit_loss_law, profile_floor, published_parameters, solver_points
from hyperp.analysis.loss.points import loss_points
from hyperp.analysis.loss.solver import evaluate_huber_sum

TRUTH = {"pile": (1.7, 480.0, 2100.0), "c4": (2.3, 300.0, 3000.0), "code": (0.9, 150.0, 900.0)}
ALPHA, BETA = 0.35, 0.4


def measured(noise: float = 0.0, n: int = 40, seed: int = 0, beta: float = BETA) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frames = []
    for name, (E, A, B) in TRUTH.items():
        N, D = 10 ** rng.uniform(7.5, 10, n), 10 ** rng.uniform(9, 11.5, n)
        loss = (E + A * N**-ALPHA + B * D**-beta) * np.exp(noise * rng.normal(size=n))
        frames.append(pd.DataFrame({"text": name, "parameters": N, "tokens": D, "loss": loss}))
    return pd.concat(frames, ignore_index=True)


def values(fit: LossFit) -> dict[str, float]:
    return dict(zip(fit.names, published_parameters(fit, fit.z_P[None])[0].tolist(), strict=True))


def shared(frame: pd.DataFrame, **options) -> LossFit:
    return fit_loss_law(loss_points(frame, "chinchilla", by_data="text"), **options)


def test_laws_that_share_exponents_come_back():
    fit = shared(measured())
    found = values(fit)
    assert (fit.free, fit.converged) == (11, True)
    assert found["alpha"] == pytest.approx(ALPHA, rel=1e-4, abs=0)
    assert found["beta"] == pytest.approx(BETA, rel=1e-4, abs=0)
    for name, (E, A, B) in TRUTH.items():
        assert found[f"E[{name}]"] == pytest.approx(E, rel=1e-4, abs=0)
        assert found[f"A[{name}]"] == pytest.approx(A, rel=2e-3, abs=0)
        assert found[f"B[{name}]"] == pytest.approx(B, rel=2e-3, abs=0)


def test_one_data_set_is_the_law_without():
    frame = measured(0.003)
    frame = frame[frame["text"] == "c4"]
    one, plain = shared(frame), fit_loss_law(loss_points(frame, "chinchilla"))
    np.testing.assert_allclose(one.z_P, plain.z_P, rtol=1e-9, atol=1e-12)
    assert one.names == ("E[c4]", "A[c4]", "B[c4]", "alpha", "beta")


def test_with_the_exponents_given_each_data_set_is_fitted_alone():
    frame = measured(0.004)
    pins = {"alpha": ALPHA, "beta": BETA}
    together = shared(frame, pins=pins)
    alone = [
        fit_loss_law(loss_points(frame[frame["text"] == name], "chinchilla"), pins)
        for name in together.points.sets
    ]
    assert together.objective == pytest.approx(sum(one.objective for one in alone), rel=1e-6, abs=0)


def test_gradient_is_that_of_the_objective():
    fit = shared(measured(0.003))
    for tie in (None, "alpha=beta"):
        layout = shared(measured(0.003), tie=tie).layout
        data = solver_points(fit.points, fit.centre_K, 1e-3, layout)
        rng = np.random.default_rng(0)
        z = np.concatenate([[1.6, 0.8, 2.0], rng.normal(-1, 0.3, 6), [0.36] * (layout.size - layout.linear)])
        step = 1e-6 * np.eye(layout.size)
        ahead, behind = (evaluate_huber_sum(z + s, data).value_R for s in (step, -step))
        found = evaluate_huber_sum(z[None], data).gradient_RP[0]
        np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-9)


def test_sharing_narrows_the_intervals():
    frame = measured(0.006, n=60)
    fit = shared(frame)
    draws = bootstrap_loss(fit, 200)
    assert draws.kind == "pairs"
    found = parameter_intervals(fit, draws)
    assert set(found) == {*fit.names}
    plain = fit_loss_law(loss_points(frame[frame["text"] == "code"], "chinchilla"))
    alone = parameter_intervals(plain, bootstrap_loss(plain, 200))
    for name in ("alpha", "beta"):
        assert found[name][1] - found[name][0] < alone[name][1] - alone[name][0]
    for name in fit.names:
        assert found[name][0] <= values(fit)[name] <= found[name][1]


def test_each_data_set_keeps_its_points_in_a_resample():
    fit = shared(measured(0.006, n=60))
    z = bootstrap_loss(fit, 50).z_RP
    assert np.isfinite(z).all()
    assert z[:, :3].std(axis=0).max() < 0.2


def test_the_profile_holds_one_floor():
    fit = shared(measured(0.004))
    for index in range(3):
        profile = profile_floor(fit, None, index)
        assert profile.objective_F.min() == pytest.approx(fit.objective, rel=1e-8, abs=0)
        at = int(np.argmin(abs(profile.floor_F - 0.98 * fit.z_P[index])))
        name = fit.names[index]
        pinned = shared(measured(0.004), pins={name: float(profile.floor_F[at])})
        assert profile.objective_F[at] == pytest.approx(pinned.objective, rel=1e-5, abs=0)
        assert pinned.pinned == {one: one == name for one in fit.names}


def test_a_data_set_that_does_not_share_the_exponents_is_named():
    frame = measured(0.002)
    fit = shared(frame)
    assert exponent_warnings(fit, bootstrap_loss(fit, 100)) == []
    other = measured(0.002, beta=0.7)
    mixed = pd.concat([frame[frame["text"] != "code"], other[other["text"] == "code"]], ignore_index=True)
    fit = shared(mixed)
    lines = exponent_warnings(fit, bootstrap_loss(fit, 100))
    assert any("text=code" in line and "beta" in line for line in lines)


def test_the_same_runs_on_several_data_sets_are_resampled_together():
    """The same 20 runs, each measured on three data sets and off by the same factor on all of them."""
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 10, 20), 10 ** rng.uniform(9, 11.5, 20)
    off = np.exp(0.01 * rng.normal(size=20))
    frames = [
        pd.DataFrame({"text": name, "run": np.arange(20), "parameters": N, "tokens": D})
        .assign(loss=(E + A * N**-ALPHA + B * D**-BETA) * off * np.exp(1e-4 * rng.normal(size=20)))
        for name, (E, A, B) in TRUTH.items()
    ]  # fmt: skip
    points = loss_points(pd.concat(frames), "chinchilla", cluster="run", by_data="text")
    assert (len(points.loss_n), points.clusters) == (60, 20)
    fit = fit_loss_law(points)
    rows = fit_loss_law(loss_points(pd.concat(frames), "chinchilla", by_data="text"))
    wide, narrow = (
        np.ptp(parameter_intervals(one, bootstrap_loss(one, 200, kind="pairs"))["alpha"])
        for one in (fit, rows)
    )
    assert wide > narrow


def test_tied_exponents():
    frame = measured(0.004, beta=ALPHA)
    points = loss_points(frame[frame["text"] == "pile"], "chinchilla")
    free, tied = fit_loss_law(points), fit_loss_law(points, tie="alpha=beta")
    assert (free.free, tied.free) == (5, 4)
    found = values(tied)
    assert found["alpha"] == found["beta"] == pytest.approx(ALPHA, rel=0, abs=0.02)
    assert free.objective <= tied.objective <= 1.2 * free.objective
    intervals = parameter_intervals(tied, bootstrap_loss(tied, 50))
    assert intervals["alpha"] == intervals["beta"]
    held = fit_loss_law(points, {"alpha": 0.3}, tie="alpha=beta")
    assert values(held)["beta"] == 0.3
    assert held.pinned["beta"]


def test_a_higher_level_is_wider():
    frame = measured(0.004).query("text == 'pile'")
    laws = {level: fit_loss(frame, "chinchilla", bootstrap=200, level=level).law for level in (0.5, 0.95)}
    for name in ("E", "alpha"):
        half, wide = (laws[level].parameters[name] for level in (0.5, 0.95))
        ends = [wide.low, half.low, half.high, wide.high]
        assert ends == sorted(end for end in ends if end is not None)
    assert {level: law.resampling and law.resampling.level for level, law in laws.items()} == {
        0.5: 0.5,
        0.95: 0.95,
    }


def test_the_record_of_several_data_sets(tmp_path):
    from hyperp.analysis.loss.schema import load_loss

    fitted = fit_loss(measured(0.004), "chinchilla", by_data="text", tie="alpha=beta", bootstrap=30)
    fitted.save(tmp_path / "loss.json")
    law = load_loss(tmp_path / "loss.json")
    assert law == fitted.law
    assert (law.by_data, law.tie) == ("text", "alpha=beta")
    assert {row.data for row in law.profile} == {point.data for point in law.points} == set(TRUTH)
    assert {path.suffix for path in fitted.write_plots(tmp_path)} == {".png", ".svg", ".csv"}
    drawn = pd.read_csv(tmp_path / "loss-profile.csv")
    assert drawn.groupby("data")["ratio"].min().to_dict() == pytest.approx(
        dict.fromkeys(TRUTH, 1.0), rel=1e-9
    )


@pytest.mark.parametrize(
    ("frame", "options", "text"),
    [
        (measured(), {"by_data": "corpus"}, "by_data='corpus': no such column"),
        (measured().assign(text=range(120)), {"by_data": "text"}, "by_data='text' .*20 values, got 120"),
        (measured(), {"by_data": "text", "pin": {"E[web]": 1.0}}, r"pin takes E, E\[c4\].*got 'E\[web\]'"),
        (measured(), {"by_data": "text", "pin": {"E": 1.6}}, "pin E must be .*lowest loss"),
        (measured(), {"tie": "E=alpha"}, "tie must be alpha=beta"),
        (measured(), {"delta": 0.0}, "delta must be a positive number, got 0"),
        (measured(), {"level": 1.0}, "level must lie between 0 and 1, got 1"),
        (measured(), {"tie": "alpha=beta", "pin": {"alpha": 0.3, "beta": 0.4}}, "pin beta must be 0.3"),
    ],
)
def test_bad_input_is_one_line(frame, options, text):
    with pytest.raises(ValueError, match=text):
        fit_loss(frame, "chinchilla", **options)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (pd.DataFrame({"parameters": [1e8, 2e8], "tokens": [1e10, 3e10], "loss": 3.0}), "2 points"),
        (
            pd.DataFrame({"parameters": 1e8, "tokens": [1e10, 3e10, 4e10], "loss": 3.0}),
            "parameters does not vary",
        ),
    ],
)
def test_a_data_set_with_too_little_is_refused(rows, text):
    frame = pd.concat([measured(), rows.assign(text="web")], ignore_index=True)
    with pytest.raises(Refusal, match=f"text=web: {text}") as refused:
        shared(frame)
    assert all(point["text"] == "web" for point in refused.value.points)
