"""The law is recovered, warns where methods or sizes disagree, and data that cannot tell is refused."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.queries.check import describe_table, find_optima
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.validate import Runs
from hyperp.analysis.vocabulary import METHODS


def _runs(frame: pd.DataFrame) -> Runs:
    return Runs(frame, "runs.parquet", "0" * 64)


def test_a_known_law_is_recovered_inside_its_interval(make_ladder):
    frame = make_ladder(exponent=-0.45, seeds=2, noise=0.001, seed_shift=0.05, skew=0.1, scatter=0.03)
    law = fit_law(_runs(frame), ["tokens"])
    e = law.exponents["tokens"]
    assert e.low < -0.45 < e.high
    assert abs(e.value + 0.45) < 0.05
    _, low, high = law.interval_at({"tokens": 2**22})
    assert low < 2 ** (-4.7 - 0.45 * 6) < high
    assert (law.df, len(law.slices), law.held["width"], law.rate_factor) == (3, 5, 32, 1.0)
    assert law.ranges == {"tokens": (32768, 524288)}


def test_two_covariates_are_recovered(make_ladder):
    frames = [
        make_ladder(
            tokens=(32768, 65536, 131072),
            log2_at_64k=-5 + 0.5 * k,
            covariates={"batch_tokens": 512 * 2**k},
            noise=2e-4,
            skew=0,
            rng_seed=k,
        )
        for k in range(3)
    ]
    law = fit_law(_runs(pd.concat(frames)), ["tokens", "batch_tokens"])
    for name, truth in (("tokens", -0.5), ("batch_tokens", 0.5)):
        assert law.exponents[name].low < truth < law.exponents[name].high
        assert abs(law.exponents[name].value - truth) < 0.03
    fixed = fit_law(_runs(pd.concat(frames)), ["tokens"], fix={"batch_tokens": 0.5})
    assert fixed.fixed == {"batch_tokens": 0.5}
    assert fixed.df == 7
    np.testing.assert_allclose(fixed.exponents["tokens"].value, -0.5, rtol=0, atol=0.03)


@pytest.mark.parametrize("tokens", [(32768, 65536, 131072, 262144), tuple(2**k for k in range(14, 24))])
def test_prediction_intervals_cover_at_eight_times_the_range(make_ladder, tokens):
    """Skewed basins, noise 0.2%, seeds moving the optimum by 0.1 octave, slices by 0.05; 95% nominal."""
    inside = 0
    for seed in range(80):
        frame = make_ladder(tokens=tokens, octaves=(-11, 1), scatter=0.05, seed_shift=0.1, rng_seed=seed)
        law = fit_law(_runs(frame), ["tokens"])
        target = 8 * max(tokens)
        _, low, high = law.interval_at({"tokens": target})
        inside += low < 2 ** (-4.7 - 0.5 * math.log2(target / 65536)) < high
    assert inside >= 0.93 * 80


@settings(max_examples=15, deadline=None)
@given(octaves=st.floats(-3, 3), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_scaled_rates_scale_the_law_and_order_changes_nothing(make_ladder, octaves, seed, order):
    frame = make_ladder(rng_seed=seed, seed_shift=0.1)
    scaled = frame.assign(lr=frame["lr"] * 2.0**octaves)
    shuffled = frame.loc[order.sample(list(frame.index), len(frame))]
    laws = [fit_law(_runs(one), ["tokens"]) for one in (frame, scaled, shuffled)]
    base, other = (np.array(law.interval_at({"tokens": 10**6})) for law in laws[:2])
    np.testing.assert_allclose(other / base, 2.0**octaves, rtol=1e-5, atol=0)
    skip = {"created"}
    assert laws[0].model_dump(exclude=skip) == laws[2].model_dump(exclude=skip)


def test_a_slice_of_diverged_runs_changes_only_the_counts(make_ladder):
    frame = make_ladder(seed_shift=0.1)
    lost = make_ladder(tokens=(2**20,)).assign(status="diverged", loss=np.nan)
    with_lost = fit_law(_runs(pd.concat([frame, lost])), ["tokens"])
    without = fit_law(_runs(frame), ["tokens"])
    changed = {n for n in type(without).model_fields if getattr(without, n) != getattr(with_lost, n)} - {
        "created"
    }
    assert changed == {"rows", "dropped", "slices"}
    assert with_lost.dropped == {"diverged": len(lost)}
    (extra,) = [s for s in with_lost.slices if s not in without.slices]
    assert (extra.used, extra.state) == (False, "too_few_rates")


def test_several_groups_that_could_be_fitted_are_a_choice(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(covariates={"width": 64}, rng_seed=1)])
    with pytest.raises(ValueError, match=r"2 groups .*: where=.{2}width.: 32} or where=.*64}"):
        fit_law(_runs(frame), ["tokens"])
    law = fit_law(_runs(frame), ["tokens"], where={"width": "64"})
    assert law.held["width"] == 64
    assert {s.reason for s in law.slices if not s.used} == {"not in the selection width=64"}
    assert len(law.slices) == 10


def test_other_groups_are_listed_with_their_reason(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(tokens=(131072,), covariates={"width": 64})])
    law = fit_law(_runs(frame), ["tokens"])
    (other,) = [s for s in law.slices if not s.used]
    assert other.reason == "another group: width 64, tokens 131072"
    assert other.optimum is not None


def test_optima_at_the_edge_are_refused_with_the_rates_to_add(make_ladder):
    with pytest.raises(Refusal, match="0 bracketed, 2 needed to place a law of 2 coefficients") as caught:
        fit_law(_runs(make_ladder(octaves=(-14, -9))), ["tokens"])
    assert len(caught.value.points) == 5
    for point in caught.value.points:
        np.testing.assert_allclose(point["lr"], [2.0**-8, 2.0**-7], rtol=1e-3, atol=0)
        assert point["optimizer"] == "muonh"


def test_one_slice_is_refused_with_sizes_to_add(make_ladder):
    with pytest.raises(Refusal, match="tokens has one value, 65536") as caught:
        fit_law(_runs(make_ladder(tokens=(65536,))), ["tokens"])
    assert [p["tokens"] for p in caught.value.points] == [131072, 262144]
    assert len(caught.value.points[0]["lr"]) == 9


def test_two_slices_leave_no_degree_of_freedom(make_ladder):
    with pytest.raises(Refusal, match="2 slices, of which 2 bracketed, 3 needed"):
        fit_law(_runs(make_ladder(tokens=(65536, 131072))), ["tokens"])


def test_covariates_that_move_together_are_refused(make_ladder):
    frame = make_ladder()
    with pytest.raises(Refusal, match="tokens and batch_tokens move together"):
        fit_law(_runs(frame.assign(batch_tokens=frame["tokens"] // 64)), ["tokens", "batch_tokens"])


@pytest.mark.parametrize(
    ("by", "fix", "message"),
    [
        (["flops"], {}, "covariate must be one of width, .* got 'flops'"),
        ([], {}, "by must name at least one"),
        (["tokens"], {"tokens": -0.3}, "covariate tokens .*twice"),
        (["tokens"], {"depth": math.nan}, "fix depth must be a finite exponent, got nan"),
    ],
)
def test_covariates_out_of_range(make_ladder, by, fix, message):
    with pytest.raises(ValueError, match=message):
        fit_law(_runs(make_ladder()), by, fix=fix)


def _two(exponent: float, make_ladder, noise: float = 5e-4) -> pd.DataFrame:
    frames = [
        make_ladder(
            tokens=(32768, 131072, 524288),
            log2_at_64k=-5 + exponent * k,
            covariates={"depth": 2 * 2**k},
            noise=noise,
            skew=0,
            rng_seed=k,
        )
        for k in range(3)
    ]
    return pd.concat(frames)


def test_a_fixed_exponent_is_tested_against_the_data(make_ladder):
    right = fit_law(_runs(_two(-0.5, make_ladder)), ["tokens"], fix={"depth": -0.5}).fixed_tests["depth"]
    wrong = fit_law(_runs(_two(0.0, make_ladder)), ["tokens"], fix={"depth": -0.5}).fixed_tests["depth"]
    assert right.p_value is not None
    assert wrong.p_value is not None
    assert right.p_value > 0.01 > 1e-4 > wrong.p_value
    assert wrong.free is not None
    assert wrong.free.low < 0 < wrong.free.high
    # The same p-value as the two-sided interval of the free exponent says.
    free = fit_law(_runs(_two(-0.5, make_ladder)), ["tokens", "depth"])
    assert right.free == free.exponents["depth"]
    alone = fit_law(_runs(make_ladder()), ["tokens"], fix={"depth": -0.5}).fixed_tests["depth"]
    assert alone.problem == "depth has one value, 2"


def test_a_bend_in_log_tokens_is_found_and_a_line_has_none(make_ladder):
    frames = []
    for k, tokens in enumerate(2**j for j in range(14, 22)):
        optimum = -4 - 0.3 * (k - 3.5) + 0.05 * (k - 3.5) ** 2
        frames.append(
            make_ladder(exponent=0, log2_at_64k=optimum, tokens=(tokens,), noise=2e-4, skew=0, rng_seed=k)
        )
    frame = pd.concat(frames)
    law = fit_law(_runs(frame), ["tokens"])
    bent = law.bends["tokens^2"]
    assert bent.data_value is not None
    assert bent.data_se is not None
    assert bent.data_value > 5 * bent.data_se
    np.testing.assert_allclose(bent.data_value, 0.05 / math.log(2), rtol=0.15, atol=0)
    assert 0 < bent.value < bent.data_value  # the prior holds it back
    assert any(w.startswith("the optima bend in log tokens") for w in law.warnings)
    shared = fit_law(_runs(frame), ["tokens"], method="shared").curvature_tests["tokens"]
    assert shared.p_value < 1e-3
    np.testing.assert_allclose(shared.value, 0.05 / math.log(2), rtol=0.15, atol=0)
    law = fit_law(_runs(make_ladder(noise=2e-4, skew=0)), ["tokens"])
    straight = law.bends["tokens^2"]
    assert straight.low < 0 < straight.high
    assert not any("bend" in w for w in law.warnings)
    assert fit_law(_runs(frame), ["tokens"], bend_sd=0.0).bends == {}


def test_leaving_a_slice_out_predicts_it_from_the_others(make_ladder):
    frame = make_ladder(seed_shift=0.1)
    law = fit_law(_runs(frame), ["tokens"])
    assert [o.covariates["tokens"] for o in law.leave_one_out] == sorted(set(frame["tokens"]))
    last = law.leave_one_out[-1]
    rest = fit_law(_runs(frame[frame["tokens"] < 524288]), ["tokens"])
    # The others alone have another basin and noise, which move the optima a little.
    np.testing.assert_allclose(last.predicted, rest.interval_at({"tokens": 524288})[0], rtol=0.03, atol=0)
    np.testing.assert_allclose(last.error, math.log(last.predicted / last.lr), rtol=1e-9, atol=1e-12)
    assert law.basin is not None
    assert last.loss_penalty is not None
    basin = law.basin.at(last.covariates)
    np.testing.assert_allclose(last.loss_penalty, basin.penalty([last.error]), rtol=1e-9, atol=0)
    quadratic = basin.coef[basin.powers.index([2])] * last.error**2
    np.testing.assert_allclose(last.loss_penalty, quadratic, rtol=0.3, atol=0)


def test_methods_stand_beside_and_one_that_disagrees_is_a_warning(make_ladder):
    frame = make_ladder(exponent=-0.35, noise=1e-4, skew=0)
    law = fit_law(_runs(frame), ["tokens"])
    assert [b.method for b in law.beside] == [n for n in METHODS if n != law.method]
    argmin = fit_law(_runs(frame), ["tokens"], method="argmin")
    (same,) = [b for b in law.beside if b.method == "argmin"]
    np.testing.assert_allclose(same.exponents["tokens"], argmin.exponents["tokens"].value, rtol=1e-12, atol=0)
    # Whole-octave rates leave argmin no way to agree with an exact fit.
    assert any(w.startswith("argmin puts the exponent of tokens") for w in law.warnings)


def test_methods_that_differ_in_the_level_alone_are_a_warning(make_ladder):
    """Optima 0.4 octaves off whole-octave rates at every size: argmin has the exponent, not the rate."""
    frame = make_ladder(exponent=-1.0, log2_at_64k=-4.6, noise=1e-4, skew=0)
    law = fit_law(_runs(frame), ["tokens"])
    (argmin,) = [b for b in law.beside if b.method == "argmin"]
    assert law.exponents["tokens"].low < argmin.exponents["tokens"] < law.exponents["tokens"].high
    assert any(w.startswith("argmin puts lr in the middle of the slices at") for w in law.warnings)
    assert not any(w.startswith("two-stage") for w in law.warnings)


def _surface(scatter: float = 0.0) -> pd.DataFrame:
    """Whole-octave grids of rate and batch; optimum 0.4 octaves off both grids, `scatter` in the batch's."""
    rng, frames = np.random.default_rng(0), []
    x, y = (a.ravel() for a in np.meshgrid(np.arange(-10.0, 0), np.arange(5.0, 15)))
    for k in range(5):
        bottom = 9.4 + k - 2 + scatter * rng.normal()
        excess = 0.01 * (x + 5.4 + k - 2) ** 2 + 0.02 * (y - bottom) ** 2
        loss = 3 * (1 + excess) * (1 + 1e-4 * rng.normal(size=len(x)))
        frames.append(pd.DataFrame({"lr": 2**x, "batch_tokens": 2**y, "loss": loss, "tokens": 2 ** (15 + k)}))
    return pd.concat(frames, ignore_index=True)


def test_methods_that_differ_in_the_batch_are_a_warning():
    law = fit_law(_runs(_surface()), ["tokens"], over=("lr", "batch_tokens"))
    (argmin,) = [b for b in law.beside if b.method == "argmin"]
    assert abs(math.log2(argmin.also["batch_tokens"] / 2**9.4)) == pytest.approx(0.4, abs=0.01)
    assert any(w.startswith("argmin puts batch_tokens in the middle") for w in law.warnings)
    (parabolas,) = [b for b in law.beside if b.method == "two-stage"]
    assert parabolas.problem == "tunes lr alone"


def test_leaving_a_slice_out_costs_what_missing_rate_and_batch_together_costs():
    frame = _surface(scatter=0.5)
    law = fit_law(_runs(frame), ["tokens"], over=("lr", "batch_tokens"))
    last, at = law.leave_one_out[-1], {"tokens": 2**19}
    rest = fit_law(_runs(frame[frame["tokens"] < 2**19]), ["tokens"], over=("lr", "batch_tokens"))
    own = law.slices[-1].optimum
    assert law.basin is not None
    assert own is not None
    assert last.loss_penalty is not None
    missed = math.log(rest.interval_at(at, "batch_tokens")[0] / own.also["batch_tokens"])
    np.testing.assert_allclose(last.loss_penalty, law.basin.penalty([last.error, missed]), rtol=0.1, atol=0)
    assert last.loss_penalty > 10 * law.basin.penalty(last.error)
    found = recommend_rate(law, at)
    ends = found.also["batch_tokens"]
    assert found.penalty_low is not None
    for end in (ends.low, ends.high):
        both = [math.log(found.lr / found.low), math.log(ends.value / end)]
        assert found.penalty_low >= law.basin.penalty(both) * (1 - 1e-9)


def test_a_prediction_in_linear_space_adds_the_scatter_in_rates(make_ladder):
    law = fit_law(_runs(make_ladder(scatter=0.3)), ["tokens"], space="linear")
    rate, low, high = law.interval_at({"tokens": 2**20})
    x = np.array([1.0, math.log(2**20)])
    assert law.rate_sd is not None
    variance = x @ np.array(law.covariance) @ x + (law.rate_sd / rate) ** 2
    half = t_quantile(law.df, 0.95) * math.sqrt(variance)
    np.testing.assert_allclose(np.log([rate / low, high / rate]), half, rtol=1e-9, atol=0)


def test_a_slice_far_from_the_law_of_the_others_is_named(make_ladder):
    sizes = tuple(2**k for k in range(14, 22))
    frame = make_ladder(tokens=sizes, scatter=0.03, noise=5e-4)
    assert not any("lies" in w for w in fit_law(_runs(frame), ["tokens"]).warnings)
    off = frame.assign(lr=frame["lr"].where(frame["tokens"] != 2**17, 2 * frame["lr"]))
    named = [w for w in fit_law(_runs(off), ["tokens"]).warnings if "from the law of the other" in w]
    assert len(named) == 1
    assert named[0].startswith("the slice tokens 131072 lies ")


def test_runs_that_have_not_finished_may_lack_a_rate(make_ladder):
    frame = make_ladder()
    rest = frame[:3].assign(status=["planned", "failed", "diverged"], lr=np.nan, loss=np.nan, base_lr=np.nan)
    lost = frame[:1].assign(seed=7, loss=-np.inf)
    law = fit_law(_runs(pd.concat([frame, rest, lost])), ["tokens"])
    assert law.dropped == {"diverged": 1, "failed": 1, "finished, loss not finite": 1, "planned": 1}
    assert law.exponents == fit_law(_runs(frame), ["tokens"]).exponents
    assert law.rate_factor == 1.0


def test_sizes_that_may_be_one_are_a_warning_of_the_check(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(tokens=(66000,), rng_seed=1)])
    assert [w[:30] for w in describe_table(find_optima(_runs(frame))).warnings] == [
        "tokens 65536 and 66000 differ b"[:30]
    ]
    assert describe_table(find_optima(_runs(make_ladder()))).warnings == []


def test_slices_that_end_at_their_best_rate_count_and_bound_the_law(make_ladder):
    inside = make_ladder(tokens=(2**14, 2**15, 2**16))
    edge = make_ladder(tokens=tuple(2**k for k in range(20, 24)), octaves=(-4, 0))
    frame = pd.concat([inside, edge])
    law = fit_law(_runs(frame), ["tokens"])
    assert [s.state for s in law.slices] == ["bracketed"] * 3 + ["edge_low"] * 4
    assert all(s.used for s in law.slices)
    assert [s.one_sided for s in law.slices] == [False] * 3 + [True] * 4
    shares = [s.share for s in law.slices]
    np.testing.assert_allclose(sum(share or 0.0 for share in shares), 1.0, rtol=1e-9, atol=0)
    assert all(share is not None and 0 < share < 1 for share in shares)
    assert law.exponents["tokens"].low < -0.5 < law.exponents["tokens"].high
    for one in law.slices[3:]:
        assert one.optimum is not None
        assert one.optimum.low is None
        assert one.optimum.high is not None
    alone = fit_law(_runs(inside), ["tokens"]).exponents["tokens"]
    assert law.exponents["tokens"].high - law.exponents["tokens"].low < 0.98 * (alone.high - alone.low)
    with pytest.raises(Refusal, match="4 of 7 slices have their lowest loss at the end") as caught:
        fit_law(_runs(frame), ["tokens"], method="shared")
    assert [p["tokens"] for p in caught.value.points] == [2**k for k in range(20, 24)]
    assert all(max(p["lr"]) < 2**-4 for p in caught.value.points)


def test_one_bracketed_slice_places_no_law(make_ladder):
    inside = make_ladder(tokens=(2**14,))
    edge = make_ladder(tokens=tuple(2**k for k in range(20, 24)), octaves=(-4, 0))
    with pytest.raises(Refusal, match="5 slices, of which 1 bracketed, 2 needed to place") as caught:
        fit_law(_runs(pd.concat([inside, edge])), ["tokens"])
    assert [p["tokens"] for p in caught.value.points] == [2**k for k in range(20, 24)]


def test_sizes_that_nearly_move_together_are_refused(make_ladder):
    frame = make_ladder(tokens=tuple(2**k for k in range(15, 22)))
    ratio = 1 + 0.2 * (np.log2(frame["tokens"]) % 2)
    with pytest.raises(Refusal, match=r"tokens and N move together .*99\.\d+% of the variance"):
        fit_law(_runs(frame.assign(N=frame["tokens"] / 20 * ratio)), ["tokens", "N"])


def test_linear_space_is_least_squares_in_the_rates(make_ladder):
    from scipy.optimize import curve_fit

    law = fit_law(_runs(make_ladder(scatter=0.3)), ["tokens"], space="linear")
    x = np.array([s.covariates["tokens"] for s in law.slices], dtype=float)
    y = np.array([s.optimum.lr for s in law.slices if s.optimum])
    beta, cov = curve_fit(lambda t, a, b: np.exp(a + b * np.log(t)), x, y, p0=[1.0, -0.4])
    np.testing.assert_allclose([law.a.value, law.exponents["tokens"].value], beta, rtol=1e-4, atol=0)
    np.testing.assert_allclose(law.covariance, cov, rtol=1e-3, atol=0)
    rate, low, high = law.interval_at({"tokens": 65536})
    assert low < rate < high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": ("batch_tokens",)}, "over must be lr, or lr and one or two more columns"),
        ({"over": ("lr", "tokens")}, "covariate tokens .*twice"),
        ({"method": "magic"}, "method must be one of"),
        ({"space": "square"}, "space must be log or linear, got 'square'"),
        ({"reach": 0.5}, "reach must be at least 1, got 0.5"),
        ({"method": "two-stage", "over": ("lr", "batch_tokens")}, "two-stage.* tunes lr alone"),
        ({"also_by": ("depth",)}, "also_by must name some of by=.tokens., got 'depth'"),
    ],
)
def test_requests_that_make_no_sense(make_ladder, options, message):
    with pytest.raises(ValueError, match=message):
        fit_law(_runs(make_ladder()), ["tokens"], **options)
