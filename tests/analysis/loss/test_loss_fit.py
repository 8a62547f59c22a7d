"""Loss laws: known laws and the published optimum are recovered, and the floor's uncertainty is shown."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize, nnls
from scipy.special import huber

from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.bootstrap import bootstrap_loss, loss_band, parameter_intervals
from hyperp.analysis.loss.fit import (
    LossFit,
    extrapolation_point,
    fit_loss_law,
    predict_loss,
    profile_floor,
    published_parameters,
    solver_points,
)
from hyperp.analysis.loss.points import loss_points
from hyperp.analysis.loss.solver import (
    Layout,
    evaluate_huber_sum,
    parameter_bounds,
    polish,
)
from hyperp.analysis.loss.starts import nonnegative_least_squares, starting_points
from hyperp.analysis.vocabulary import HUBER_DELTA
from tests.paths import PUBLIC_SWEEPS

BESIROGLU = PUBLIC_SWEEPS / "chinchilla_besiroglu_245.csv"
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture(scope="module")
def besiroglu() -> LossFit:
    if not BESIROGLU.is_file():
        pytest.skip(f"needs {BESIROGLU.name} in the folder shared beside the repository")
    frame = pd.read_csv(BESIROGLU)
    frame = frame.loc[frame["kept"]].rename(columns={"N": "parameters", "D": "tokens"})
    return fit_loss_law(loss_points(frame, "chinchilla"))


def grid(noise: float = 0.0, n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(7.5, 10, n), 10 ** rng.uniform(9, 11.5, n)
    loss = TRUTH["E"] + TRUTH["A"] * N ** -TRUTH["alpha"] + TRUTH["B"] * D ** -TRUTH["beta"]
    return pd.DataFrame({"parameters": N, "tokens": D, "loss": loss * np.exp(noise * rng.normal(size=n))})


def curve(E: float = 1.7, b: float = 0.12, noise: float = 0.0, n: int = 8, seed: int = 0) -> pd.DataFrame:
    flops = np.geomspace(1e18, 1e21, n)
    loss = E + 1.2 * (flops / 1e19) ** -b
    return pd.DataFrame(
        {"flops": flops, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=n))}
    )


def values(fit: LossFit) -> dict[str, float]:
    return dict(zip(fit.names, published_parameters(fit, fit.z_P[None])[0].tolist(), strict=True))


def test_the_optimum_of_the_240_points_is_met(besiroglu):
    assert besiroglu.converged
    assert besiroglu.objective == pytest.approx(0.001018274, abs=1e-9)
    expected = {"E": 1.8172, "A": 477.83, "B": 2143.42, "alpha": 0.3473, "beta": 0.3672}
    for name, value in values(besiroglu).items():
        assert value == pytest.approx(expected[name], rel=3e-5, abs=6e-5), name


def test_bootstrap_intervals_of_the_240_points(besiroglu):
    draws = bootstrap_loss(besiroglu, 1000, seed=0)
    assert (draws.kind, draws.not_converged) == ("pairs", 0)
    found = parameter_intervals(besiroglu, draws)
    # within three Monte Carlo standard errors of the ends, twice a thousand resamples apart
    for name, low, high, atol in (("alpha", 0.319, 0.372, 5e-3), ("beta", 0.331, 0.417, 8e-3)):
        np.testing.assert_allclose(found[name], (low, high), atol=atol, rtol=0)
    np.testing.assert_allclose(found["E"], (1.772, 1.870), atol=8e-3, rtol=0)


def test_warm_resamples_are_as_good_as_cold_ones(besiroglu):
    rng = np.random.default_rng(0)
    n = len(besiroglu.points.loss_n)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=1000).astype(float)
    warm = bootstrap_loss(besiroglu, 1000, seed=0)
    data = solver_points(besiroglu.points, besiroglu.centre_K, HUBER_DELTA, besiroglu.layout)
    low, high = parameter_bounds(data, {})
    for i in range(10):
        one = replace(data, weights_Rn=weights[i : i + 1])
        cold = polish(starting_points(one, low, high), one, low, high).objective_R.min()
        assert evaluate_huber_sum(warm.z_RP[i : i + 1], one).value_R[0] <= cold * (1 + 1e-8)


def test_no_random_start_finds_a_better_optimum():
    for seed in range(4):
        points = loss_points(grid(0.01, seed=seed), "chinchilla")
        fit = fit_loss_law(points)
        rng = np.random.default_rng(seed)
        z = np.column_stack(
            [rng.uniform(0, 2.5, 100), rng.uniform(-5, 1, (100, 2)), rng.uniform(0.02, 2, (100, 2))]
        )
        data = solver_points(points, fit.centre_K, HUBER_DELTA, fit.layout)
        low, high = parameter_bounds(data, {})
        assert polish(z, data, low, high).objective_R.min() >= fit.objective * (1 - 1e-8)


def test_an_independent_minimiser_gains_nothing():
    fit = fit_loss_law(loss_points(grid(0.005), "chinchilla"))
    data = solver_points(fit.points, fit.centre_K, HUBER_DELTA, fit.layout)

    def objective(z):
        law = z[0] + np.exp(z[1] - z[3] * data.u_Kn[0]) + np.exp(z[2] - z[4] * data.u_Kn[1])
        return huber(HUBER_DELTA, np.log(law) - data.y_Rn[0]).sum() / fit.objective

    assert objective(fit.z_P) == pytest.approx(1, rel=1e-12, abs=0)
    options = {"xatol": 1e-10, "fatol": 1e-13, "maxiter": 5000, "maxfev": 5000}
    for scale in (0.0, 0.02):
        start = fit.z_P + scale * np.random.default_rng(0).normal(size=5)
        assert minimize(objective, start, method="Nelder-Mead", options=options).fun > 1 - 1e-9


def test_gradient_is_that_of_the_objective():
    points = loss_points(grid(0.003), "chinchilla")
    data = solver_points(points, np.exp(np.log(points.x_Kn).mean(axis=1)), HUBER_DELTA, Layout(2))
    z = np.array([1.7, -0.9, -1.1, 0.33, 0.4])
    step = 1e-6 * np.eye(5)
    ahead, behind = evaluate_huber_sum(z + step, data).value_R, evaluate_huber_sum(z - step, data).value_R
    np.testing.assert_allclose(
        evaluate_huber_sum(z[None], data).gradient_RP[0], (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-9
    )


def test_inner_problem_is_nonnegative_least_squares():
    rng = np.random.default_rng(0)
    design, target = rng.normal(size=(50, 3, 20)), rng.normal(size=(50, 20))
    found = nonnegative_least_squares(design, target, None)
    some = 0
    for matrix, b, x in zip(design, target, found, strict=True):
        expected = nnls(matrix.T, b)[0]
        if expected.any():
            some += bool((expected == 0).any())
            np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9)
    assert some > 10  # the constraint matters


def test_known_laws_come_back():
    found = values(fit_loss_law(loss_points(grid(), "chinchilla")))
    for name, value in TRUTH.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=0), name
    for E, b in ((1.7, 0.12), (3.0, 0.5), (0.4, 0.05)):
        fit = fit_loss_law(loss_points(curve(E, b), "power"))
        assert fit.converged
        found = values(fit)
        assert (found["E"], found["b"]) == (
            pytest.approx(E, rel=1e-4, abs=0),
            pytest.approx(b, rel=1e-4, abs=0),
        )
        assert found["A"] == pytest.approx(1.2 * 1e19**b, rel=1e-2, abs=0)


def test_a_few_wild_points_move_little():
    frame = grid(0.001, n=80)
    frame.loc[:5, "loss"] *= 1.2
    found = values(fit_loss_law(loss_points(frame, "chinchilla")))
    assert found["E"] == pytest.approx(TRUTH["E"], rel=0, abs=0.03)


def test_a_law_without_a_floor_is_reported_as_such():
    frame = curve(E=0.0)
    frame["loss"] *= np.exp(-5e-4 * np.log(frame["flops"] / 1e18) ** 2)  # falls faster than a power law
    fit = fit_loss_law(loss_points(frame, "power"))
    assert fit.at_bounds == ("E is at 0: the data show no floor",)
    floors = profile_floor(fit)
    assert floors.objective_F[0] == floors.objective_F.min()
    assert fit_loss_law(loss_points(curve(noise=0.001), "power")).at_bounds == ()


def test_a_floor_at_its_bound_converges():
    """Losses that fall ever faster would fit with E below 0, so E ends at 0 exactly, in resamples too."""
    flops = [1.087e10, 1.529e10, 2.174e10, 3.058e10, 4.349e10, 6.149e10, 8.697e10, 1.3207e11]
    loss = [2.4388, 2.3717, 2.2774, 2.1868, 2.0975, 1.9589, 1.8490, 1.9142]
    points = loss_points(pd.DataFrame({"flops": flops, "loss": loss}), "power")
    fit = fit_loss_law(points)
    assert fit.converged
    assert fit.z_P[0] == 0
    assert fit.objective == pytest.approx(fit_loss_law(points, {"E": 0.0}).objective, rel=1e-9, abs=0)
    assert bootstrap_loss(fit, 500, seed=0).not_converged <= 10


def test_a_covariate_that_does_nothing_is_reported_as_such():
    frame = grid(n=80)
    frame["loss"] = TRUTH["E"] + TRUTH["B"] * frame["tokens"] ** -TRUTH["beta"]
    frame["loss"] *= np.exp(0.001 * np.random.default_rng(0).normal(size=80))
    fit = fit_loss_law(loss_points(frame, "chinchilla"))
    assert fit.at_bounds  # A at zero, or alpha at one of its ends
    assert np.ptp(predict_loss(fit, fit.z_P[None], fit.points.x_Kn[:, :1] * [[1, 10], [1, 1]])) < 0.01


def test_pins_are_held_and_cost_what_the_profile_says():
    points = loss_points(grid(0.003), "chinchilla")
    free, pinned = fit_loss_law(points), fit_loss_law(points, {"E": 1.6})
    assert (pinned.z_P[0], pinned.free) == (1.6, 4)
    assert pinned.objective > free.objective
    assert parameter_intervals(pinned, bootstrap_loss(pinned, 20))["E"] == (1.6, 1.6)
    alpha = fit_loss_law(points, {"alpha": 0.3})
    assert alpha.z_P[3] == 0.3
    floors = profile_floor(free)
    assert np.interp(1.6, floors.floor_F, floors.objective_F) == pytest.approx(
        pinned.objective, rel=0.02, abs=0
    )
    for name, value in (("A", 3.0), ("E", 9.0), ("alpha", 7.0), ("E", float("nan"))):
        with pytest.raises(ValueError, match=f"pin.*{name}"):
            fit_loss_law(points, {name: value})


def test_profile_is_the_best_fit_at_each_floor():
    points = loss_points(grid(0.004, n=50), "chinchilla")
    fit = fit_loss_law(points)
    floors = profile_floor(fit, (1.7, 1.9))
    assert floors.objective_F.min() == pytest.approx(fit.objective, rel=1e-9, abs=0)
    assert floors.floor_F[floors.objective_F.argmin()] == fit.z_P[0]
    for i in range(0, len(floors.floor_F), 7):
        pinned = fit_loss_law(points, {"E": float(floors.floor_F[i])})
        assert floors.objective_F[i] == pytest.approx(pinned.objective, rel=1e-6, abs=0)
    far = predict_loss(fit, floors.z_FP, extrapolation_point(points)[:, None])[:, 0]
    np.testing.assert_allclose(floors.extrapolated_F, far, rtol=1e-12, atol=0)


def test_a_law_without_any_scatter_has_a_profile():
    """All resamples have one floor, so the profile has no more floors to place between them."""
    fit = fit_loss_law(loss_points(curve(), "power"))
    profile = profile_floor(fit, (fit.z_P[0], fit.z_P[0]))
    assert len(profile.floor_F) == len(profile.objective_F)
    np.testing.assert_allclose(profile.floor_F[profile.objective_F.argmin()], 1.7, rtol=1e-6)


def test_rows_in_another_order_give_the_same_bits():
    frame = grid(0.004)
    first, second = (
        fit_loss_law(loss_points(f, "chinchilla")) for f in (frame, frame.sample(frac=1, random_state=1))
    )
    np.testing.assert_array_equal(first.z_P, second.z_P)
    np.testing.assert_array_equal(bootstrap_loss(first, 30, 5).z_RP, bootstrap_loss(second, 30, 5).z_RP)


def test_units_change_only_what_they_should():
    frame = grid(0.004)
    plain = values(fit_loss_law(loss_points(frame, "chinchilla")))
    scaled = values(fit_loss_law(loss_points(frame.assign(tokens=frame["tokens"] * 2048), "chinchilla")))
    assert scaled.pop("B") == pytest.approx(plain["B"] * 2048 ** plain["beta"], rel=1e-4, abs=0)
    assert scaled == {n: pytest.approx(plain[n], rel=1e-5, abs=0) for n in scaled}
    bits = values(fit_loss_law(loss_points(frame.assign(loss=frame["loss"] / np.log(2)), "chinchilla")))
    for name in ("E", "A", "B"):
        assert bits[name] * np.log(2) == pytest.approx(plain[name], rel=1e-4, abs=0)
    assert bits["alpha"] == pytest.approx(plain["alpha"], rel=1e-5, abs=0)


def test_band_holds_the_truth_beyond_the_data():
    """With few points, noise is resampled, and the intervals are as wide as Student's t."""
    inside, repeats = 0, 60
    for seed in range(repeats):
        fit = fit_loss_law(loss_points(curve(noise=0.002, n=7, seed=seed), "power"))
        draws = bootstrap_loss(fit, 200, seed)
        assert draws.kind == "noise"
        low, high = loss_band(fit, draws, np.array([[1e22]]))
        inside += bool(low[0] <= 1.7 + 1.2 * 1e3**-0.12 <= high[0])
    assert inside >= 0.88 * repeats  # 95% less three standard errors of 60 repeats


@pytest.mark.parametrize(
    ("frame", "form", "reason"),
    [
        (curve(n=3), "power", r"3 distinct \(flops\) .*3 parameters, 4 .*run 1 more"),
        (
            curve().assign(flops=1e18, lr=range(8)),
            "power",
            r"flops does not vary.* 1e\+18",
        ),
        (grid(n=5), "chinchilla", "5 distinct .*5 parameters, 6 "),
        (
            grid().assign(tokens=lambda f: 20 * f["parameters"]),
            "chinchilla",
            r"parameters and tokens .*correlation 1\.0",
        ),
        (
            grid().assign(parameters=[1e8, 2e8] * 30),
            "chinchilla",
            "parameters .*2 values .*3; run",
        ),
    ],
)
def test_data_that_cannot_tell_is_refused_with_what_to_run(frame, form, reason):
    with pytest.raises(Refusal, match=reason):
        fit_loss_law(loss_points(frame, form))


def sweep() -> pd.DataFrame:
    """Eight computes, three rates, two seeds; the middle rate is best at every compute except the first."""
    frame = curve().merge(pd.DataFrame({"lr": [0.01, 0.02, 0.04]}), how="cross")
    frame = frame.merge(pd.DataFrame({"seed": [0, 1]}), how="cross")
    worse = np.where(frame["lr"] == 0.02, 0.0, 0.1) * np.where(frame["flops"] == 1e18, -1, 1)
    return frame.assign(loss=frame["loss"] + worse + 0.02 * (frame["seed"] - 0.5), status="finished")


def test_cells_take_the_best_rate_by_its_mean_over_seeds():
    points = loss_points(sweep(), "power")
    expected = curve()["loss"].to_numpy().copy()
    expected[0] -= 0.1
    np.testing.assert_allclose(points.loss_n, expected, rtol=1e-12, atol=0)
    assert (points.runs_n.tolist(), points.edges) == ([6] * 8, 1)
    assert loss_points(sweep(), "power", all_rows=True).loss_n.shape == (48,)


def test_rows_that_are_dropped_are_counted():
    frame = sweep()
    frame.loc[[0, 1], "status"] = ["diverged", "failed"]
    frame.loc[[0, 2, 3], "loss"] = [np.nan, np.nan, np.inf]
    points = loss_points(frame, "power")
    assert points.dropped == {"diverged": 1, "failed": 1, "not finite": 2}
    assert (points.rows, int(points.runs_n.sum())) == (48, 44)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flops": None}, r"flops .*mapping=.*flops"),
        ({"loss": "low"}, "loss must .*got 'low' in row 1"),
        ({"loss": -1.0}, "loss must .*got -1 in row 1"),
        ({"flops": 0.0}, "flops must .*got 0 in row 1"),
        ({"status": "failed"}, "no finished run"),
        ({"optimizer": ["sso", "muon"] * 24}, "optimizer must .*got muon, sso.*where="),
        ({"seed": 0}, "rows 1 and 2 "),
    ],
)
def test_bad_tables_are_one_line(change, text):
    frame = sweep()
    frame["loss"] = frame.groupby(["flops", "lr"])["loss"].transform("mean")
    frame = frame.assign(**change) if None not in change.values() else frame.drop(columns=list(change))
    with pytest.raises(ValueError, match=text):
        loss_points(frame, "power")
