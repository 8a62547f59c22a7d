"""Every picture comes as PNG, SVG and CSV, and the CSV holds the law's own numbers."""

import csv
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from hyperp.analysis import fit_law
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.transfer import transfer_of_law
from hyperp.analysis.report.figures import style
from hyperp.analysis.report.figures.basins import basin_curves, transfer_panels
from hyperp.analysis.report.figures.diagnosis import (
    basin_collapse,
    fewer_rates_panels,
    leave_one_out_bars,
    request_of,
)
from hyperp.analysis.report.figures.law import optimum_against, plot_optimum
from hyperp.analysis.report.figures.style import save_figure
from hyperp.analysis.report.figures.uncertainty import PARTS, interval_sources
from hyperp.analysis.report.text.transfer import penalty_columns, transfer_columns
from hyperp.analysis.table.validate import Runs


@pytest.fixture(scope="module")
def law(make_ladder) -> Law:
    frame = pd.concat(
        [
            make_ladder(seed_shift=0.05),
            make_ladder(tokens=(131072,), covariates={"width": 64}, seed_shift=0.05, rng_seed=1),
            make_ladder(tokens=(2**20,), octaves=(-5, -1)),  # at the edge: one-sided
        ]
    )
    return fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"])


def _save_and_read(figure_and_rows, folder, name):
    figure, rows = figure_and_rows
    paths = save_figure(figure, rows, folder, name)
    assert [p.suffix for p in paths] == [".png", ".svg", ".csv"]
    assert all(p.stat().st_size > 200 for p in paths)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in paths)
    with paths[2].open() as stream:
        return list(csv.DictReader(stream))


def test_basins_hold_every_point_and_mark_the_excluded(law, tmp_path):
    figure, rows = basin_curves(law)
    faces = {line.get_label(): line.get_markerfacecolor() for line in figure.axes[0].lines}
    assert faces["width 64, 131k tokens (excluded)"] == "none"
    assert faces["1.05M tokens (one-sided)"] != "none"
    assert faces["65.5k tokens"] != "none"
    saved = _save_and_read((figure, rows), tmp_path, "basins")
    points = [r for r in saved if r["kind"] == "point"]
    assert len(points) == sum(len(s.points) for s in law.slices)
    optima = sorted(float(r["lr"]) for r in saved if r["kind"] == "optimum")
    used = sorted(s.optimum.lr for s in law.slices if s.used and s.optimum)
    np.testing.assert_allclose(optima, used, rtol=1e-12, atol=0)


def test_optimum_against_tokens_holds_fit_band_and_published_slope(law, tmp_path):
    saved = _save_and_read(optimum_against(law, "tokens", {"tokens": 2**21}), tmp_path, "optimum")
    for row in (r for r in saved if r["kind"] == "fit"):
        numbers = [float(row[name]) for name in ("lr", "low", "high")]
        np.testing.assert_allclose(
            numbers, law.interval_at({"tokens": float(row["tokens"])}), rtol=1e-9, atol=0
        )
    published = [(float(r["tokens"]), float(r["lr"])) for r in saved if r["kind"] == "published"]
    (x0, y0), (x1, y1) = published
    np.testing.assert_allclose(np.log(y1 / y0) / np.log(x1 / x0), -0.32, rtol=1e-9, atol=0)
    (star,) = [r for r in saved if r["kind"] == "recommended"]
    assert float(star["tokens"]) == 2**21


def test_other_covariates_are_moved_along_the_fit(make_ladder, tmp_path):
    frames = [
        make_ladder(
            tokens=(32768, 65536, 131072),
            log2_at_64k=-5 + 0.5 * k,
            covariates={"batch_tokens": 512 * 2**k},
            noise=1e-5,
            skew=0,
        )
        for k in range(3)
    ]
    law = fit_law(Runs(pd.concat(frames), "runs.parquet", "0" * 64), ["tokens", "batch_tokens"])
    saved = _save_and_read(optimum_against(law, "tokens"), tmp_path, "optimum")
    for row in (r for r in saved if r["kind"] == "slice"):
        at = {"tokens": float(row["tokens"]), "batch_tokens": 1024.0}
        np.testing.assert_allclose(float(row["lr"]), law.interval_at(at)[0], rtol=0.01, atol=0)


def test_leave_one_out_bars_hold_the_laws_own_errors(law, tmp_path):
    saved = _save_and_read(leave_one_out_bars(law), tmp_path, "left")
    ours = [100 * (o.predicted / o.lr - 1) for o in law.leave_one_out]
    np.testing.assert_allclose([float(r["percent"]) for r in saved], ours, rtol=1e-9, atol=1e-9)


def test_all_slices_collapse_on_the_basin_of_the_law(law, tmp_path):
    saved = _save_and_read(basin_collapse(law), tmp_path, "collapse")
    runs = [r for r in saved if r["kind"] == "run" and abs(float(r["octaves"])) < 1]
    off = [float(r["percent"]) - 100 * law.basin.penalty(float(r["octaves"]) * np.log(2)) for r in runs]
    assert len({r["slice"] for r in runs}) == 5
    assert np.abs(off).max() < 0.6  # noise of 0.2% and seeds that move the optimum


def test_more_rates_per_slice_end_at_the_law(law, tmp_path):
    saved = _save_and_read(fewer_rates_panels(law), tmp_path, "rates")
    assert [int(r["rates"]) for r in saved] == list(range(3, 10))
    np.testing.assert_allclose(float(saved[-1]["value"]), law.exponents["tokens"].value, rtol=0, atol=0.02)


def test_a_one_sided_slice_is_an_arrow_from_its_known_end(law, tmp_path):
    (one,) = [s for s in law.slices if s.one_sided]
    figure, rows = optimum_against(law, "tokens")
    (mark,) = [r for r in rows if r["kind"] == "one-sided"]
    assert (mark["state"], mark["tokens"], mark["low"]) == ("edge_low", 2**20, None)
    assert mark["high"] == one.optimum.high
    (arrow,) = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    (_, end), (_, tip) = arrow.xy, arrow.xyann
    end, tip = max(end, tip), min(end, tip)
    known = float(str(mark["high"]))
    np.testing.assert_allclose([end, tip], [known, known / 2**0.5], rtol=1e-9, atol=0)
    assert not [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    _save_and_read((figure, rows), tmp_path, "optimum")


def test_an_excluded_censored_slice_is_a_hollow_mark_at_its_last_rate(make_ladder):
    frame = pd.concat([make_ladder(), make_ladder(tokens=(2**20,), octaves=(-5, -1))])
    regressed = fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"], method="two-stage")
    figure, rows = optimum_against(regressed, "tokens")
    (mark,) = [r for r in rows if str(r["kind"]).startswith("edge")]
    assert (mark["kind"], mark["tokens"], mark["lr"]) == ("edge_low", 2**20, 2.0**-5)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1


def test_a_basin_is_drawn_with_its_skew_and_the_curvature_of_its_size(law):
    rows = basin_curves(law)[1]
    label = "65.5k tokens"
    (one,) = [s for s in law.slices if s.used and s.covariates["tokens"] == 65536]
    fit = [r for r in rows if r["kind"] == "fit" and r["slice"] == label]
    here = law.basin.at(one.covariates)
    expected = [one.optimum.loss * (1 + here.penalty(np.log(r["lr"] / one.optimum.lr))) for r in fit]
    np.testing.assert_allclose([float(str(r["loss"])) for r in fit], expected, rtol=1e-12, atol=0)
    assert law.basin.skew is not None
    assert len(fit) > 50


def test_the_parts_of_the_variance_sum_to_one_and_the_form_takes_over_at_the_mark(law, tmp_path):
    saved = _save_and_read(interval_sources(law), tmp_path, "interval-width")
    parts = np.array([[float(r[n]) for n in PARTS] for r in saved])
    np.testing.assert_allclose(parts.sum(axis=1), 1.0, rtol=1e-9, atol=0)
    factors = np.array([float(r["factor"]) for r in saved])
    assert (factors[0], round(factors[-1])) == (1.0, 100)
    limit = float(saved[0]["form_decides_beyond"])
    bend = parts[:, PARTS.index("bend")]
    assert (bend[factors < 0.9 * limit] < 0.5).all()
    assert (bend[factors > 1.1 * limit] > 0.5).all()
    widths = [float(r["width"]) for r in saved]
    assert widths == sorted(widths)
    _, low, high = law.interval_at({"tokens": float(saved[-1]["size"])})
    np.testing.assert_allclose(widths[-1], high / low, rtol=1e-9, atol=0)


def test_fewer_rates_are_fitted_with_the_priors_of_the_law(make_ladder):
    frame = Runs(make_ladder(), "runs.parquet", "0" * 64)
    fitted = fit_law(frame, ["tokens"], prior={"tokens": (-0.5, 0.1)}, tau_sd=0.3, bend_sd=0.0)
    request = request_of(fitted)
    assert (request.tau_sd, request.bend_sd) == (0.3, 0.0)
    assert request.prior == {"tokens": (-0.5, 0.1)}
    assert request.hierarchical


def test_transfer_has_a_panel_for_each_context(law, tmp_path):
    answers = transfer_of_law(law, "width")
    figure, rows = transfer_panels(law.slices, answers)
    assert len(figure.axes) == len(answers) == 1
    saved = _save_and_read((figure, rows), tmp_path, "transfer")
    assert {r["slice"] for r in saved} == {"width 32", "width 64"}
    assert {r["optimizer"] for r in saved} == {"muonh"}


def test_an_interval_is_named_after_its_own_level(law):
    answers = transfer_of_law(law.model_copy(update={"level": 0.8}), "width")
    figure, _ = transfer_panels(law.slices, answers)
    assert any("80% interval" in text.get_text() for text in figure.axes[0].texts)
    assert "80% interval" in transfer_columns(answers)
    assert "80% interval" in penalty_columns(answers)


def test_figures_are_drawn_into_given_axes_and_leave_their_figure_alone(law):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_optimum(law, "tokens", ax=left) is left
    _, rows = optimum_against(law, "tokens")
    assert len(left.lines) > len([row for row in rows if row["kind"] == "slice"])
    assert basin_curves(law, right)[0] is figure
    assert right.get_xlabel()
    assert (figure.axes, figure.texts, figure.get_supxlabel()) == ([left, right], [], "")


def test_an_unknown_covariate_is_named_with_those_that_there_are(law):
    with pytest.raises(ValueError, match=r"covariate must be one of tokens, got depth"):
        plot_optimum(law, "depth")


def test_drawing_leaves_the_users_backend_alone():
    code = (
        "import sys, matplotlib; matplotlib.use('svg')\n"
        "import hyperp.analysis.report.report, hyperp.analysis.report.figures.loss\n"
        "import hyperp.analysis.report.figures.coordinates\n"
        "from hyperp.analysis.report.figures.style import figure_for\n"
        "figure_for(None, (1, 1))\n"
        "assert matplotlib.get_backend() == 'svg', matplotlib.get_backend()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_law_gives_the_same_svg(law, tmp_path):
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_figure(*basin_curves(law), tmp_path / name, "basins")
        texts.append((tmp_path / name / "basins.svg").read_bytes())
    assert texts[0] == texts[1]


def test_series_differ_in_marker_and_line_not_only_in_colour():
    assert len(set(style.MARKERS)) == len(set(map(str, style.LINES))) == len(set(style.COLOURS)) == 7


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512"), (131072, "131k"), (5.2e5, "520k"), (1.664e11, "166B")]
)
def test_sizes_read_well(value, text):
    assert style.size_text(value) == text
