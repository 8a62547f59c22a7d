"""The report on stability: which runs it takes, what it draws, and the ratios it states."""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from hyperp.analysis import fit_law
from hyperp.analysis.diagnostics.monitors import (
    NO_RATE,
    NOT_FINITE,
    NOT_MONITORED,
    ratio_of_means,
    read_monitors,
)
from hyperp.analysis.report.figures.monitors import monitors_against_size, monitors_against_steps
from hyperp.analysis.report.report import write_report
from hyperp.analysis.report.text.monitors import run_length_note, scale_table
from hyperp.analysis.table.validate import read_runs

TOKENS = (32768, 65536, 131072, 262144)


def monitored_ladder(make_ladder) -> pd.DataFrame:
    """A ladder in tokens and a second width at one of them; Z falls and logits grow with tokens."""
    wide = make_ladder(tokens=(131072,), covariates={"width": 64}, rng_seed=1, seeds=2)
    frame = pd.concat([make_ladder(tokens=TOKENS, noise=1e-4), wide], ignore_index=True)
    frame["run_id"] = [f"run{i}" for i in range(len(frame))]
    frame["attention_z_max"] = 30 * (frame["tokens"] / 32768) ** -0.5 + frame["seed"]
    frame["logit_max"] = 10 * (frame["tokens"] / 32768) * frame["width"] / 32
    frame.loc[frame["lr"] == frame["lr"].max(), "logit_max"] = 1e6  # of a rate that is not the best
    frame["router_z_max"] = np.nan
    frame["steps"] = frame["tokens"] // 512
    frame["monitor_looks"] = frame["steps"] // 8
    return frame


def metrics_table(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for number, run_id in enumerate(frame["run_id"]):
        for step in (50, 100):
            places = [("attention_z", 0, None, 3.0), ("attention_z", 1, None, step + number)]
            places += [("update_rms", None, "hidden", 1e-3), ("update_rms", None, "vector", 7.0)]
            places += [("residual_outliers", 0, None, 0.0), ("mlp_output_outliers", 0, None, 0.25)]
            rows += [(run_id, step, *place) for place in places]
    return pd.DataFrame(rows, columns=["run_id", "step", "quantity", "layer", "role", "value"])


@pytest.fixture(scope="module")
def monitored_law(make_ladder, tmp_path_factory):
    """A folder with both tables, their frame, and the law of width 32."""
    folder = tmp_path_factory.mktemp("monitored")
    frame = monitored_ladder(make_ladder)
    frame.to_parquet(folder / "runs.parquet")
    metrics_table(frame).to_parquet(folder / "runs.metrics.parquet")
    return folder, frame, fit_law(read_runs(folder / "runs.parquet"), ["tokens"])


def best_runs(frame: pd.DataFrame, tokens: int, width: int) -> pd.DataFrame:
    own = frame[(frame["tokens"] == tokens) & (frame["width"] == width)]
    return own[own["lr"] == own.groupby("lr")["loss"].mean().idxmin()]


def test_every_scale_counts_with_the_runs_at_its_best_rate(monitored_law):
    _, frame, law = monitored_law
    found = read_monitors(law)
    assert found is not None
    assert len(found.scales) == 5
    for row in found.scales.to_dict("records"):
        runs = best_runs(frame, row["tokens"], row["width"])
        assert row["lr"] == runs["lr"].iloc[0]
        assert row["seeds"] == 2
        assert row["attention_z_max"] == pytest.approx(runs["attention_z_max"].mean(), rel=1e-12)
        assert row["logit_max"] < 1e6
    assert found.quantities == ["attention_z_max", "logit_max"]
    assert found.axes == ["width", "tokens"]


def test_a_ratio_is_the_largest_size_over_the_smallest_with_the_others_held(monitored_law):
    found = read_monitors(monitored_law[2])
    assert found is not None
    ratios = {(r.quantity, r.axis): r for r in found.ratios("tokens") + found.ratios("width")}
    assert set(ratios) == {(q, a) for q in ("attention_z_max", "logit_max") for a in ("tokens", "width")}
    z, logit = ratios["attention_z_max", "tokens"], ratios["logit_max", "width"]
    assert [end.size for end in z.ends] == [32768, 262144]
    assert [end.mean for end in z.ends] == pytest.approx([30.5, 30 / 8**0.5 + 0.5], rel=1e-12)
    assert [(end.low, end.high) for end in z.ends] == [
        pytest.approx((mean, mean + 1)) for mean in (30, 30 / 8**0.5)
    ]
    assert z.value == pytest.approx((30 / 8**0.5 + 0.5) / 30.5, rel=1e-12)
    assert [(end.seeds, end.looks) for end in z.ends] == [(2, (8, 8)), (2, (64, 64))]
    assert logit.value == pytest.approx(2.0, rel=1e-12)
    assert (logit.low, logit.high) == (logit.value, logit.value)  # seeds do not differ


def test_the_interval_of_a_ratio_is_welchs_and_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(2000):
        first, second = rng.normal(10, 0.5, size=4), rng.normal(30, 3.0, size=3)
        value, low, high = ratio_of_means(first, second, 0.9)
        assert value == pytest.approx(second.mean() / first.mean(), rel=1e-12)
        assert low is not None
        assert high is not None
        hits.append(low < 3 < high)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.03)
    # With all of the spread at one end, Student's t of that end alone, to first order.
    _, low, high = ratio_of_means(np.full(3, 1.0), np.array([9.99, 10.0, 10.01]), 0.95)
    expected = ttest_1samp([9.99, 10.0, 10.01], 0.0).confidence_interval(0.95)
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-5)


def test_without_spread_or_a_positive_mean_there_is_no_interval():
    assert ratio_of_means(np.array([2.0]), np.array([3.0, 5.0]), 0.95) == (2.0, None, None)
    assert ratio_of_means(np.zeros(2), np.ones(2), 0.95) == (None, None, None)


@pytest.fixture
def monitors_of_frame(monitored_law, tmp_path):
    """What the monitors saw of another frame under the same law: no fit is needed for that."""

    def see(frame: pd.DataFrame):
        path = tmp_path / "runs.parquet"
        frame.to_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return read_monitors(
            monitored_law[2].model_copy(update={"records": str(path), "records_sha256": digest})
        )

    return see


def test_a_rate_that_lost_a_seed_is_not_the_best_and_the_lost_are_counted(make_ladder, monitors_of_frame):
    frame = monitored_ladder(make_ladder)
    at = best_runs(frame, 65536, 32)
    lost, at_rate = at.index[0], at["lr"].iloc[0]
    frame.loc[lost, ["status", "loss"]] = ["diverged", np.nan]
    frame.loc[at.index[1], "loss"] = 0.1  # which alone would make the rate the best
    failed = frame.index[(frame["tokens"] == 65536) & (frame["lr"] == frame["lr"].max())]
    frame.loc[failed, ["status", "loss"]] = ["failed", np.nan]
    found = monitors_of_frame(frame)
    assert found is not None
    (scale,) = found.scales.index[found.scales["tokens"] == 65536]
    row = found.scales.loc[scale]
    whole = frame[(frame["tokens"] == 65536) & ~frame["lr"].isin([at_rate, frame["lr"].max()])]
    assert row["lr"] == whole.groupby("lr")["loss"].mean().idxmin() != at_rate
    assert found.excluded[scale] == {"diverged": 1, "failed": 2}
    _, rows = scale_table(found)
    assert rows[scale][-1] == "2 failed, 1 diverged"


def test_a_scale_at_which_every_rate_lost_a_seed_is_left_out_and_said(make_ladder, monitors_of_frame):
    frame = monitored_ladder(make_ladder)
    frame.loc[(frame["tokens"] == 32768) & (frame["seed"] == 1), "status"] = "diverged"
    frame.loc[frame["width"] == 64, ["attention_z_max", "logit_max"]] = np.nan
    found = monitors_of_frame(frame)
    assert found is not None
    assert [(sizes["tokens"], sizes["width"], reason) for sizes, reason in found.left_out] == [
        (32768, 32, NO_RATE),
        (131072, 64, NOT_MONITORED),
    ]
    assert sorted(found.scales["tokens"]) == [65536, 131072, 262144]
    names, rows = scale_table(found)
    assert names[:2] == ["width", "tokens"]
    assert [row[-1] for row in rows] == ["none"] * 3 + [f"all: {NO_RATE}", f"all: {NOT_MONITORED}"]


def test_a_seed_without_monitors_or_with_an_infinite_value_is_counted(make_ladder, monitors_of_frame):
    frame = monitored_ladder(make_ladder)
    small, large = best_runs(frame, 32768, 32), best_runs(frame, 262144, 32)
    frame.loc[small.index[0], ["attention_z_max", "logit_max"]] = np.nan
    frame.loc[large.index[0], "logit_max"] = np.nan  # as the record has it for what was not finite
    found = monitors_of_frame(frame)
    assert found is not None
    excluded = {row["tokens"]: found.excluded[i] for i, row in enumerate(found.scales.to_dict("records"))}
    assert excluded[32768] == {NOT_MONITORED: 1}
    assert excluded[262144] == {NOT_FINITE: 1}
    z, logit = found.ratios("tokens")
    assert (z.ends[0].seeds, z.low, z.high) == (1, None, None)
    assert [end.size for end in logit.ends] == [32768, 131072]


def test_runs_that_differ_in_length_are_said_to(monitored_law, make_ladder, monitors_of_frame):
    found = read_monitors(monitored_law[2])
    assert found is not None
    note = str(run_length_note(found, "tokens"))
    assert "64 to 512 steps" in note
    assert "8 to 64 looks" in note
    assert run_length_note(found, "width") is None
    even = monitors_of_frame(monitored_ladder(make_ladder).assign(monitor_looks=8))
    assert even is not None
    note = str(run_length_note(even, "tokens"))
    assert "8 looks" in note
    assert "share" not in note  # looks every 50 steps may be as many, at other shares of each run


def test_every_look_has_a_marker_and_what_is_not_finite_a_cross(make_ladder, monitors_of_frame, tmp_path):
    frame = monitored_ladder(make_ladder)
    steps = metrics_table(frame)
    steps = steps[(steps["step"] == 100) | (steps["quantity"] != "update_rms")]  # one look
    spoiled = (steps["quantity"] == "attention_z") & (steps["layer"] == 0) & (steps["step"] == 100)
    steps.loc[spoiled, "value"] = np.nan  # beside a layer that is finite
    steps.to_parquet(tmp_path / "runs.metrics.parquet")
    found = monitors_of_frame(frame)
    assert found is not None
    figure, rows = monitors_against_steps(found)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for axes in figure.axes[:4]:
        assert all(line.get_marker() not in ("None", "") for line in axes.get_lines())
    crosses = [line for line in panels["attention Z (largest layer)"].get_lines() if line.get_marker() == "x"]
    assert [np.asarray(line.get_xdata()).tolist() for line in crosses] == [[100]] * 5
    z = [row["value"] for row in rows if row["quantity"] == "attention_z" and row["step"] == 100]
    assert z == [np.inf] * 5
    (one,) = {np.size(line.get_xdata()) for line in panels["update RMS, hidden matrices"].get_lines()}
    assert one == 1


def test_the_picture_against_a_size_has_the_spread_over_seeds(monitored_law):
    found = read_monitors(monitored_law[2])
    assert found is not None
    _, rows = monitors_against_size(found, "tokens")
    (row,) = [r for r in rows if r["quantity"] == "attention_z_max" and r["tokens"] == 32768]
    assert (row["low"], row["value"], row["high"]) == (30, 30.5, 31)
    assert (row["seeds"], row["fewest_looks"], row["most_looks"]) == (2, 8, 8)


@pytest.mark.parametrize("same", [9.15527e-05, 0.1])
def test_seeds_that_agree_exactly_have_their_value_as_mean_and_a_picture(
    same, make_ladder, monitors_of_frame
):
    frame = monitored_ladder(make_ladder)
    third = frame[frame["seed"] == 1].assign(seed=2, run_id="third" + frame["run_id"])
    found = monitors_of_frame(pd.concat([frame, third], ignore_index=True).assign(outlier_share=same))
    assert found is not None
    for ratio in found.ratios("tokens"):
        if ratio.quantity == "outlier_share":
            assert {(end.seeds, end.low, end.mean, end.high) for end in ratio.ends} == {(3, same, same, same)}
    _, rows = monitors_against_size(found, "tokens")
    assert {row["value"] for row in rows if row["quantity"] == "outlier_share"} == {same}


def test_steps_are_those_of_the_best_run_its_largest_layer_and_the_hidden_role(monitored_law):
    _, frame, law = monitored_law
    found = read_monitors(law)
    assert found is not None
    for scale, row in enumerate(found.scales.to_dict("records")):
        own = found.steps[found.steps["scale"] == scale]
        run = int(best_runs(frame, row["tokens"], row["width"])["loss"].to_numpy().argmin())
        run = int(best_runs(frame, row["tokens"], row["width"]).index.to_numpy()[run])
        assert own[own["quantity"] == "attention_z"]["value"].tolist() == [50 + run, 100 + run]
        assert own[own["quantity"] == "update_rms"]["value"].tolist() == [1e-3, 1e-3]
        assert own[own["quantity"] == "outlier_share"]["value"].tolist() == [0.25, 0.25]


def test_the_report_draws_and_says_it(monitored_law, tmp_path):
    write_report(monitored_law[2], tmp_path, "hyperp-law report")
    text = (tmp_path / "report.md").read_text()
    section = text.split("## Stability\n")[1].split("\n## ")[0]
    for picture in ("stability-tokens", "stability-width", "stability-steps"):
        assert f"]({picture}.png)" in section
        for suffix in ("png", "svg", "csv"):
            assert (tmp_path / f"{picture}.{suffix}").is_file()
    ends = r"32,768: 30.5 \(30 to 31\) \| 262,144: 11.11 \(10.61 to 11.61\)"
    assert re.search(rf"\| attention Z \| {ends} \| 0.364 \| \S+ to \S+ \| .* \| 2, 2 \| 8, 64 \|\n", section)
    assert len(re.findall(r"^\| (attention Z|logit) \|", section, re.MULTILINE)) == 4
    assert "8 to 64 looks" in section
    drawn = pd.read_csv(tmp_path / "stability-tokens.csv")
    z = drawn[drawn["quantity"] == "attention_z_max"]
    assert z["tokens"].tolist() == list(TOKENS)
    assert z["value"].iloc[0] == pytest.approx(30.5, rel=1e-12)
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.startswith("#") and index:
            assert lines[index - 1] == lines[index + 1] == "", line


def test_without_the_table_by_step_the_summaries_are_drawn_alone(monitored_law, tmp_path):
    folder, _, law = monitored_law
    (folder / "runs.metrics.parquet").rename(folder / "aside")
    try:
        write_report(law, tmp_path, "hyperp-law report")
    finally:
        (folder / "aside").rename(folder / "runs.metrics.parquet")
    assert (tmp_path / "stability-tokens.png").is_file()
    assert not (tmp_path / "stability-steps.png").exists()


def test_tables_that_changed_or_have_no_monitors_leave_the_report_as_it_was(make_ladder, tmp_path):
    frame = monitored_ladder(make_ladder)
    path = tmp_path / "runs.parquet"
    frame.to_parquet(path)
    law = fit_law(read_runs(path), ["tokens"])
    assert read_monitors(law) is not None
    frame.assign(logit_max=1.0).to_parquet(path)
    assert read_monitors(law) is None
    plain = make_ladder(tokens=TOKENS, noise=1e-4)
    plain.to_parquet(path)
    law = fit_law(read_runs(path), ["tokens"])
    assert read_monitors(law) is None
    write_report(law, tmp_path / "report", "hyperp-law report")
    assert "Stability" not in (tmp_path / "report" / "report.md").read_text()
    path.unlink()
    assert read_monitors(law) is None
