"""The report on stability: which runs it takes, what it draws, and the ratios it states."""

import re

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.fit import fit_law
from hyperp.analysis.monitors import monitors_of
from hyperp.analysis.records import read_runs
from hyperp.analysis.report import write_report

TOKENS = (32768, 65536, 131072, 262144)


def monitored(make_ladder) -> pd.DataFrame:
    """A ladder in tokens and a second width at one of them; Z falls and logits grow with tokens."""
    wide = make_ladder(tokens=(131072,), covariates={"width": 64}, rng_seed=1, seeds=2)
    frame = pd.concat([make_ladder(tokens=TOKENS, noise=1e-4), wide], ignore_index=True)
    frame["run_id"] = [f"run{i}" for i in range(len(frame))]
    frame["attention_z_max"] = 30 * (frame["tokens"] / 32768) ** -0.5 + frame["seed"]
    frame["logit_max"] = 10 * (frame["tokens"] / 32768) * frame["width"] / 32
    frame.loc[frame["lr"] == frame["lr"].max(), "logit_max"] = 1e6  # of a rate that is not the best
    frame["router_z_max"] = np.nan
    return frame


def by_step(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for number, run_id in enumerate(frame["run_id"]):
        for step in (50, 100):
            places = [("attention_z", 0, None, 3.0), ("attention_z", 1, None, step + number)]
            places += [("update_rms", None, "hidden", 1e-3), ("update_rms", None, "vector", 7.0)]
            places += [("residual_outliers", 0, None, 0.0), ("mlp_output_outliers", 0, None, 0.25)]
            rows += [(run_id, step, *place) for place in places]
    return pd.DataFrame(rows, columns=["run_id", "step", "quantity", "layer", "role", "value"])


@pytest.fixture(scope="module")
def made(make_ladder, tmp_path_factory):
    """A folder with both tables, their frame, and the law of width 32."""
    folder = tmp_path_factory.mktemp("monitored")
    frame = monitored(make_ladder)
    frame.to_parquet(folder / "runs.parquet")
    by_step(frame).to_parquet(folder / "runs.metrics.parquet")
    return folder, frame, fit_law(read_runs(folder / "runs.parquet"), ["tokens"])


def best(frame: pd.DataFrame, tokens: int, width: int) -> pd.DataFrame:
    own = frame[(frame["tokens"] == tokens) & (frame["width"] == width)]
    return own[own["lr"] == own.groupby("lr")["loss"].mean().idxmin()]


def test_every_scale_counts_with_the_runs_at_its_best_rate(made):
    _, frame, law = made
    found = monitors_of(law)
    assert found is not None
    assert len(found.scales) == 5
    for row in found.scales.to_dict("records"):
        runs = best(frame, row["tokens"], row["width"])
        assert row["lr"] == runs["lr"].iloc[0]
        assert row["seeds"] == 2
        assert row["attention_z_max"] == pytest.approx(runs["attention_z_max"].mean(), rel=1e-12)
        assert row["logit_max"] < 1e6
    assert found.quantities == ["attention_z_max", "logit_max"]
    assert found.axes == ["width", "tokens"]


def test_a_ratio_is_the_largest_size_over_the_smallest_with_the_others_held(made):
    found = monitors_of(made[2])
    assert found is not None
    ratios = {(r.quantity, r.axis): r for r in found.ratios("tokens") + found.ratios("width")}
    assert set(ratios) == {(q, a) for q in ("attention_z_max", "logit_max") for a in ("tokens", "width")}
    z, logit = ratios["attention_z_max", "tokens"], ratios["logit_max", "width"]
    assert z.sizes == (32768, 262144)
    assert z.values == pytest.approx((30.5, 30 / 8**0.5 + 0.5), rel=1e-12)
    assert z.sentence() == "Largest attention Z: 30.5 at tokens 32,768, 11.11 at 262,144, ratio 0.364"
    assert logit.values[1] / logit.values[0] == pytest.approx(2.0, rel=1e-12)


def test_steps_are_those_of_the_best_run_its_largest_layer_and_the_hidden_role(made):
    _, frame, law = made
    found = monitors_of(law)
    assert found is not None
    for scale, row in enumerate(found.scales.to_dict("records")):
        own = found.steps[found.steps["scale"] == scale]
        run = int(best(frame, row["tokens"], row["width"])["loss"].to_numpy().argmin())
        run = int(best(frame, row["tokens"], row["width"]).index.to_numpy()[run])
        assert own[own["quantity"] == "attention_z"]["value"].tolist() == [50 + run, 100 + run]
        assert own[own["quantity"] == "update_rms"]["value"].tolist() == [1e-3, 1e-3]
        assert own[own["quantity"] == "outlier_share"]["value"].tolist() == [0.25, 0.25]


def test_the_report_draws_and_says_it(made, tmp_path):
    write_report(made[2], tmp_path, "hyperp-law report")
    text = (tmp_path / "report.md").read_text()
    section = text.split("## Stability\n")[1].split("\n## ")[0]
    for picture in ("stability-tokens", "stability-width", "stability-steps"):
        assert f"]({picture}.png)" in section
        for suffix in ("png", "svg", "csv"):
            assert (tmp_path / f"{picture}.{suffix}").is_file()
    assert "- Largest attention Z: 30.5 at tokens 32,768, 11.11 at 262,144, ratio 0.364.\n" in section
    assert len(re.findall(r"^- ", section, re.MULTILINE)) == 4
    drawn = pd.read_csv(tmp_path / "stability-tokens.csv")
    z = drawn[drawn["quantity"] == "attention_z_max"]
    assert z["tokens"].tolist() == list(TOKENS)
    assert z["value"].iloc[0] == pytest.approx(30.5, rel=1e-12)
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.startswith("#") and index:
            assert lines[index - 1] == lines[index + 1] == "", line


def test_without_the_table_by_step_the_summaries_are_drawn_alone(made, tmp_path):
    folder, _, law = made
    (folder / "runs.metrics.parquet").rename(folder / "aside")
    try:
        write_report(law, tmp_path, "hyperp-law report")
    finally:
        (folder / "aside").rename(folder / "runs.metrics.parquet")
    assert (tmp_path / "stability-tokens.png").is_file()
    assert not (tmp_path / "stability-steps.png").exists()


def test_tables_that_changed_or_have_no_monitors_leave_the_report_as_it_was(make_ladder, tmp_path):
    frame = monitored(make_ladder)
    path = tmp_path / "runs.parquet"
    frame.to_parquet(path)
    law = fit_law(read_runs(path), ["tokens"])
    assert monitors_of(law) is not None
    frame.assign(logit_max=1.0).to_parquet(path)
    assert monitors_of(law) is None
    plain = make_ladder(tokens=TOKENS, noise=1e-4)
    plain.to_parquet(path)
    law = fit_law(read_runs(path), ["tokens"])
    assert monitors_of(law) is None
    write_report(law, tmp_path / "report", "hyperp-law report")
    assert "Stability" not in (tmp_path / "report" / "report.md").read_text()
    path.unlink()
    assert monitors_of(law) is None
