"""What check says of sizes that vary together, of zeros, and of its level."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import Refusal, check, fit_law, transfer
from tests.analysis.law_command import run


@pytest.fixture(scope="module")
def together(make_ladder) -> pd.DataFrame:
    """Five models whose width and depth both vary, none of which differ in one alone."""
    shapes = [(64, 2), (128, 8), (256, 4), (512, 16), (1024, 6)]
    return pd.concat(
        make_ladder(tokens=(65536,), covariates={"width": w, "depth": d}, rng_seed=w, seeds=1)
        for w, d in shapes
    )


def test_sizes_that_vary_together_are_identified_together(together, tmp_path):
    found = check(together)
    assert [(v.covariate, v.identified, v.by) for v in found.identifiable] == [
        ("width", True, ["width", "depth"]),
        ("depth", True, ["width", "depth"]),
    ]
    assert all("has one value" in str(v.reason) for v in found.identifiable)
    assert found.headline().endswith("width and depth together")
    fit_law(together, by="width,depth")
    with pytest.raises(Refusal):
        fit_law(together, by="width")
    together.to_csv(tmp_path / "runs.csv", index=False)
    text = run("check", tmp_path / "runs.csv").stdout
    assert text.count("yes, with --by width,depth") == 2


def test_the_smallest_set_is_named_and_none_where_there_is_none(together, make_ladder):
    both = pd.concat([together, make_ladder(tokens=(32768, 131072), covariates={"width": 64}, seeds=1)])
    verdicts = {v.covariate: v for v in check(both).identifiable}
    assert verdicts["tokens"].by == ["tokens"]
    assert verdicts["tokens"].reason is None
    two = together[together["width"] < 256]
    assert not any(v.identified or v.by for v in check(two).identifiable)


@pytest.fixture(scope="module")
def decays(make_curve) -> pd.DataFrame:
    """Curves at five weight decays, the first 0."""
    rng, rates = np.random.default_rng(0), 2.0 ** np.arange(-9, -2)
    optima = {0.0: -5.0, 0.01: -5.0, 0.03: -5.3, 0.1: -5.7, 0.3: -6.1}
    curves = [
        make_curve(best, rates, 1, rng, noise=1e-4).assign(weight_decay=wd) for wd, best in optima.items()
    ]
    return pd.concat(curves, ignore_index=True)


def test_a_zero_that_no_law_needs_tells_slices_apart(decays):
    assert len(check(decays, slice_by="weight_decay").slices) == 5
    assert not any("0 in" in line for line in check(decays, slice_by="weight_decay").warnings)
    with pytest.raises(ValueError, match=r"weight_decay must be a finite number of at least 0, got -1"):
        check(decays.assign(weight_decay=-1), slice_by="weight_decay")
    with pytest.raises(ValueError, match=r"tokens must be a positive finite number, got 0"):
        check(decays.assign(tokens=0))


def test_a_law_by_a_column_with_a_zero_leaves_these_slices_out_and_says_so(decays):
    found = check(decays, by="weight_decay")
    assert found.identifiable[0].identified
    law = fit_law(decays, by="weight_decay")
    for warnings in (found.warnings, law.warnings):
        assert any(line.startswith("weight_decay is 0 in 1 of 5 slices") for line in warnings)
    assert law.ranges == {"weight_decay": (0.01, 0.3)}
    assert [one.covariates["weight_decay"] for one in law.slices if not one.used] == [0.0]
    drift = transfer(decays, "weight_decay")[0]
    assert [point.value for point in drift.points] == [0.01, 0.03, 0.1, 0.3]
    with pytest.raises(Refusal, match="weight_decay is 0, and no power law goes through 0"):
        fit_law(decays[decays["weight_decay"] == 0], by="weight_decay")


def test_a_law_may_hold_a_column_at_zero(make_ladder):
    law = fit_law(make_ladder(seeds=1).assign(weight_decay=0.0), by="tokens", slice_by="weight_decay")
    assert law.held["weight_decay"] == 0
    assert law.recommend(tokens=65536, weight_decay=0).lr == law.recommend(tokens=65536).lr
    assert law.predict(tokens=65536, weight_decay=0)["lr"][0] == pytest.approx(law.recommend(tokens=65536).lr)
    with pytest.raises(Refusal):
        law.recommend(tokens=65536, weight_decay=0.1)


def test_a_zero_of_what_is_tuned_is_left_out_and_counted(decays):
    found = check(decays, over="lr,weight_decay")
    (one,) = found.slices
    assert one.dropped == {"at weight_decay 0": 7}
    assert any(line.startswith("7 runs are left out where weight_decay is 0") for line in found.warnings)
    best = decays.assign(loss=decays["loss"].where(decays["weight_decay"] > 0, 1.0))
    warnings = check(best, over="lr,weight_decay").warnings
    assert any("lowest loss of 1 of 1 slices" in line for line in warnings)


def test_intervals_have_the_level_that_was_asked(make_ladder, tmp_path):
    frame = make_ladder(tokens=(32768, 65536, 131072), noise=0.004)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    narrow, wide = check(frame, level=0.5), check(frame, level=0.99)
    assert (narrow.level, wide.level) == (0.5, 0.99)
    ends = narrow.to_frame().merge(wide.to_frame(), on="tokens", suffixes=("", "_wide"))
    assert len(ends) == 3
    assert (ends["low_wide"] < ends["low"]).all()
    assert (ends["high"] < ends["high_wide"]).all()
    drift = [transfer(frame, "tokens", level=level).to_frame().iloc[0] for level in (0.5, 0.99)]
    assert drift[1]["low"] < drift[0]["low"] < drift[0]["high"] < drift[1]["high"]
    assert "50% interval" in run("check", tmp_path / "runs.csv", "--level", "0.5").stdout
    assert (
        "50% interval" in run("transfer", tmp_path / "runs.csv", "--over", "tokens", "--level", "0.5").stdout
    )
    words = ["fit", tmp_path / "runs.csv", "--by", "tokens", "--level", "0.5", "-o", tmp_path / "law.json"]
    assert "50% interval" in run(*words).stdout
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        check(frame, level=95)


def test_an_axis_is_one_column(make_ladder):
    with pytest.raises(ValueError, match=r"over must be the name of one column, got \['width'\]"):
        transfer(make_ladder(), over=["width"])  # pyright: ignore[reportArgumentType]


def test_computed_columns_stand_wherever_sizes_can(make_ladder):
    frame = make_ladder(seeds=1).assign(wd=0.1)
    plain = frame.rename(columns={"tokens": "T"})
    law = fit_law(plain, by="size", mapping={"size": "sqrt(T)"})
    assert law.exponents["size"].value == pytest.approx(-1.0, abs=0.15)
    names = {"x": "T**2/1e6", "one": "wd*10"}
    assert fit_law(plain, by="T", slice_by="one", mapping=names).held["one"] == 1
    assert fit_law(plain, by="x", fix={"one": 1.0}, mapping=names).ranges["one"] == (1, 1)
    kappa = {"kappa": "lr*wd2", "wd2": "1e-3/lr"}  # the same at every rate
    assert check(plain, by="T", slice_by="kappa", mapping=kappa).slices[0].covariates["kappa"] == 1e-3
    batch = {"lr": "lr/sqrt(bs)", "root": "sqrt(bs)"}
    assert len(check(plain.assign(bs=4), by="T", slice_by="root", mapping=batch).slices) == 5
    with pytest.raises(
        ValueError, match="a size must be the same at every rate, got one that changes with lr"
    ):
        fit_law(plain, by="tau", mapping={"tau": "512/(lr*wd*T)"})
    tuned = pd.concat([plain.assign(bs=b, lr=plain["lr"] * b**0.5, base_lr=np.nan) for b in (1, 2, 4)])
    found = check(tuned, over="lr,tau", slice_by="T", mapping={"tau": "bs*512", "lr": "lr/sqrt(bs)"})
    assert set(found.slices[0].points[0].also) == {"tau"}
