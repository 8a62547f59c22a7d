"""A recommended rate is the product of its factors, and says how far the target lies beyond the law."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.law.records import BasinRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.optima.likelihood.basin import skewed_excess
from hyperp.analysis.queries.overrides import hydra_overrides
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.queries.validate import validate_law
from hyperp.analysis.table.validate import Runs


def _runs(frame: pd.DataFrame) -> Runs:
    return Runs(frame, "runs.parquet", "0" * 64)


@pytest.fixture(scope="module")
def law(make_ladder) -> Law:
    return fit_law(_runs(make_ladder(seed_shift=0.05, noise=0.001)), ["tokens"])


@pytest.fixture(scope="module")
def regressed(make_ladder) -> Law:
    return fit_law(_runs(make_ladder(seed_shift=0.05, noise=0.001)), ["tokens"], method="shared")


def test_the_rate_is_the_product_of_its_factors(law):
    found = recommend_rate(law, {"tokens": 2**21})
    np.testing.assert_allclose(math.prod(f.contribution for f in found.factors), found.lr, rtol=1e-12, atol=0)
    assert found.low < found.lr < found.high
    tokens = found.factors[1]
    assert tokens.contribution == pytest.approx((2**21) ** law.exponents["tokens"].value, rel=1e-12)
    assert tokens.published == ["-0.32 (10B to 166B tokens, 208M parameters, linear decay; arXiv 2603.28743)"]


def test_a_bend_that_the_data_show_is_told_outside_the_range_alone(make_ladder):
    runs = make_ladder(seed_shift=0.02, noise=0.001, tokens=tuple(2**k for k in range(15, 22)))
    bent = runs.assign(lr=runs["lr"] * np.exp(0.12 * np.log(runs["tokens"] / 2**18) ** 2))
    law = fit_law(_runs(bent), ["tokens"])
    (bend,) = law.bends.values()
    assert bend.is_clear
    told = [line for line in recommend_rate(law, {"tokens": 2**24}).warnings if "bend in tokens^2" in line]
    assert len(told) == 1
    assert "bend-sd" in told[0] or "bend_sd" in told[0]
    assert not any("bend" in line for line in recommend_rate(law, {"tokens": 2**20}).warnings)


def _shares(law: Law, tokens: float) -> dict[str, float]:
    shares = recommend_rate(law, {"tokens": tokens}, extrapolate=True).shares
    assert shares is not None
    return shares


def test_the_interval_is_that_of_draws_from_the_posterior(law):
    """Coefficients from a normal of the mixture, then an optimum about the law with that scatter."""
    p, rng = law.posterior.posterior, np.random.default_rng(0)
    row = law.posterior.terms.rows([math.log(2**21)])
    part = rng.choice(len(p.weight), 200_000, p=p.weight)
    line, spread = p.mean @ row, np.sqrt(np.einsum("p,hpq,q->h", row, p.cov, row) + p.tau**2)
    draws = line[part] + spread[part] * rng.normal(size=len(part))
    found = law.interval_at({"tokens": 2**21})
    np.testing.assert_allclose(np.log(found), np.quantile(draws, [0.5, 0.025, 0.975]), rtol=0, atol=0.003)
    shares = _shares(law, 2**21)
    np.testing.assert_allclose(sum(shares.values()), 1.0, rtol=1e-9, atol=0)
    total = draws.var()
    np.testing.assert_allclose(shares["scatter"] * total, p.weight @ p.tau**2, rtol=0.05, atol=0)


def test_the_share_of_the_bend_grows_with_the_distance_until_it_decides(law, make_ladder):
    shares = [_shares(law, 2**k)["bend"] for k in (20, 23, 26)]
    assert shares[0] < shares[1] < shares[2]
    found = recommend_rate(law, {"tokens": 2**20})
    factor = found.form_decides["tokens"]
    assert _shares(law, 524288 * factor / 1.2)["bend"] < 0.5 <= _shares(law, 524288 * factor)["bend"]
    runs = _runs(make_ladder(seed_shift=0.05, noise=0.001))
    straight = fit_law(runs, ["tokens"], bend_sd=0.0)
    assert _shares(straight, 2**26)["bend"] == 0.0
    assert recommend_rate(straight, {"tokens": 2**20}).form_decides == {}


def test_a_prior_moves_the_answer_and_says_by_how_much(make_ladder):
    """The data say -0.5; a prior at -0.3 pulls, one far off is given up for its flat part."""
    runs = _runs(make_ladder(scatter=0.3, noise=0.003, rng_seed=3))
    plain = fit_law(runs, ["tokens"])
    own, at = plain.exponents["tokens"], {"tokens": 2**22}
    pulled = fit_law(runs, ["tokens"], prior={"tokens": (own.value + own.se, own.se)})
    assert own.value < pulled.exponents["tokens"].value < own.value + own.se
    assert pulled.exponents["tokens"].se < own.se
    record = pulled.priors["tokens"]
    np.testing.assert_allclose(record.without, own.value, rtol=1e-6, atol=0)
    found = recommend_rate(pulled, at)
    assert found.without_priors is not None
    np.testing.assert_allclose(found.without_priors.value, plain.interval_at(at)[0], rtol=1e-6, atol=0)
    assert found.lr != found.without_priors.value
    far = fit_law(runs, ["tokens"], prior={"tokens": (own.value + 20 * own.se, own.se)})
    np.testing.assert_allclose(far.exponents["tokens"].value, own.value, rtol=0, atol=0.25 * own.se)
    with pytest.raises(ValueError, match=r"prior must name some of by='tokens'.*'width'"):
        fit_law(runs, ["tokens"], prior={"width": (0.0, 0.1)})
    with pytest.raises(ValueError, match="prior tokens must be a finite mean and a positive SD"):
        fit_law(runs, ["tokens"], prior={"tokens": (0.0, 0.0)})


def test_the_interval_adds_the_scatter_of_one_more_slice(regressed):
    """Variance: of the line at the target, between slices, and of one slice's own optimum."""
    law = regressed
    x = np.array([1.0, math.log(2**21)])
    variance = x @ np.array(law.covariance) @ x + law.tau**2 + law.slice_sd**2
    found = recommend_rate(law, {"tokens": 2**21})
    assert law.slice_sd > 0
    np.testing.assert_allclose(
        math.log(found.high / found.low), 2 * 3.182446 * math.sqrt(variance), rtol=1e-6, atol=0
    )


def test_the_cost_at_either_end_is_that_of_the_basin_there(make_ladder):
    """Basins steeper towards high rates: a rate too high, the optimum at the low end, costs more."""
    law = fit_law(_runs(make_ladder(seed_shift=0.05, noise=5e-4, skew=0.3)), ["tokens"])
    found = recommend_rate(law, {"tokens": 2**20})
    assert law.basin is not None
    for cost, end in ((found.penalty_low, found.low), (found.penalty_high, found.high)):
        assert cost is not None
        d = math.log(found.lr / end)
        basin = law.basin.at({"tokens": 2**20})
        assert basin.skew is not None
        assert basin.tail is not None
        value = 2 * basin.coef[0] * skewed_excess(np.array(d), basin.skew, basin.tail)
        np.testing.assert_allclose(cost, value, rtol=1e-9, atol=0)
    assert found.penalty_low is not None
    assert found.penalty_high is not None
    assert found.penalty_low > found.penalty_high > 0


def test_refusals_come_with_the_runs_that_would_answer(law):
    with pytest.raises(Refusal, match=r"optimizer 'muonh'.* 'muon'") as caught:
        recommend_rate(law, {"tokens": 65536}, {"optimizer": "muon"})
    assert [p["tokens"] for p in caught.value.points] == [2**k for k in range(15, 20)]
    assert {p["optimizer"] for p in caught.value.points} == {"muon"}
    assert all(len(p["lr"]) == 9 for p in caught.value.points)
    with pytest.raises(Refusal, match=r"depth at 2 .* 4 ") as caught:
        recommend_rate(law, {"tokens": 65536, "depth": 4})
    (point,) = caught.value.points
    assert (point["depth"], point["tokens"], point["width"]) == (4, 65536, 32)
    assert point["lr"][2] == pytest.approx(recommend_rate(law, {"tokens": 65536}).lr, rel=1e-3)


def test_the_published_exponent_moves_nothing(regressed):
    law = regressed
    ratio = law.interval_at({"tokens": 2**22})[0] / law.interval_at({"tokens": 2**21})[0]
    np.testing.assert_allclose(ratio, 2 ** law.exponents["tokens"].value, rtol=1e-12, atol=0)
    assert abs(law.exponents["tokens"].value + 0.5) < 0.1


def test_it_warns_outside_the_fitted_range_and_widens(law):
    inside, outside = recommend_rate(law, {"tokens": 100000}), recommend_rate(law, {"tokens": 2**22})
    assert inside.warnings == []
    assert outside.warnings == ["tokens=4194304 lies 8 times outside the fitted range 32768 to 524288"]
    assert outside.extrapolation[0].factor == 8
    assert outside.high / outside.low > inside.high / inside.low
    assert recommend_rate(law, {"tokens": 8192}).extrapolation[0].factor == 4


def test_what_the_law_holds_may_be_repeated_but_not_changed(law):
    assert recommend_rate(law, {"tokens": 65536, "width": 32}) == recommend_rate(law, {"tokens": 65536})
    with pytest.raises(Refusal, match=r"depth at 2 .* 4 "):
        recommend_rate(law, {"tokens": 65536, "depth": 4})


def test_a_fixed_exponent_carries_to_another_size(make_ladder):
    law = fit_law(_runs(make_ladder(seed_shift=0.05)), ["tokens"], fix={"depth": -0.5})
    shallow, deep = (law.interval_at({"tokens": 65536, "depth": d})[0] for d in (2, 8))
    np.testing.assert_allclose(deep / shallow, 0.5, rtol=1e-12, atol=0)
    found = recommend_rate(law, {"tokens": 65536, "depth": 8})
    assert found.warnings == ["depth=8 lies 4 times outside the fitted range 2 to 2"]
    assert [f.fixed for f in found.factors] == [False, False, True, False]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "needs tokens"),
        ({"tokens": 0}, "tokens must .* 1, got 0"),
        ({"flops": 5}, "covariate must .* width, .* got 'flops'"),
    ],
)
def test_a_bad_target_is_named_in_the_error(law, target, message):
    with pytest.raises(ValueError, match=message):
        recommend_rate(law, target)


def test_hydra_overrides_hold_the_base_rate_and_every_size_of_the_law(law, make_ladder):
    found = recommend_rate(law, {"tokens": 520000})
    words = f"optim=muonh parametrization=hyperp schedule=linear base_lr={found.lr:.6g} "
    sizes = "width=32 depth=2 tokens=520000 batch_tokens=512 granularity=1 sparsity=1"
    words += " ".join(f"scale.{size}" for size in sizes.split())
    assert hydra_overrides(found, law) == found.for_trainer("hyperp") == words
    foreign = law.model_copy(update={"context": {**law.context, "optimizer": "lion", "schedule": "wsd"}})
    with pytest.raises(ValueError, match=r"^trainer='hyperp': .* optimizer=lion, schedule=wsd"):
        hydra_overrides(recommend_rate(foreign, {"tokens": 520000}), foreign)
    # Every run at 0.7 times its base rate: the base rate is that much larger.
    frame = make_ladder(seed_shift=0.05)
    law = fit_law(_runs(frame.assign(base_lr=frame["lr"] / 0.7)), ["tokens"])
    found = recommend_rate(law, {"tokens": 520000})
    assert found.base_lr == pytest.approx(found.lr / 0.7, rel=1e-6)
    # A factor that moves with tokens cannot be carried to the target.
    law = fit_law(_runs(frame.assign(base_lr=frame["lr"] * frame["tokens"] ** 0.32)), ["tokens"])
    with pytest.raises(Refusal, match="lr/base_lr differs between"):
        hydra_overrides(recommend_rate(law, {"tokens": 520000}), law)


def test_a_recommendation_imports_neither_torch_nor_pandas():
    code = (
        "import sys; import hyperp.analysis.cli.main, hyperp.analysis.queries.recommend;"
        "import hyperp.analysis.law.schema, hyperp.analysis.report.text.recommendation;"
        "heavy = {'torch', 'pandas', 'matplotlib', 'statsmodels', 'scipy.stats', 'scipy.optimize'};"
        "print(*(heavy & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "\n"
    )


def test_no_part_of_the_analysis_imports_torch():
    code = (
        "import importlib, pkgutil, sys; import hyperp.analysis as a;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(a.__path__, 'hyperp.analysis.')];"
        "ours = [m for m in sys.modules if m.startswith('hyperp.analysis.')];"
        "print('torch' in sys.modules, len(ours) > 50)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False True\n"


def _target_runs(law, make_curve, optimum_shift: float, seeds: int, ratios=(0.5, 1.0, 2.0), noise=0.001):
    rate, _, _ = law.interval_at({"tokens": 2**20})
    points = make_curve(
        math.log2(rate) + optimum_shift, rate * np.array(ratios), seeds, np.random.default_rng(3), noise=noise
    )
    scale = {"width": 32, "depth": 2, "batch_tokens": 512, "granularity": 1, "sparsity": 1, "tokens": 2**20}
    return points.assign(**law.context, **scale, status="finished")


def test_the_recommended_rate_passes_where_it_is_best(law, make_curve):
    found = validate_law(law, _runs(_target_runs(law, make_curve, 0.0, seeds=2)))
    assert found.passed
    assert [r.recommended for r in found.rows] == [False, True, False]
    assert found.verdict.endswith("has the lowest mean loss")


def test_it_fails_where_half_the_rate_is_better(law, make_curve):
    found = validate_law(law, _runs(_target_runs(law, make_curve, -1.0, seeds=2)))
    assert not found.passed
    assert [r.passed for r in found.rows] == [False, True, True]
    assert "FAIL" in found.verdict


def test_the_spread_decides_a_near_tie(law, make_curve):
    """Differences gap -+ 0.03 over two seeds: the SD of their mean is 0.03, so 0.01 passes, 0.04 fails."""
    frame = _target_runs(law, make_curve, 0.0, seeds=2).sort_values(["lr", "seed"]).reset_index(drop=True)
    for gap, passed in ((0.01, True), (0.04, False)):
        frame["loss"] = [3.0, 3.0, 3 + gap - 0.03, 3 + gap + 0.03, 3.0, 3.0]
        found = validate_law(law, _runs(frame))
        assert found.rows[0].allowed == pytest.approx(0.03, rel=1e-9)
        assert found.passed is passed


def test_a_single_seed_takes_the_spread_of_the_law(law, make_curve):
    frame = _target_runs(law, make_curve, 0.0, seeds=1).sort_values("lr").reset_index(drop=True)
    allowed = law.seed_spread.difference_sd
    assert allowed is not None
    for gap, passed in ((0.9 * allowed, True), (1.1 * allowed, False)):
        frame["loss"] = [3.0, 3 + gap, 3.5]
        found = validate_law(law, _runs(frame))
        assert found.passed is passed
        assert "the law's records" in found.spread_from


def test_divergence_loses(law, make_curve):
    frame = _target_runs(law, make_curve, 0.0, seeds=2)
    top = frame["lr"] == frame["lr"].max()
    found = validate_law(law, _runs(frame.assign(status=np.where(top, "diverged", "finished"))))
    assert found.passed
    assert found.rows[-1].note == "diverged"
    middle = ~top & (frame["lr"] != frame["lr"].min())
    one = middle & (frame["seed"] == 1)
    found = validate_law(law, _runs(frame.assign(status=np.where(one, "diverged", "finished"))))
    assert not found.passed
    assert "has a run that diverged" in found.verdict


def test_runs_that_cannot_validate_the_law(law, make_curve, make_ladder):
    frame = _target_runs(law, make_curve, 0.0, seeds=1)
    with pytest.raises(ValueError, match=r"lr must include the recommended .* has"):
        validate_law(law, _runs(frame.assign(lr=frame["lr"] * 1.2)))
    with pytest.raises(ValueError, match=r"runs must .* tokens vary"):
        validate_law(law, _runs(make_ladder()))
    with pytest.raises(ValueError, match=r"optimizer must .* 'muonh', got 'adamw'"):
        validate_law(law, _runs(frame.assign(optimizer="adamw")))
    with pytest.raises(Refusal, match="half and twice that rate") as caught:
        validate_law(law, _runs(frame.iloc[1:2]))
    assert len(caught.value.points[0]["lr"]) == 2


def test_a_basin_that_narrows_with_a_size_costs_more_there():
    basin = BasinRecord(powers=[[2], [3]], coef=[0.01, 0.001], bend={"tokens": (0.5, 1000.0)})
    assert basin.at({"tokens": 1000}).coef == pytest.approx([0.01, 0.001], rel=1e-12)
    assert basin.at({"width": 64}).coef == pytest.approx([0.01, 0.001], rel=1e-12)
    assert basin.at({"tokens": 4000}).coef == pytest.approx([0.02, 0.002], rel=1e-12)
    assert basin.at({"tokens": 4000}).penalty(0.3) == pytest.approx(2 * basin.penalty(0.3), rel=1e-12)
