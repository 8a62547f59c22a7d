"""Coordinate check: slopes that were put in come out, with their intervals, verdicts and refusals."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from hyperp.analysis.cli.main import app
from hyperp.analysis.diagnostics.coordinates import (
    WidthSeries,
    coordinate_check,
    read_coordinates,
    slope_verdict,
)
from hyperp.analysis.report.figures.coordinates import RED, coordinate_panels
from hyperp.analysis.report.text.coordinates import last_slope, steepest_slope
from hyperp.analysis.table.validate import read_runs

WIDTHS, SEEDS = (32, 64, 128, 256), (0, 1, 2, 3)
TRUE = {"attention": 0.0, "mlp": 0.5, "residual": 1.0, "logits": -0.5}


def run_coordinates(*arguments):
    return CliRunner().invoke(app, ["coordinates", *(str(one) for one in arguments)])


def write_synthetic_runs(folder: Path, widths=WIDTHS, seeds=SEEDS, noise=0.02, depth=2) -> Path:
    """One series whose sizes are w^TRUE after one step, with changes w^(TRUE + 0.3), times (1 + step)."""
    rng, runs, rows = np.random.default_rng(0), [], []
    for width in widths:
        for seed in seeds:
            run_id = f"{width:08d}{seed:04d}"
            sizes = {"width": width, "depth": depth, "seed": seed, "lr": 0.1 / width, "base_lr": 0.1}
            context = {"optimizer": "adamw", "parametrization": "mup", "status": "finished", "loss": 3.0}
            runs.append({"run_id": run_id} | sizes | context)
            for quantity, exponent in TRUE.items():
                for step in (0, 1, 4):
                    for layer in [None] if quantity == "logits" else range(depth):
                        jitter = np.exp(noise * rng.normal(size=2))
                        # Only the last block follows the law.
                        power = exponent if layer in (None, depth - 1) else 3.0
                        size, change = (width**power, step * width ** (power + 0.3)) * jitter
                        row = {"run_id": run_id, "step": step, "quantity": quantity, "layer": layer}
                        rows.append(row | {"rms": (1 + step) * size, "change_rms": change})
    folder.mkdir(exist_ok=True)
    pd.DataFrame(runs).to_parquet(folder / "runs.parquet")
    pd.DataFrame(rows).astype({"layer": "Int64"}).to_parquet(folder / "runs.coordinates.parquet")
    return folder / "runs.parquet"


def check_series(path: Path, **options) -> list[WidthSeries]:
    runs = read_runs(path, loss=False)
    return coordinate_check(runs, read_coordinates(runs), **options)


def edit_table(path: Path, change) -> None:
    change(frame := pd.read_parquet(path))
    frame.to_parquet(path)


def test_known_exponents_are_recovered_with_their_verdicts(tmp_path):
    (series,) = check_series(write_synthetic_runs(tmp_path))
    assert series.widths == list(WIDTHS)
    for kind in series.kinds:
        for slope in kind.slopes:
            true = TRUE[kind.quantity] + (0.3 if slope.measure == "change" else 0.0)
            assert slope.value == pytest.approx(true, abs=0.03)
            assert slope.low is not None
            assert slope.high is not None
            assert 0 < slope.high - slope.low < 0.15
            assert slope.verdict == ("flat" if true == 0 else "grows" if true > 0 else "shrinks")
        assert [s.step for s in kind.slopes] == [0, 1, 4, 1, 4]  # no change at step 0


def test_the_interval_is_that_of_students_t_over_the_slopes_of_seeds(tmp_path):
    path = write_synthetic_runs(tmp_path, noise=0.2)
    (series,) = check_series(path, level=0.9)
    long = read_coordinates(read_runs(path, loss=False)).query(
        "quantity == 'mlp' and layer == 1 and step == 4"
    )
    each = []
    for seed in SEEDS:
        one = long[long["run_id"].str.endswith(f"{seed:04d}")]
        each.append(np.polyfit(np.log(WIDTHS), np.log(one["change_rms"].to_numpy()), 1)[0])
    (slope,) = [s for s in series.kinds[1].slopes if (s.measure, s.step) == ("change", 4)]
    expected = ttest_1samp(each, 0.0).confidence_interval(0.9)
    found = [value for value in (slope.value, slope.low, slope.high) if value is not None]
    np.testing.assert_allclose(found, (np.mean(each), *expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.09, "flat"),
        (0.01, 0.09, "flat"),
        (0.11, 0.3, "grows"),
        (-0.4, -0.11, "shrinks"),
        (0.05, 0.15, "unclear"),
        (-0.2, 0.2, "unclear"),
        (None, None, "unclear"),
    ],
)
def test_a_verdict_takes_the_whole_interval(low, high, expected):
    assert slope_verdict(low, high, 0.1) == expected


def test_a_seed_without_every_width_is_in_no_slope_and_the_left_out_are_counted(tmp_path):
    path = write_synthetic_runs(tmp_path)

    def diverge(frame):
        frame.loc[(frame["width"] == 256) & (frame["seed"] == 0), "status"] = "diverged"

    edit_table(path, diverge)
    (series,) = check_series(path)
    assert series.left_out == {"diverged": 1}
    assert {slope.seeds for kind in series.kinds for slope in kind.slopes} == {3}
    assert {slope.text for kind in series.kinds for slope in kind.slopes} == {"diverged at width 256"}
    at = {(s.width, s.seeds) for kind in series.kinds for s in kind.sizes}
    assert at == {(32, 4), (64, 4), (128, 4), (256, 3)}


def test_one_seed_gives_slopes_and_no_verdict(tmp_path):
    (series,) = check_series(write_synthetic_runs(tmp_path, seeds=(0,)))
    slopes = [slope for kind in series.kinds for slope in kind.slopes]
    assert all(s.value is not None and s.low is None and s.verdict == "unclear" for s in slopes)
    assert "unknown, one seed" in run_coordinates(tmp_path).stdout


def test_what_is_not_finite_is_missing(tmp_path):
    path = write_synthetic_runs(tmp_path)

    def spoil(frame):
        frame.loc[(frame["run_id"] == f"{256:08d}0000") & (frame["step"] == 4), "change_rms"] = np.nan

    edit_table(tmp_path / "runs.coordinates.parquet", spoil)
    (series,) = check_series(path)
    assert {(s.measure, s.step): s.seeds for s in series.kinds[0].slopes} == {
        ("size", 0): 4,
        ("size", 1): 4,
        ("size", 4): 4,
        ("change", 1): 4,
        ("change", 4): 3,
    }
    words = {(s.measure, s.step): s.text for s in series.kinds[0].slopes}
    assert words.pop(("change", 4)) == "diverged at width 256"
    assert set(words.values()) <= {"flat", "grows"}


def test_one_width_is_refused_with_what_to_run(tmp_path):
    done = run_coordinates(write_synthetic_runs(tmp_path, widths=(32,)), "-o", tmp_path / "out")
    assert done.exit_code == 3
    first, *more = done.stderr.splitlines()
    assert "refused: width has one value, 32" in first
    assert [line.split()[2:4] for line in more] == [["depth=2", "base_lr=0.1"]] * 2
    assert ["width=64" in more[0], "width=128" in more[1]] == [True, True]
    assert not (tmp_path / "out").exists()


def fail_optimizer(optimizer):
    def change(frame):
        frame.loc[frame["optimizer"] == optimizer, "status"] = "failed"

    return change


def diverge_rows(rows):
    def change(frame):
        frame.loc[rows(frame), "status"] = "diverged"

    return change


def test_a_width_at_which_every_seed_diverged_is_no_flat_series(tmp_path):
    path = write_synthetic_runs(tmp_path)
    edit_table(path, diverge_rows(lambda frame: frame["width"] == 256))
    (series,) = check_series(path)
    assert (series.widths, series.diverged) == ([32, 64, 128], [256])
    (attention,) = [kind for kind in series.kinds if kind.quantity == "attention"]
    sizes = [slope for slope in attention.slopes if slope.measure == "size"]
    assert all(s.seeds == 4 and s.verdict == "diverged" and abs(s.value or 1) < 0.1 for s in sizes)
    done = run_coordinates(path, "-o", tmp_path / "out")
    assert done.stdout.count("diverged at width 256") == 8
    assert "flat" not in done.stdout.split("\n", 1)[1]
    figure, _ = coordinate_panels([series])
    assert all("diverged at width 256" in axes.texts[0].get_text() for axes in figure.axes)
    lines = [line for line in figure.axes[0].get_lines() if line.get_color() == RED]
    assert [np.asarray(line.get_xdata()).tolist() for line in lines] == [[256, 256]]
    assert 256 in figure.axes[0].get_xticks()
    slopes = pd.read_csv(tmp_path / "out" / "slopes.csv")
    assert set(slopes["verdict"]) == {"diverged"}
    assert set(slopes["diverged"]) == {256}


@pytest.mark.parametrize("name", ["aaa", "sso"])  # before the other series and after it
def test_a_series_that_diverged_at_every_width_has_its_row_and_its_panels(name, tmp_path):
    path = write_synthetic_runs(tmp_path)
    frames = [pd.read_parquet(tmp_path / name) for name in ("runs.parquet", "runs.coordinates.parquet")]
    other = frames[0].assign(run_id="b" + frames[0]["run_id"].str[1:], optimizer=name, status="diverged")
    pd.concat([frames[0], other]).to_parquet(path)
    long = frames[1].assign(run_id="b" + frames[1]["run_id"].str[1:])
    pd.concat([frames[1], long]).to_parquet(tmp_path / "runs.coordinates.parquet")
    done = run_coordinates(path, "-o", tmp_path / "out")
    lines = [line.split() for line in done.stdout.splitlines() if name in line.split()]
    assert len(lines) == 1
    assert " ".join(lines[0]).count("diverged at width 32, 64, 128, 256") == 2
    figure, _ = coordinate_panels(check_series(path))
    assert len(figure.axes) == 8
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["step 0, itself", "step 1", "step 4"]
    slopes = pd.read_csv(tmp_path / "out" / "slopes.csv")
    assert len(slopes) == 1 + 5 * len(TRUE)
    (row,) = slopes[slopes["optimizer"] == name].to_dict("records")
    assert (row["parametrization"], row["base_lr"], row["quantity"], row["seeds"]) == ("mup", 0.1, "all", 0)
    assert (row["verdict"], row["diverged"]) == ("diverged", "32 64 128 256")
    assert all(pd.isna(row[empty]) for empty in ("layer", "measure", "step", "value", "low", "high"))


def test_another_step_that_says_otherwise_is_named_beside_the_last(tmp_path):
    path = write_synthetic_runs(tmp_path)
    long = tmp_path / "runs.coordinates.parquet"

    def tilt(frame):  # logits shrink at step 1 alone, and by more than they do at the last step
        width = frame["run_id"].str[:8].astype(int)
        own = frame["quantity"] == "logits"
        frame.loc[own, "change_rms"] *= width ** np.where(frame["step"] == 1, -0.6, 0.2)

    edit_table(long, tilt)
    (series,) = check_series(path)
    kinds = {kind.quantity: kind for kind in series.kinds}
    found = steepest_slope(kinds["logits"], "change")
    assert found is not None
    assert (found.step, found.verdict) == (1, "shrinks")
    end = last_slope(kinds["logits"], "change")
    assert end is not None
    assert (end.step, end.verdict) == (4, "flat")
    assert steepest_slope(kinds["mlp"], "change") is None
    assert re.search(r"flat; step 1: -0\.[78]\d shrinks", run_coordinates(path).stdout)
    figure, _ = coordinate_panels([series])
    assert "step 1: -0." in figure.axes[3].texts[0].get_text()
    assert "step" not in figure.axes[1].texts[0].get_text()


def test_runs_of_which_none_finished_are_refused(tmp_path):
    path = write_synthetic_runs(tmp_path)
    edit_table(path, fail_optimizer("adamw"))
    done = run_coordinates(path)
    assert done.exit_code == 3
    assert "refused: no finished run has activations" in done.stderr


def test_a_series_that_failed_is_named_beside_the_others(tmp_path):
    path = write_synthetic_runs(tmp_path)
    frames = [pd.read_parquet(tmp_path / name) for name in ("runs.parquet", "runs.coordinates.parquet")]
    for frame, name in zip(frames, ("runs.parquet", "runs.coordinates.parquet"), strict=True):
        other = frame.assign(run_id="b" + frame["run_id"].str[1:])
        if name == "runs.parquet":
            other = other.assign(optimizer="sso")
        pd.concat([frame, other]).to_parquet(tmp_path / name)
    edit_table(path, fail_optimizer("sso"))
    done = run_coordinates(path)
    assert done.exit_code == 0, done.output
    assert "mup, sso: left out 16 runs, failed" in done.stdout
    found = check_series(path)
    assert [len(one.kinds) for one in found] == [4, 0]
    figure, rows = coordinate_panels(found)
    assert len(figure.axes) == 4
    assert {row["optimizer"] for row in rows} == {"adamw"}


@pytest.mark.parametrize(
    ("spoil", "words", "text"),
    [
        (lambda d: (d / "runs.coordinates.parquet").unlink(), (), "runs.coordinates.parquet"),
        (
            lambda d: edit_table(d / "runs.coordinates.parquet", lambda f: f.pop("rms")),
            (),
            "column rms",
        ),
        (lambda d: edit_table(d / "runs.parquet", lambda f: f.pop("run_id")), (), "column run_id"),
        (lambda d: edit_table(d / "runs.parquet", lambda f: f.pop("width")), (), "column width"),
        (lambda d: None, ("--tolerance", "0"), r"tolerance must .* got 0"),
        (lambda d: None, ("--where", "optimizer=sso"), "optimizer=sso"),
        (lambda d: (d / "out").write_text(""), ("-o", "out"), "out must be a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, spoil, words, text):
    write_synthetic_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path)
    done = run_coordinates("runs.parquet", *words)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "error: " in line
    assert re.search(text, line)


def test_help_teaches_with_an_example():
    text = " ".join(run_coordinates("--help").stdout.split())
    assert "Example: hyperp-law coordinates runs/coord_check" in text
