"""Options of loss and leverage: clusters, data sets, tied exponents, threshold and level."""

import json

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis.loss.schema import load_loss
from tests.analysis.law_command import one_line, run, says


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Five checkpoints of each of 14 runs, each with its loss on two texts."""
    rng = np.random.default_rng(0)
    rows = []
    for index, n in enumerate(np.geomspace(1e8, 2e10, 14)):
        off = np.exp(0.005 * rng.normal())
        for tokens in np.arange(1, 6) * 1e10:
            for text, floor in (("pile", 1.7), ("c4", 2.2)):
                loss = (floor + 480 * n**-0.35 + 2100 * tokens**-0.37) * off * np.exp(0.001 * rng.normal())
                row = {"name": f"m{index}", "text": text, "parameters": n, "tokens": tokens, "loss": loss}
                rows.append({**row, "flops": 6 * n * tokens})
    path = tmp_path_factory.mktemp("runs") / "checkpoints.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


CHINCHILLA = ("--form", "chinchilla", "--bootstrap", "40")


def test_checkpoints_without_a_column_of_runs_are_warned_about(checkpoints, tmp_path):
    out = tmp_path / "loss.json"
    result = run("loss", checkpoints, *CHINCHILLA, "--where", "text=pile", "-o", out)
    assert result.exit_code == 0, result.output
    assert says(result.stderr, "warning: 70 of 70 rows ... 14 runs ... --cluster name")
    law = load_loss(out)
    assert (law.cluster, law.clusters, law.rows) == (None, None, 70)
    assert len(law.warnings) == 1


def test_runs_are_counted_beside_rows(checkpoints, tmp_path):
    out = tmp_path / "loss.json"
    words = ["--where", "text=pile", "--cluster", "name", "-o", out]
    result = run("loss", checkpoints, *CHINCHILLA, *words)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert says(result.stdout, "70 rows of 14 runs (name, residuals of one run correlate by 0.9")
    assert "whole runs drawn with replacement" in result.stdout
    law = load_loss(out)
    assert (law.cluster, law.clusters, law.rows) == ("name", 14, 70)
    assert law.cluster_correlation == pytest.approx(0.95, abs=0.04)
    assert "--cluster name" in law.command


def test_data_sets_tie_threshold_and_level(checkpoints, tmp_path):
    out = tmp_path / "loss.json"
    words = [
        "--cluster",
        "name",
        "--by-data",
        "text",
        "--tie",
        "alpha=beta",
        "--delta",
        "0.002",
        "--level",
        "0.8",
    ]
    result = run("loss", checkpoints, *CHINCHILLA, *words, "-o", out, "--plots", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    law = load_loss(out)
    assert list(law.parameters) == [*(f"{n}[{t}]" for n in "EAB" for t in ("c4", "pile")), "alpha", "beta"]
    assert all(one.low is not None for one in law.parameters.values())
    assert law.parameters["alpha"] == law.parameters["beta"]
    assert (law.delta, law.tie, law.by_data) == (0.002, "alpha=beta", "text")
    assert law.resampling is not None
    assert law.resampling.level == 0.8
    for text in ("80% interval", "E[pile]", "E[c4] held", "Huber(0.002)", "140 rows of 14 runs"):
        assert text in result.stdout
    for option in (" ".join(words[i : i + 2]) for i in range(0, len(words), 2)):
        assert option in law.command


def test_one_run_is_refused_unless_without_intervals(checkpoints, tmp_path):
    words = ["--where", "name=m3", "--where", "text=pile", "--cluster", "name", "-o", tmp_path / "loss.json"]
    one_line(
        run("loss", checkpoints, *words, "--bootstrap", "20"), 3, "5 points ... one run ... --bootstrap 0"
    )
    assert run("loss", checkpoints, *words, "--bootstrap", "0").exit_code == 0


@pytest.fixture(scope="module")
def two_optimizers(tmp_path_factory):
    rows = [
        {"optimizer": name, "run": f"{name} {k % 4}", "flops": c, "loss": 1.7 + 1.2 * (r * c / 1e19) ** -0.12}
        for name, r in (("muon", 1.0), ("sso", 1.5)) for k, c in enumerate(np.geomspace(1e18, 1e21, 12))
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["loss"] *= np.exp(0.002 * np.random.default_rng(0).normal(size=len(frame)))
    path = tmp_path_factory.mktemp("curves") / "curves.csv"
    frame.to_csv(path, index=False)
    return path


def test_leverage_takes_clusters_and_a_level(two_optimizers):
    words = ["leverage", two_optimizers, "--baseline", "optimizer=muon", "--bootstrap", "100"]
    result = run(*words, "--cluster", "run", "--level", "0.8")
    assert result.exit_code == 0, result.output
    assert "80% interval" in result.stdout
    assert says(result.stdout, "scatter ... points ... runs ... FLOPs")
    found = [json.loads(run(*words, *more, "--json").stdout) for more in ((), ("--level", "0.5"))]
    (wide,), (narrow,) = ([c["at_largest"] for c in one["comparisons"]] for one in found)
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    assert found[1]["level"] == 0.5
    clustered = json.loads(run(*words, "--cluster", "run", "--json").stdout)
    assert (clustered["baseline"]["cluster"], clustered["baseline"]["clusters"]) == ("run", 4)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--cluster", "run"], "--cluster run: no such column"),
        (["--by-data", "corpus"], "--by-data corpus: no such column"),
        (["--tie", "alpha=E"], "--tie must be alpha=beta"),
        (["--delta", "-1"], "--delta must be a positive number"),
        (["--level", "95"], "--level must lie between 0 and 1, got 95"),
    ],
)
def test_bad_options_are_one_line(checkpoints, tmp_path, words, text):
    words = ["loss", checkpoints, *CHINCHILLA, "--where", "text=pile", *words, "-o", tmp_path / "loss.json"]
    one_line(run(*words), 2, text)
