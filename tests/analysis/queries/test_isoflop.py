"""Compute-optimal sizes: a known allocation comes back from profiles and from the surface, or a refusal."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import isoflop
from hyperp.analysis.errors import Refusal
from hyperp.analysis.loss.allocation import best_parameters, lowest_loss, parameter_exponent
from hyperp.analysis.loss.fit import fit_loss_law, predict_loss
from hyperp.analysis.loss.points import loss_points
from hyperp.analysis.loss.profiles import isoflop_profiles
from hyperp.analysis.queries.isoflop import Interval
from tests.analysis.law_command import shared_table

E, A, B, ALPHA, BETA = 1.7, 400.0, 2000.0, 0.34, 0.38
EXPONENT = BETA / (ALPHA + BETA)
BUDGETS = np.geomspace(1e18, 1e20, 5)


def best_size(budget: float) -> float:
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budget / 6) ** EXPONENT


def profiles(
    noise: float = 5e-4, sizes: int = 9, seed: int = 0, budgets: np.ndarray = BUDGETS
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for budget in budgets:
        for step in np.linspace(-2, 2, sizes):
            n = round(best_size(budget) * 2.0**step)
            d = budget / 6 / n
            loss = (E + A * n**-ALPHA + B * d**-BETA) * np.exp(noise * rng.normal())
            rows.append({"budget": budget, "parameters": n, "tokens": d, "loss": loss})
    return pd.DataFrame(rows)


def ends(one: Interval) -> tuple[float, float]:
    assert one.low is not None
    assert one.high is not None
    return one.low, one.high


def test_the_best_size_of_a_surface_is_exact():
    fit = fit_loss_law(loss_points(profiles(), "chinchilla"))
    z = np.stack([fit.z_P, fit.z_P * 1.01])
    flops = np.array([1e17, 1e21])
    found, loss = best_parameters(fit, z, flops), lowest_loss(fit, z, flops)
    for m, compute in enumerate(flops):
        for step in (0.999, 1.0, 1.001):
            n = step * found[:, m]
            there = [
                predict_loss(fit, z[r : r + 1], np.array([[n[r]], [compute / 6 / n[r]]])) for r in (0, 1)
            ]
            excess = np.concatenate(there)[:, 0] - loss[:, m]
            if step == 1.0:
                np.testing.assert_allclose(excess, 0, rtol=0, atol=1e-12)
            else:
                assert (excess > 0).all()
    slope = np.diff(np.log(found), axis=1)[:, 0] / np.log(1e4)
    np.testing.assert_allclose(parameter_exponent(fit, z), slope, rtol=1e-9, atol=0)


def test_a_known_allocation_comes_back_both_ways():
    found = isoflop(profiles(), budget=1e21, bootstrap=200)
    answer = found.answer
    assert answer.by_surface is not None
    for one in (answer.by_profiles, answer.by_surface):
        low, high = ends(one.exponent)
        assert low < EXPONENT < high
        assert one.exponent.value == pytest.approx(EXPONENT, rel=0, abs=0.03)
        assert ends(one.tokens_exponent) == pytest.approx((1 - high, 1 - low), rel=1e-12)
        low, high = ends(one.parameters)
        assert low < best_size(1e21) < high
        per = 1e21 / 6
        assert one.tokens.value == pytest.approx(per / one.parameters.value, rel=1e-12, abs=0)
        assert ends(one.tokens) == pytest.approx((per / high, per / low), rel=1e-12)
    assert answer.agree
    assert answer.budgets == pytest.approx((1e18, 1e20), rel=1e-12)
    assert answer.outside == pytest.approx(10, rel=1e-9)
    assert list(found.to_frame().index) == ["profiles", "surface"]
    assert len(found.profiles_frame()) == 5


@pytest.mark.parametrize(("study", "surface"), [("dclm", 0.371), ("fineweb_c4", 0.536)])
def test_public_profiles(study, surface):
    """Two studies: the exponent of the surface is known, and that of the profiles agrees with it."""
    runs, options = shared_table("isoflop_profiles.csv"), {"where": {"dataset": study}, "budget": 1e21}
    found = isoflop(runs, mapping={"parameters": "params"}, bootstrap=200, **options).answer
    assert found.by_surface is not None
    assert found.by_surface.exponent.value == pytest.approx(surface, rel=0, abs=1e-3)
    assert found.agree
    low, high = ends(found.by_profiles.exponent)
    assert low < surface < high
    assert found.by_profiles.exponent.value == pytest.approx(surface, rel=0, abs=0.03)


def test_any_two_of_parameters_tokens_and_budget_will_do():
    frame = profiles()
    whole = isoflop(frame, budget=1e20, bootstrap=0).answer
    for column in ("parameters", "tokens", "budget"):
        found = isoflop(frame.drop(columns=column), budget=1e20, bootstrap=0).answer
        assert found.by_profiles.parameters.value == pytest.approx(
            whole.by_profiles.parameters.value, rel=1e-6
        )
        source = "from 6 N D" if column == "budget" else "from the column budget"
        assert found.grouped.startswith(f"5 budgets {source}")


def test_budgets_that_were_rounded_are_one():
    frame = profiles()
    rounded = frame.assign(tokens=(frame["tokens"] / 2**19).round() * 2**19).drop(columns="budget")
    found = isoflop_profiles(rounded)
    assert found.frame["budget"].nunique() == 5
    assert "5 budgets from 6 N D, those within 1% taken as one" in found.grouped
    np.testing.assert_allclose(sorted(found.frame["budget"].unique()), BUDGETS, rtol=5e-3)
    assert isoflop_profiles(rounded, tolerance=1e-9).frame["budget"].nunique() > 5


def test_a_column_of_budgets_that_is_not_6nd_is_kept_and_named():
    frame = profiles()
    frame["tokens"] *= 1.2
    found = isoflop(frame, budget=1e20, bootstrap=0).answer
    assert found.flops_ratio == pytest.approx((1.2, 1.2), rel=1e-9)
    assert any("6 N D" in line and "1.2" in line for line in found.warnings)
    assert not any("6 N D" in line for line in isoflop(profiles(), budget=1e20, bootstrap=0).answer.warnings)


def test_the_best_rate_of_every_size_is_taken():
    frame = profiles().merge(pd.DataFrame({"lr": [0.01, 0.02, 0.04]}), how="cross")
    frame["loss"] += np.where(frame["lr"] == 0.02, 0.0, 0.05)
    frame.loc[0, "status"] = "diverged"
    frame["status"] = frame["status"].fillna("finished")
    found = isoflop(frame, budget=1e20, bootstrap=0).answer
    plain = isoflop(profiles(), budget=1e20, bootstrap=0).answer
    assert found.by_profiles.parameters == plain.by_profiles.parameters
    assert found.dropped == {"diverged": 1, "not at the best rate": 89}
    assert (found.rows, found.edges) == (135, 1)  # of the first size, the lowest rate that finished is best


def test_repeats_are_seeds():
    frame = pd.concat([profiles(), profiles(seed=1)], ignore_index=True)
    one = isoflop(frame, budget=1e20, bootstrap=0).answer
    two = isoflop(frame.assign(seed=np.repeat([0, 1], 45)), budget=1e20, bootstrap=0).answer
    assert one.by_profiles == two.by_profiles
    assert {p.runs for p in one.profiles} == {18}


def test_the_order_of_rows_changes_nothing():
    frame = profiles()
    one, two = (
        isoflop(f, budget=1e21, bootstrap=20).answer for f in (frame, frame.sample(frac=1, random_state=0))
    )
    assert one.by_surface == two.by_surface
    assert one.by_profiles.parameters.value == pytest.approx(two.by_profiles.parameters.value, rel=1e-9)


def test_a_disagreement_is_said():
    """Far from the optimum the losses follow a law with other exponents than near it."""
    frame = profiles(noise=1e-4)
    displaced = np.log(frame["parameters"] / frame["budget"].map(best_size))
    best = frame["budget"].map(lambda c: 3e8 * (c / 1e19) ** 0.3)
    near = E + 300 * frame["budget"] ** -0.12 + 0.05 * np.log(frame["parameters"] / best) ** 2
    frame["loss"] = np.where(abs(displaced) < 9, near, frame["loss"])
    frame = frame[abs(np.log(frame["parameters"] / best)) < 1.3]
    found = isoflop(frame, budget=1e19, bootstrap=100, extrapolate=True).answer
    assert found.by_profiles.exponent.value == pytest.approx(0.3, rel=0, abs=0.05)
    if found.by_surface is not None and found.agree is not None:
        assert found.agree == (not any("disagree" in line for line in found.warnings))


def test_rows_of_several_studies_are_named():
    frame = pd.concat([profiles().assign(study="a"), profiles(seed=1).assign(study="b")], ignore_index=True)
    lines = isoflop(frame, budget=1e20, bootstrap=0).answer.warnings
    assert any("study" in line and "where=" in line for line in lines)
    lines = isoflop(frame, budget=1e20, bootstrap=0, where={"study": "a"}).answer.warnings
    assert not any("study" in line for line in lines)


def below(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["parameters"] < 0.8 * frame["budget"].map(best_size)]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (below(profiles()), "0 of 5 .*5 have their lowest loss at the largest size"),
        (profiles(budgets=BUDGETS[:2]), "2 budgets .*3 are needed"),
        (profiles(sizes=2), "5 have too few sizes"),
    ],
)
def test_profiles_without_a_bottom_are_refused_with_sizes_and_budgets(frame, text):
    with pytest.raises(Refusal, match=text) as refused:
        isoflop(frame, budget=1e20)
    points = refused.value.next_points
    assert {"budget", "parameters", "tokens"} <= set(points.columns)
    flops = 6.0 * points["parameters"] * points["tokens"]
    np.testing.assert_allclose(flops, points["budget"], rtol=2e-3)
    assert "rate" not in refused.value.reason.split("column")[0]


def test_sizes_that_a_refusal_suggests_lead_to_an_answer():
    frame = below(profiles())
    for _ in range(4):
        try:
            found = isoflop(frame, budget=1e20, bootstrap=0).answer
        except Refusal as refusal:
            more = refusal.next_points[["budget", "parameters", "tokens"]].astype(float)
            more["budget"] = [min(BUDGETS, key=lambda c, b=b: abs(np.log(c / b))) for b in more["budget"]]
            more["loss"] = E + A * more["parameters"] ** -ALPHA + B * more["tokens"] ** -BETA
            frame = pd.concat([frame, more], ignore_index=True)
            continue
        break
    else:
        pytest.fail("the suggested runs lead nowhere")
    assert found.by_profiles.exponent.value == pytest.approx(EXPONENT, rel=0, abs=0.1)


def test_a_budget_far_away_is_refused_with_a_profile_on_the_way():
    with pytest.raises(Refusal, match=r"1e[+]03 times outside") as refused:
        isoflop(profiles(), budget=1e23)
    points = refused.value.next_points
    assert points["budget"].nunique() == 1
    assert points["budget"][0] == pytest.approx(10**21.5, rel=1e-3)
    assert points["parameters"].min() < best_size(points["budget"][0]) < points["parameters"].max()
    found = isoflop(profiles(), budget=1e23, extrapolate=True, bootstrap=0).answer
    assert any("times outside" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("frame", "options", "text"),
    [
        (profiles(), {"budget": -1.0}, "budget must be a positive number of FLOPs, got -1"),
        (profiles(), {"level": 2.0}, "level must lie between 0 and 1, got 2"),
        (profiles(), {"tolerance": 0.0}, "tolerance must lie between 0 and 1, got 0"),
        (profiles().drop(columns=["tokens", "budget"]), {}, "lacks tokens; .*mapping="),
        (profiles().assign(parameters="big"), {}, "parameters must be a number, got 'big' in row 1"),
        (profiles().assign(optimizer=["a", "b", "c"] * 15), {}, "optimizer must have one value"),
        (
            profiles(sizes=400).drop(columns="budget").assign(tokens=lambda f: f["tokens"].max()),
            {},
            "no groups",
        ),
        (pd.concat([profiles()] * 2).assign(seed=0), {}, "two runs have budget=1e[+]18.*seed=0"),
    ],
)
def test_bad_input_is_one_line(frame, options, text):
    with pytest.raises(ValueError, match=text):
        isoflop(frame, **{"budget": 1e20, **options})
