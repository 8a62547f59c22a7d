"""The commands loss and leverage: answers, files, plots, one-line errors and exit codes."""

import csv
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from hyperp.analysis.loss.schema import load_loss
from tests.analysis.law_command import run, says
from tests.paths import PUBLIC_SWEEPS

BESIROGLU = PUBLIC_SWEEPS / "chinchilla_besiroglu_245.csv"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two optimizers, seven computes, three rates, two seeds, under foreign names; one run diverged."""
    rng = np.random.default_rng(0)
    rows = [
        {"algo": name, "petaflops": c / 1e15, "lr": lr, "seed": seed, "status": "finished",
         "metric": "loss, nats per token", "wide": wide,
         "final loss": (1.7 + 1.2 * (ratio * c / 1e19) ** -0.12) * (1 + 0.02 * np.log2(lr / 0.02) ** 2)
         * np.exp(0.001 * rng.normal())}
        for name, ratio, wide in (("muon", 1.0, False), ("sso", 1.6, True))
        for c in np.geomspace(1e18, 1e21, 7) for lr in (0.01, 0.02, 0.04) for seed in (0, 1)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.loc[5, "status"], frame.loc[5, "final loss"] = "diverged", np.nan
    path = tmp_path_factory.mktemp("runs") / "export.csv"
    frame.to_csv(path, index=False)
    return path


MAP = ("--map", "loss=final loss", "--map", "flops=petaflops*1e15", "--map", "optimizer=algo")


def test_loss_prints_writes_and_draws(runs, tmp_path):
    out, plots = tmp_path / "loss.json", tmp_path / "plots"
    words = ["loss", runs, "--form", "power", *MAP, "--where", "optimizer=muon", "--bootstrap", "200"]
    result = run(*words, "-o", out, "--plots", plots)
    assert result.exit_code == 0, result.output
    law = load_loss(out)
    assert law.status == "converged"
    assert law.dropped == {"diverged": 1}
    assert (law.rows, len(law.points)) == (42, 7)
    assert law.mapping == {"loss": "final loss", "flops": "petaflops*1e15", "optimizer": "algo"}
    floor = law.parameters["E"]
    assert floor.low is not None
    assert floor.high is not None
    assert floor.low < 1.7 < floor.high
    for words in (
        "1 diverged",
        "lowest mean-over-seeds loss",
        "Sensitivity to the floor E",
        "status: converged",
    ):
        assert words in result.stdout
    names = ("loss-law", "loss-residuals", "loss-profile")
    assert {p.name for p in plots.iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg", "csv")}
    with (plots / "loss-profile.csv").open() as stream:
        drawn = [float(row["objective"]) for row in csv.DictReader(stream)]
    np.testing.assert_allclose(drawn, [row.objective for row in law.profile], rtol=1e-12, atol=0)


def test_loss_as_json_is_the_file(runs, tmp_path):
    out = tmp_path / "loss.json"
    words = [
        "loss",
        runs,
        *MAP,
        "--where",
        "wide=True",
        "--pin",
        "E=1.6",
        "--bootstrap",
        "0",
        "-o",
        out,
        "--json",
    ]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(out.read_text())
    law = load_loss(out)
    assert law.parameters["E"].model_dump() == {"value": 1.6, "low": None, "high": None, "pinned": True}
    assert law.resampling is None
    assert law.profile
    assert "--pin E=1.6" in law.command


def test_chinchilla_form(tmp_path):
    if not BESIROGLU.is_file():
        pytest.skip(f"needs {BESIROGLU.name} in the folder shared beside the repository")
    words = ["--map", "parameters=N", "--map", "tokens=D", "--where", "kept=True", "--bootstrap", "50"]
    result = run(
        "loss", BESIROGLU, "--form", "chinchilla", *words, "-o", tmp_path / "loss.json", "--plots", tmp_path
    )
    assert result.exit_code == 0, result.output
    law = load_loss(tmp_path / "loss.json")
    assert len(law.points) == 240
    assert law.parameters["alpha"].value == pytest.approx(0.3473, abs=1e-4)
    assert (tmp_path / "loss-law.png").stat().st_size > 10_000


def test_leverage_prints_and_draws(runs, tmp_path):
    words = ["leverage", runs, *MAP, "--baseline", "optimizer=muon", "--bootstrap", "200"]
    result = run(*words, "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Leverage of sso over muon, where both were measured" in result.stdout
    assert "muon: dropped 1 diverged" in result.stdout
    found = json.loads(run(*words, "--json").stdout)
    row = found["comparisons"][0]["at_largest"]
    assert row["low"] < 1.6 < row["high"]
    assert {p.name for p in tmp_path.iterdir()} == {f"leverage.{s}" for s in ("png", "svg", "csv")}
    with (tmp_path / "leverage.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["kind"] == "leverage"]
    assert float(rows[-1]["leverage"]) == pytest.approx(row["leverage"], rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["loss", "absent.csv", "-o", "OUT"], 2, "error: RUNS=absent.csv"),
        (["loss", "RUNS", "-o", "OUT"], 2, "error: RUNS ... flops"),
        (["loss", "RUNS", *MAP, "-o", "OUT"], 2, "optimizer must ... got muon, sso"),
        (["loss", "RUNS", *MAP, "--pin", "E", "-o", "OUT"], 2, "error: --pin must ... got 'E'"),
        (["loss", "RUNS", *MAP, "--where", "algo=sso", "--pin", "E=5", "-o", "OUT"], 2, "--pin E must be"),
        (["loss", "RUNS", *MAP, "--where", "algo=sso", "--bootstrap", "1", "-o", "OUT"], 2, "bootstrap must"),
        (["loss", "RUNS", *MAP, "--where", "petaflops=1000", "--where", "algo=sso", "-o", "OUT"], 3,
         "refused: flops"),
        (["leverage", "RUNS", *MAP, "--baseline", "muon"], 2,
         "error: --baseline must be COLUMN=VALUE ... got 'muon'"),
        (["leverage", "RUNS", *MAP, "--baseline", "optimizer=muon", "--over", "algo"], 2,
         "error: --baseline must be algo=VALUE ... got 'optimizer=muon'"),
        (["leverage", "RUNS", *MAP, "--baseline", "optimizer=adam"], 2, "optimizer=adam"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(runs, tmp_path, words, code, text):
    places = {"RUNS": runs, "OUT": tmp_path / "out.json"}
    result = run(*(places.get(word, word) for word in words))
    assert result.exit_code == code, result.output
    first, *rest = result.stderr.strip().splitlines()
    assert says(first, text), first
    assert all(line.startswith(("run next:", "wrote", "OVERRIDES:")) for line in rest)
    assert bool(rest) == (code == 3)
    assert result.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == (["out.points.yaml"] if code == 3 else [])


def test_a_refused_loss_law_says_what_to_run_and_leaves_an_older_file(runs, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("{}")
    words = ["loss", runs, *MAP, "--where", "petaflops=1000", "--where", "algo=sso", "-o", out]
    result = run(*words)
    assert result.exit_code == 3
    assert "run next: optimizer=sso flops=2e+18 lr=0.01, 0.02, 0.04" in result.stderr
    assert says(result.stderr, f"note: {out} ... earlier fit")
    assert out.read_text() == "{}"
    points = yaml.safe_load((tmp_path / "out.points.yaml").read_text())["blocks"]["out_points"]["points"]
    assert {(p["flops"], p["base_lr"]) for p in points} == {
        (c * 1e18, lr) for c in (2, 4, 8) for lr in (0.01, 0.02, 0.04)
    }


def test_leverage_between_curves_apart_writes_the_runs_that_would_meet(runs, tmp_path):
    frame = pd.read_csv(runs)
    frame.loc[frame["algo"] == "sso", "final loss"] -= 1.0
    frame.to_csv(tmp_path / "apart.csv", index=False)
    words = ["--baseline", "optimizer=muon", "--bootstrap", "10", "--points", tmp_path / "more.yaml"]
    result = run("leverage", tmp_path / "apart.csv", *MAP, *words)
    assert result.exit_code == 3
    assert "run muon beyond 1e+21 FLOPs" in result.stderr
    points = yaml.safe_load((tmp_path / "more.yaml").read_text())["blocks"]["more"]["points"]
    assert {p["flops"] for p in points} == {4e21}


def test_a_fit_that_did_not_converge_starts_with_a_warning(runs, tmp_path, monkeypatch):
    from hyperp.analysis.loss import fit as loss_law

    polish = loss_law.polish
    monkeypatch.setattr(loss_law, "polish", lambda *given, **more: polish(*given, **{**more, "steps": 2}))
    words = ["--where", "optimizer=muon", "--bootstrap", "0", "-o", tmp_path / "out.json"]
    result = run("loss", runs, *MAP, *words)
    assert result.exit_code == 0
    assert says(result.stderr.splitlines()[0], "warning: ... not converged")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "loss.json cannot be read"),
        ("{", "loss.json is not JSON"),
        ('{"schema_version": 0}', "schema_version must .* 1, got 0"),
        ('{"schema_version": 1, "form": "cubic"}', "form must .*got 'cubic'"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line(tmp_path, content, text):
    path = tmp_path / "loss.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=text):
        load_loss(path)


def test_nothing_imports_torch_and_the_commands_load_lightly():
    code = (
        "import sys, hyperp.analysis.cli.loss; light = 'scipy' in sys.modules or 'pandas' in sys.modules;"
        "import hyperp.analysis.report.figures.loss, hyperp.analysis.report.text.loss;"
        "print(light, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
