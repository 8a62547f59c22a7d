"""The Python API: what a notebook user calls, what it gives, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import hyperp.analysis as analysis
from hyperp.analysis import (
    Law,
    Refusal,
    check,
    fit_law,
    load_law,
    read_runs,
    transfer,
    validate,
    write_report,
)


@pytest.fixture(scope="module")
def frame(make_ladder) -> pd.DataFrame:
    return make_ladder(seed_shift=0.1, tokens=(32768, 65536, 131072, 262144))


@pytest.fixture(scope="module")
def law(frame) -> Law:
    return fit_law(frame, by="tokens")


def test_every_exported_name_is_there():
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    assert sorted(dir(analysis)) == sorted(analysis.__all__)
    with pytest.raises(AttributeError, match="fit_lwa"):
        analysis.fit_lwa  # noqa: B018 # pyright: ignore


def test_a_frame_a_path_and_runs_give_the_same_law(frame, law, tmp_path):
    path = tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    runs = read_runs(path)
    skip = {"created", "records"}
    for source, by in (
        (tmp_path / "runs.csv", ["tokens"]),
        (str(tmp_path / "runs.csv"), "tokens"),
        (runs, "tokens"),
    ):
        assert fit_law(source, by=by).model_dump(exclude=skip) == law.model_dump(exclude=skip)


def test_where_takes_values_and_fix_is_tested(make_ladder):
    wide = make_ladder(covariates={"width": 64, "depth": 8}, rng_seed=1)
    both = pd.concat([make_ladder(), wide])
    law = fit_law(both, by="tokens", where={"width": 64}, method="two-stage")
    assert (law.held["width"], law.where, law.method) == (64, {"width": "64"}, "two-stage")
    fixed = fit_law(both.drop(columns="width"), by="tokens", fix={"depth": -0.5})
    assert fixed.fixed_tests["depth"].fixed == -0.5


def test_given_optima_of_rate_and_batch_may_have_a_loss():
    tokens = np.geomspace(1e4, 1e7, 8)
    table = pd.DataFrame({"tokens": tokens, "lr": 0.1 * tokens**-0.3, "batch_tokens": tokens**0.5})
    for frame in (table, table.assign(loss=3.0)):
        law = fit_law(frame, "tokens", over=["lr", "batch_tokens"], given=True)
        np.testing.assert_allclose(law.exponents["tokens"].value, -0.3, rtol=1e-4)
        np.testing.assert_allclose(law.also["batch_tokens"].exponents["tokens"].value, 0.5, rtol=1e-4)
        assert not any(one.points for one in law.slices)


def test_own_columns_are_validated_though_runs_were_read_without_them(frame):
    runs = read_runs(frame.assign(N=frame["tokens"] * 20).drop(columns="tokens"))
    assert fit_law(runs, by="N").ranges["N"] == (20 * 32768, 20 * 262144)
    with pytest.raises(ValueError, match=r"N must .*got -1"):
        fit_law(read_runs(frame.assign(N=-1)), by="N")


def test_a_frame_is_validated_like_a_file(frame):
    with pytest.raises(ValueError, match=r"lr must .*got -1"):
        check(frame.assign(lr=-1.0))
    with pytest.raises(ValueError, match=r"names the column.* lr twice"):
        check(pd.concat([frame, frame[["lr"]]], axis=1))
    with pytest.raises(ValueError, match="no rows"):
        check(frame.iloc[:0])
    with pytest.raises(ValueError, match="mapping must"):
        check(read_runs(frame), mapping={"tokens": "D"})


def test_the_summary_is_a_row_a_covariate(law):
    found = law.summary()
    e = law.exponents["tokens"]
    assert found.loc["tokens"].tolist() == [e.value, e.se, e.low, e.high, 32768, 262144]
    assert list(found.columns) == ["exponent", "se", "low", "high", "range_low", "range_high"]


def test_slices_are_a_row_each(law):
    found = law.slices_frame()
    assert found["tokens"].tolist() == [32768, 65536, 131072, 262144]
    assert found["used"].all()
    assert (found["state"] == "bracketed").all()
    assert ((found["low"] < found["lr"]) & (found["lr"] < found["high"])).all()


def test_predictions_broadcast(law):
    found = law.predict(tokens=[5e5, 1e6], width=32)
    assert list(found.columns) == ["tokens", "width", "lr", "low", "high"]
    for row in found.itertuples():
        np.testing.assert_allclose(
            [row.lr, row.low, row.high], law.interval_at({"tokens": row.tokens}), rtol=1e-12
        )
    assert len(law.predict(tokens=1e6)) == 1
    for sizes, message in (
        ({}, "needs tokens"),
        ({"tokens": [1e6, -1]}, "tokens must .*got -1"),
        ({"tokens": 1e6, "width": 64}, "width must be 32.*got 64"),
        ({"tokens": 1e6, "flops": 1}, "size must .*got 'flops'"),
        ({"tokens": "1e6"}, "tokens must .*got '1e6'"),
        ({"tokens": []}, "tokens must .*got "),
        ({"tokens": [1e6, 2e6], "width": [32, 32, 32]}, r"tokens \(2,\), width \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            law.predict(**sizes)


def test_printed_intervals_are_named_after_the_level(frame, capsys):
    from hyperp.analysis.report.text.law import show_law

    narrow = fit_law(frame, by="tokens", level=0.8)
    show_law(narrow)
    printed = capsys.readouterr().out
    assert printed.count("80% interval") >= 2
    assert "95% interval" not in printed
    assert "80% prediction interval" in str(narrow.recommend(tokens=5.2e5))


def test_a_recommendation_is_that_of_the_law(law):
    found = law.recommend(tokens=5.2e5)
    assert (found.lr, found.low, found.high) == law.interval_at({"tokens": 520000})
    assert found.to_frame().loc[0, "lr"] == found.lr
    assert "prediction interval" in found._repr_html_()


@pytest.mark.parametrize("size", ["5e5", [5e5], None])
def test_a_target_has_one_number_for_each_size(law, size):
    with pytest.raises(ValueError, match="tokens must be one number, got"):
        law.recommend(tokens=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "optimizer=muonh"}, "where must .*got 'optimizer=muonh'"),
        ({"where": {"optimizer": ["muonh", "adamw"]}}, "where must .*optimizer.*got "),
        ({"where": {"optimizer": "sso"}}, r"where={'optimizer': 'sso'} matches no row"),
        ({"fix": -0.5}, "fix must .*got -0.5"),
        ({"fix": {"depth": "half"}}, "fix must .*depth.*got 'half'"),
        ({"mapping": {"lr": "eta"}}, r"mapping={'lr': 'eta'}"),
        ({"level": 95}, "level must .*got 95"),
        ({"by": ()}, "^by must"),
    ],
)
def test_errors_name_the_argument(frame, options, message):
    with pytest.raises(ValueError, match=message):
        fit_law(frame, **{"by": "tokens", **options})


def test_errors_of_a_loss_law_name_the_argument(frame):
    with pytest.raises(ValueError, match=r"form must .*got 'cubic'"):
        analysis.fit_loss(frame, "cubic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"pin must .*E.*got 'low'"):
        analysis.fit_loss(frame.assign(flops=frame["tokens"]), pin={"E": "low"})  # pyright: ignore[reportArgumentType]


def test_a_refusal_has_the_next_points_as_a_table(law, make_ladder):
    with pytest.raises(Refusal, match="tokens=100000000") as caught:
        law.recommend(tokens=1e8)
    points = caught.value.next_points
    assert len(points) == len(caught.value.points[0]["lr"])
    assert (points["tokens"] > 262144).all()
    assert law.recommend(tokens=1e8, extrapolate=True).lr == law.predict(tokens=1e8).loc[0, "lr"]
    with pytest.raises(Refusal, match="muon") as caught:
        law.recommend(tokens=5.2e5, optimizer="muon")
    assert set(caught.value.next_points["optimizer"]) == {"muon"}


def test_a_law_is_saved_and_loaded(law, tmp_path):
    law.save(tmp_path / "law.json")
    assert load_law(tmp_path / "law.json") == law


def test_a_notebook_shows_tables(law, frame):
    answers = [law, check(frame), law.recommend(tokens=5.2e5), law.next_runs(tokens=1e7)]
    for answer in answers:
        assert "<table" in answer._repr_html_()
        assert str(answer) == answer.headline()
        assert repr(answer) == f"<{type(answer).__name__}: {answer.headline()}>"
        assert len(repr(answer)) < 200
    assert law.next_runs(count=1, tokens=1e7).to_frame()["tokens"].nunique() == 1


def test_plots_go_to_the_axes_that_are_given(law):
    plt = pytest.importorskip("matplotlib.pyplot")
    backend = mpl.get_backend()
    figure, axes = plt.subplots()
    assert law.plot("tokens", ax=axes, tokens=1e6) is axes
    assert len(axes.lines) > 4
    assert mpl.get_backend() == backend
    plt.close(figure)
    with pytest.raises(ValueError, match="covariate must be one of tokens, got"):
        law.plot("width")


def test_transfer_is_a_row_a_group(demo):
    found = transfer(demo, "width")
    assert set(found.to_frame()["optimizer"]) == {"muonh", "adamw"}
    assert len(found) == len(found.to_frame())
    assert found[0].axis == "width"
    assert "<table" in found._repr_html_()
    assert "per doubling of width" in repr(found)
    with pytest.raises(Refusal, match="depth has one value") as caught:
        transfer(demo, "depth")
    assert {4, 8} == set(caught.value.next_points["depth"])


def test_a_law_is_validated_and_reported(law, make_ladder, tmp_path):
    best = law.recommend(tokens=524288)
    runs = make_ladder(tokens=(524288,))
    runs = pd.concat([runs.assign(lr=best.lr * 2.0**k).drop_duplicates("seed") for k in (-1, 0, 1)])
    runs["loss"] = 3 + 0.01 * np.log2(runs["lr"] / best.lr) ** 2
    found = validate(law, runs)
    assert found.passed
    assert len(found.to_frame()) == 3
    paths = write_report(law, tmp_path / "report", check=runs, tokens=524288)
    assert all(path.is_file() for path in paths)
    assert "PASS" in (tmp_path / "report" / "report.md").read_text()


def test_a_law_says_what_it_leaves_out(make_ladder):
    runs = make_ladder()
    runs.loc[runs.index[0], ["status", "loss"]] = ["diverged", np.nan]
    other = make_ladder(tokens=(32768,), covariates={"width": 64})
    law = analysis.fit_law(pd.concat([runs, other]), by="tokens", where={"width": 32})
    text = " ".join(law.notes())
    assert f"1 of {len(law.slices)} slices excluded" in text
    assert f"of {len(runs) + len(other)} rows" in text
    assert "1 diverged" in text


@pytest.mark.parametrize("fix", [{}, {"depth": -0.5}], ids=["free", "fixed"])
def test_statsmodels_has_the_same_law(make_ladder, fix):
    runs = make_ladder(scatter=0.2, noise=0.001)
    law = analysis.fit_law(runs, by="tokens", fix=fix, method="shared")
    twin = law.to_statsmodels()
    found = [law.a, *law.exponents.values()]
    np.testing.assert_allclose(twin.params, [one.value for one in found], rtol=1e-6, atol=0)
    np.testing.assert_allclose(np.asarray(twin.bse), [one.se for one in found], rtol=1e-6, atol=0)
    np.testing.assert_allclose(twin.conf_int()[1], [one.high for one in found], rtol=1e-6, atol=0)
    assert float(twin.t_test(f"ln tokens = {law.exponents['tokens'].value}").pvalue) > 0.99
    for wrong in (
        analysis.fit_law(runs, by="tokens", method="argmin"),
        analysis.fit_law(runs, by="tokens", space="linear"),
        analysis.fit_law(runs, by="tokens"),
    ):
        with pytest.raises(ValueError, match=f"space {wrong.space} and method {wrong.method}"):
            wrong.to_statsmodels()


def test_losses_and_leverage_are_tables():
    flops = np.geomspace(1e15, 1e18, 8)
    frames = [
        pd.DataFrame({"optimizer": name, "flops": flops, "loss": 1.7 + a * flops**-0.1})
        for name, a in (("muon", 40.0), ("muonh", 38.0))
    ]
    runs = pd.concat(frames)
    runs["loss"] *= 1 + 1e-4 * np.random.default_rng(0).normal(size=len(runs))
    fitted = analysis.fit_loss(runs, where={"optimizer": "muon"}, bootstrap=20)
    np.testing.assert_allclose(fitted.to_frame()["value"]["E"], 1.7, rtol=0.02, atol=0)
    assert "<table" in fitted._repr_html_()
    found = analysis.leverage(runs, {"optimizer": "muon"}, bootstrap=20)
    np.testing.assert_allclose(found.to_frame()["leverage"], (40 / 38) ** 10, rtol=0.05)
    assert "muon" in found._repr_html_()
    assert len(repr(fitted)) < 200
    assert len(repr(found)) < 200


PROBE = "import sys; {}; print(','.join(n for n in ('torch', 'pandas', 'matplotlib') if n in sys.modules))"


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import hyperp.analysis", set()),
        ("from hyperp.analysis import load_law; load_law({path!r}).recommend(tokens=5e5)", set()),
        ("from hyperp.analysis import load_law; load_law({path!r}).predict(tokens=5e5)", {"pandas"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(law, tmp_path: Path, statement, allowed):
    law.save(tmp_path / "law.json")
    code = PROBE.format(statement.format(path=str(tmp_path / "law.json")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed
