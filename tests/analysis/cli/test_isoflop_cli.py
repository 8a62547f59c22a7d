"""The command isoflop: what it prints, writes, draws and refuses, and its exit codes."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.analysis.law_command import one_line, run, says
from tests.analysis.queries.test_isoflop import BUDGETS, best_size, profiles


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Profiles under a foreign name, beside those of another study whose best sizes are twice as large."""
    other = profiles(seed=1).assign(study="b")
    other["parameters"] *= 2
    frame = pd.concat([profiles().assign(study="a"), other], ignore_index=True)
    path = tmp_path_factory.mktemp("profiles") / "profiles.csv"
    frame.rename(columns={"parameters": "N"}).to_csv(path, index=False)
    return path


MAP = ("--map", "parameters=N", "--where", "study=a", "--bootstrap", "100")


def test_isoflop_prints_writes_and_draws(runs, tmp_path):
    out, plots = tmp_path / "isoflop.json", tmp_path / "plots"
    result = run("isoflop", runs, *MAP, "--budget", "1e21", "-o", out, "--plots", plots)
    assert result.exit_code == 0, result.output
    for text in (
        "at 1e+21 FLOPs (C = 6 N D) ... prediction intervals",
        "5 budgets from the column budget; 5 used, 1e+18 to 1e+20 FLOPs; of 45 rows, dropped: none",
        "profiles ... loss surface",
        "two agree",
        "bracketed",
    ):
        assert says(result.stdout.replace("\n", " "), text), text
    assert says(result.stderr, "warning: the budget lies 10 times outside")
    answer = json.loads(out.read_text())
    size = answer["by_profiles"]["parameters"]
    assert size["low"] < best_size(1e21) < size["high"]
    assert {p.name for p in plots.iterdir()} == {f"isoflop.{s}" for s in ("png", "svg", "csv")}
    with (plots / "isoflop.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    optima = [float(r["parameters"]) for r in rows if r["kind"] == "optimum"]
    np.testing.assert_allclose(optima, [p["parameters"] for p in answer["profiles"]], rtol=1e-12, atol=0)
    np.testing.assert_allclose(optima, [best_size(c) for c in BUDGETS], rtol=0.3, atol=0)
    for kind in ("law", "surface"):
        drawn = [r for r in rows if r["kind"] == kind]
        assert all(float(r["low"]) <= float(r["parameters"]) <= float(r["high"]) for r in drawn)


def test_isoflop_as_json(runs, tmp_path):
    words = ["isoflop", runs, *MAP, "--budget", "1e20", "--level", "0.5", "--json"]
    result = run(*words, "-o", tmp_path / "isoflop.json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer == json.loads((tmp_path / "isoflop.json").read_text())
    assert (answer["level"], answer["rows"], answer["where"]) == (0.5, 45, {"study": "a"})
    wide = json.loads(run("isoflop", runs, *MAP, "--budget", "1e20", "--json").stdout)
    for way in ("by_profiles", "by_surface"):
        for name in ("parameters", "exponent"):
            assert wide[way][name]["low"] < answer[way][name]["low"]


def test_without_resamples_the_surface_has_no_intervals(runs):
    result = run("isoflop", runs, *MAP, "--budget", "1e20", "--bootstrap", "0")
    assert result.exit_code == 0, result.output
    assert says(result.stdout, "loss surface ... -")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--budget", "-3"], 2, "--budget must be a positive number of FLOPs, got -3"),
        (["--budget", "1e20", "--tolerance", "2"], 2, "--tolerance must lie between 0 and 1"),
        (["--budget", "1e20", "--method", "best"], 2, "--method must be one of ... got 'best'"),
        (["--budget", "1e24"], 3, "refused: the budget 1e+24 lies ... --extrapolate"),
    ],
)
def test_bad_input_and_refusals_are_one_line(runs, words, code, text):
    one_line(run("isoflop", runs, *MAP, *words), code, text)


def test_a_refusal_says_which_sizes_to_run_at_which_budgets(runs, tmp_path):
    frame = pd.read_csv(runs)
    frame = frame[frame["N"] < 0.8 * frame["budget"].map(best_size)].assign(lr=0.01)
    frame.to_csv(tmp_path / "small.csv", index=False)
    result = run(
        "isoflop", tmp_path / "small.csv", *MAP, "--budget", "1e20", "--points", tmp_path / "more.yaml"
    )
    one_line(result, 3, "refused: N* is not identified by 5 budgets ... largest size")
    assert says(result.stderr, "run next: budget=1e+18 ... lr=0.01")
    points = yaml.safe_load((tmp_path / "more.yaml").read_text())["blocks"]["more"]["points"]
    assert sorted({float(p["budget"]) for p in points}) == [float(f"{c:.4g}") for c in BUDGETS]
    for p in points:
        key = "scale.tokens" if "scale.tokens" in p else "tokens"
        assert 6.0 * p["parameters"] * p[key] == pytest.approx(float(p["budget"]), rel=2e-3)
        assert p["base_lr"] == 0.01
