"""The command hyperp-law: answers, one-line errors, exit codes, nothing written without an answer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from hyperp.analysis.cli import app

COMMANDS = ("check", "fit", "recommend", "loss", "leverage", "transfer", "next", "validate", "report")


@pytest.fixture(scope="module")
def demo(make_ladder, tmp_path_factory):
    """runs.parquet: a ladder, two widths under MuonH and two under AdamW, whose highest rate diverged."""
    adamw = {
        "optimizer": "adamw",
        "parametrization": "standard",
        "schedule": "linear",
        "data": "stdlib",
        "metric": "loss, nats per token",
    }
    wide, one = {"width": 64}, {"tokens": (131072,), "seed_shift": 0.05, "noise": 0.001}
    frames = [
        make_ladder(tokens=(32768, 65536, 131072, 262144), seed_shift=0.05, noise=0.001),
        make_ladder(log2_at_64k=-4.9, covariates=wide, rng_seed=1, **one),
        make_ladder(log2_at_64k=-6.0, context=adamw, octaves=(-10, -3), rng_seed=2, **one),
        make_ladder(log2_at_64k=-7.0, context=adamw, octaves=(-10, -3), covariates=wide, rng_seed=3, **one),
    ]
    frame = pd.concat(frames, ignore_index=True)
    hot = (frame["optimizer"] == "adamw") & (frame["lr"] == 2.0**-3)
    frame.loc[hot, "status"], frame.loc[hot, "loss"] = "diverged", np.nan
    folder = tmp_path_factory.mktemp("demo")
    frame.to_parquet(folder / "runs.parquet")
    assert _run("fit", folder, "--by", "tokens", "-o", folder / "law.json").exit_code == 0
    return folder


def _run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def _one_line(result, code: int, text: str) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert text in lines[0]
    assert len(lines) == 1 or lines[1].startswith("run next:")
    assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command):
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: hyperp-law {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ([], 0, "Commands:\n", ""),
        (["--version"], 0, "hyperp-law 0.", ""),
        (["chek"], 2, "", "error: No such command"),
    ],
)
def test_the_command_alone_its_version_and_a_typing_error(words, code, out, err):
    command = [sys.executable, "-m", "hyperp.analysis.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert out in done.stdout
    assert err in done.stderr
    assert bool(err) == bool(done.stderr)
    assert bool(out) == bool(done.stdout)


def test_check_says_what_is_there(demo):
    result = _run("check", demo)
    assert result.exit_code == 0
    assert "4 diverged, 118 finished" in result.stdout
    assert "7 slices" in result.stdout
    answer = json.loads(_run("check", demo, "--json").stdout)
    assert answer["statuses"] == {"diverged": 4, "finished": 118}
    verdicts = {v["covariate"]: v for v in answer["identifiable"]}
    assert verdicts["tokens"]["identified"]
    assert verdicts["tokens"]["groups"] == ["muonh, hyperp, width 32"]
    assert not verdicts["width"]["identified"]
    assert "2 slices, of which 2 bracketed, 3 needed" in verdicts["width"]["reason"]
    assert {s["state"] for s in answer["slices"]} == {"bracketed"}


def test_check_names_the_group_where_nothing_else_varies(make_ladder, tmp_path):
    make_ladder(tokens=(32768, 65536, 131072)).to_parquet(tmp_path / "runs.parquet")
    (verdict,) = json.loads(_run("check", tmp_path, "--json").stdout)["identifiable"]
    assert (verdict["covariate"], verdict["groups"]) == ("tokens", ["one group of 3 slices"])
    text = _run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json").stdout
    assert "1 degree of freedom, shared" in text
    assert "1 degrees" not in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--over", "foo"], "--over must be lr, or lr and one more column, got foo"),
        (["--over", "loss"], "--over must be lr, or lr and one more column, got loss"),
        (["--over", "lr,foo"], "--over must be lr, or lr and one more column that was tuned, such as width"),
        (["--over", "lr,loss"], "that was tuned, such as width or depth"),
        (["--by", "foo"], "covariate must be one of width"),
        (["--by", "batch_tokens", "--over", "lr,batch_tokens"], "batch_tokens is given twice in --by, --fix"),
        (["--window", "-1"], "--window must be a positive number of octaves, got -1"),
        (["--window", "nan"], "--window must be a positive number of octaves, got nan"),
        (["--method", "guess"], "--method must be one of shared, two-stage"),
    ],
)
def test_check_refuses_what_fit_refuses(demo, tmp_path, words, text):
    _one_line(_run("check", demo, *words), 2, text)
    by = [] if "--by" in words else ["--by", "tokens"]
    _one_line(_run("fit", demo, *by, *words, "-o", tmp_path / "law.json"), 2, text)


def test_check_takes_what_fit_takes_beside_the_rate(make_ladder, tmp_path):
    frame = pd.concat(
        make_ladder(covariates={"batch_tokens": b}, log2_at_64k=c, tokens=(65536,))
        for b, c in ((256, -5.2), (512, -4.7), (1024, -4.2))
    )
    frame.to_parquet(tmp_path / "runs.parquet")
    answer = json.loads(_run("check", tmp_path, "--over", "lr,batch_tokens", "--json").stdout)
    assert len(answer["slices"]) == 1
    assert "batch_tokens" not in answer["slices"][0]["covariates"]


def test_a_law_edited_by_hand_is_refused_by_every_command(demo, tmp_path):
    raw = json.loads((demo / "law.json").read_text())
    exponent = raw["exponents"]["tokens"]
    exponent["value"] = (exponent["value"] + exponent["low"]) / 2
    law = tmp_path / "law.json"
    law.write_text(json.dumps(raw))
    for words in (
        ["recommend", law, "--tokens", "1e5"],
        ["next", law, "-o", tmp_path / "points.yaml"],
        ["validate", law, demo],
        ["report", law, "-o", tmp_path / "report"],
    ):
        _one_line(_run(*words), 2, f"{law} was changed after it was fitted; fit it again")


def test_fit_prints_and_writes_the_same_law(demo, tmp_path):
    out = tmp_path / "law.json"
    result = _run(
        "fit", demo / "runs.parquet", "--by", "tokens", "--where", "optimizer=muonh", "-o", out, "--json"
    )
    assert result.exit_code == 0, result.stderr
    printed, written = json.loads(result.stdout), json.loads(out.read_text())
    assert printed == written
    assert abs(written["exponents"]["tokens"]["value"] + 0.5) < 0.1
    assert written["command"].startswith(
        f"hyperp-law fit {demo}/runs.parquet --by tokens --where optimizer=muonh -o"
    )
    assert len([s for s in written["slices"] if s["used"]]) == 4


def test_recommend_in_three_forms(demo):
    law = demo / "law.json"
    text, words = (
        _run("recommend", law, "--tokens", "5.2e5"),
        _run("recommend", law, "--tokens", "520000", "--hydra"),
    )
    answer = json.loads(_run("recommend", law, "--tokens", "5.2e5", "--json").stdout)
    assert answer["target"]["tokens"] == 520000
    assert f"lr = {answer['lr']:.4g}" in text.stdout
    assert "95% prediction interval" in text.stdout
    assert "-0.32 (10B to 166B tokens" in text.stdout
    assert words.stdout.split()[:3] == ["optim=muonh", "parametrization=hyperp", "schedule=linear"]
    assert words.stdout.split()[3:] == [f"base_lr={answer['lr']:.6g}", "scale.tokens=520000"]
    assert "warning: tokens=520000 lies 1.98 times outside" in text.stderr
    assert "note: base_lr = lr / 1" in words.stderr


def test_an_output_never_overwrites_a_table(demo):
    before = (demo / "runs.parquet").read_bytes()
    assert _run("fit", demo, "--by", "tokens", "-o", demo / "runs.parquet").exit_code == 2
    assert _run("next", demo / "law.json", "-o", demo / "runs.parquet").exit_code == 2
    assert (demo / "runs.parquet").read_bytes() == before


def test_transfer_gives_drift_for_both_optimizers(demo):
    answers = {
        a["context"]["optimizer"]: a
        for a in json.loads(_run("transfer", demo, "--over", "width", "--json").stdout)
    }
    for name, truth in (("adamw", -1.0), ("muonh", -0.2)):
        drift = answers[name]["drift"]
        assert drift["low"] < truth < drift["high"]
        assert abs(drift["octaves_per_doubling"] - truth) < 0.25
    assert answers["adamw"]["penalty"]["nats"] > 5 * answers["muonh"]["penalty"]["nats"] > 0
    assert "Transfer over width" in _run("transfer", demo, "--over", "width").stdout


def test_validate_passes_or_fails_and_the_report_says_which(demo, make_curve, tmp_path):
    law = json.loads((demo / "law.json").read_text())
    rate = json.loads(_run("recommend", demo / "law.json", "--tokens", "524288", "--json").stdout)["lr"]
    held = {**law["held"], "tokens": 524288}
    rates, rng = float(f"{rate:.4g}") * np.array([0.5, 1, 2]), np.random.default_rng(0)
    for shift, code, word in ((0.0, 0, "PASS"), (1.0, 1, "FAIL")):
        points = make_curve(np.log2(rate) + shift, rates, 2, rng, noise=0.001)
        points.assign(**law["context"], **held).to_csv(tmp_path / f"{word}.csv", index=False)
        result = _run(
            "validate", demo / "law.json", tmp_path / f"{word}.csv", "-o", tmp_path / f"{word}.json"
        )
        assert result.exit_code == code
        assert word in result.stdout
        assert (word in result.stderr) == (code == 1)
        assert json.loads((tmp_path / f"{word}.json").read_text())["passed"] == (code == 0)
    report = ["report", demo / "law.json", "-o", tmp_path / "report", "--check"]
    for word in ("PASS", "FAIL"):
        assert _run(*report, tmp_path / f"{word}.csv").exit_code == 0
        assert f"**{word}: " in (tmp_path / "report" / "report.md").read_text()


def test_given_optima_give_the_published_exponent_in_either_space(tmp_path):
    """Five MuonH optima (marin issue 7856): -0.5563 +- 0.0287 in log space, -0.607 in linear space."""
    table = _shared("marin7856_muonh_constlr_optima.csv")
    fit = ["fit", table, "--optima", "--map", "lr=lr_opt", "--by", "tokens", "-o", tmp_path / "law.json"]
    assert _run(*fit).exit_code == 0
    e = json.loads((tmp_path / "law.json").read_text())["exponents"]["tokens"]
    found = [e[n] for n in ("value", "se", "low", "high")]
    np.testing.assert_allclose(found, [-0.5563, 0.0287, -0.6477, -0.4649], rtol=0, atol=5e-5)
    assert _run(*fit, "--space", "linear").exit_code == 0
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["space"] == "linear"
    np.testing.assert_allclose(law["exponents"]["tokens"]["value"], -0.607, rtol=0, atol=5e-4)


def test_public_width_sweeps_give_their_exponents_and_name_the_curves_without_one(tmp_path):
    """Spectral Sphere -0.07 +- 0.01, Muon +0.05 +- 0.03; two of AdamW's four curves are not convex."""
    table = _shared("sso_mup_lr_sweep.csv")
    words = ["fit", table, "--map", "width=hidden_size", "--by", "width", "-o", tmp_path / "law.json"]
    for name, low, high in (("spball", -0.08, -0.06), ("muon", 0.02, 0.08)):
        assert _run(*words, "--where", f"optimizer={name}").exit_code == 0
        law = json.loads((tmp_path / "law.json").read_text())
        assert low < law["exponents"]["width"]["value"] < high
    result = _run(*words, "--where", "optimizer=adamw")
    assert result.exit_code == 3
    assert "4 slices, of which 2 bracketed" in result.stderr
    assert "width 512: the loss falls again" in result.stderr


def test_rate_and_batch_together_from_public_runs(tmp_path):
    table = _shared("steplaw_dense_lr_bs_loss.csv")
    words = [*FOREIGN, "--by", "N,tokens", "--over", "lr,batch_tokens", "--also-by", "tokens"]
    assert _run("fit", table, *words, "-o", tmp_path / "law.json").exit_code == 0
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["method"] == "shared"
    assert sum(s["used"] for s in law["slices"]) == 17
    # Published over more runs: N^-0.713 D^0.307, batch D^0.571.
    assert -0.9 < law["exponents"]["N"]["value"] < -0.65
    assert 0.15 < law["exponents"]["tokens"]["value"] < 0.31
    assert 0.5 < law["also"]["batch_tokens"]["exponents"]["tokens"]["value"] < 0.7
    assert max(o["loss_penalty"] for o in law["leave_one_out"]) < 0.002


FOREIGN = ["--map", "loss=smooth loss", "--map", "batch_tokens=bs*2048", "--map", "tokens=D"]


def test_a_foreign_grid_over_rate_and_batch_gives_the_published_pool(tmp_path):
    """StepLaw's dense runs by their recipe: lr = 77.7 N^-0.766 D^0.197, batch = 0.209 D^0.613."""
    table = _shared("steplaw_dense_lr_bs_loss.csv")
    words = [*FOREIGN, "--by", "N,tokens", "--over", "lr,batch_tokens", "--also-by", "tokens"]
    result = _run("fit", table, *words, "--method", "pool", "-o", tmp_path / "law.json")
    assert result.exit_code == 0, result.stderr
    law = json.loads((tmp_path / "law.json").read_text())
    found = [np.exp(law["a"]["value"]), *(law["exponents"][n]["value"] for n in ("N", "tokens"))]
    np.testing.assert_allclose(found, [77.7, -0.766, 0.197], rtol=1e-3, atol=5e-4)
    batch = law["also"]["batch_tokens"]
    found = [np.exp(batch["a"]["value"]), batch["exponents"]["tokens"]["value"]]
    np.testing.assert_allclose(found, [0.209, 0.613], rtol=3e-3, atol=5e-4)
    answer = json.loads(
        _run("recommend", tmp_path / "law.json", "--tokens", "2e11", "--at", "N=1e9", "--json").stdout
    )
    assert answer["also"]["batch_tokens"]["low"] < answer["also"]["batch_tokens"]["value"]
    assert "argmin puts the exponent of tokens" in result.stdout


def test_an_exponent_of_a_size_that_does_not_vary_is_refused(tmp_path):
    """StepLaw's mixtures of experts: total N moves by a quarter of a percent."""
    table = _shared("steplaw_moe_lr_bs_loss.csv")
    words = [*FOREIGN, "--over", "lr,batch_tokens", "--method", "pool", "-o", tmp_path / "law.json"]
    result = _run("fit", table, "--by", "N,Na,tokens", *words)
    assert result.exit_code == 3
    assert "N does not vary: 2.15061e+09 to 2.15619e+09 is a factor of 1" in result.stderr
    assert "tell them apart" in _run("fit", table, "--by", "N,tokens", *words).stderr
    assert _run("fit", table, "--by", "Na,tokens", *words).exit_code == 0  # active parameters do vary


def _shared(name):
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not path.is_file():
        pytest.skip("the folder shared/data does not lie beside the repository")
    return path


def test_a_law_speaks_for_its_own_optimizer_and_reach_alone(demo, tmp_path):
    law = demo / "law.json"
    result = _run("recommend", law, "--tokens", "3e5", "--optimizer", "muon")
    _one_line(result, 3, "the law was fitted for optimizer 'muonh' and cannot speak for 'muon'")
    assert _run("recommend", law, "--tokens", "3e5", "--optimizer", "muonh").exit_code == 0
    far = ["recommend", law, "--tokens", "4e6"]
    result = _run(*far, "--points", tmp_path / "far.yaml")
    assert result.exit_code == 3
    assert "tokens=4000000 lies 15.3 times outside the fitted range 32768 to 262144" in result.stderr
    points = yaml.safe_load((tmp_path / "far.yaml").read_text())["blocks"]["far"]["points"]
    assert {p["scale.tokens"] for p in points} == {1024000}
    assert _run(*far, "--extrapolate").exit_code == 0


def test_next_writes_points_and_says_how_to_run_them(demo, tmp_path):
    result = _run("next", demo / "law.json", "--tokens", "1e6", "-o", tmp_path / "points.yaml")
    assert result.exit_code == 0, result.stderr
    assert f"+{tmp_path.name}@sweep=points" in result.stdout
    assert yaml.safe_load((tmp_path / "points.yaml").read_text())["blocks"]["points"]["points"]


def test_a_refusal_for_another_schedule_says_so_in_the_runs_to_do(demo, tmp_path):
    points = tmp_path / "points.yaml"
    words = ["recommend", demo / "law.json", "--tokens", "5e4", "--schedule", "cosine", "--points", points]
    result = _run(*words)
    assert result.exit_code == 3
    runs = [line for line in result.stderr.splitlines() if line.startswith("run next:")]
    assert len(runs) == 4
    assert all("optimizer=muonh parametrization=hyperp schedule=cosine width=32" in line for line in runs)
    assert not any("data=" in line or "metric=" in line for line in runs)
    assert "schedule=cosine" in yaml.safe_load(points.read_text())["blocks"]["points"]["overrides"]


def test_an_interrupted_sweep_says_so_and_covers_every_slice(make_ladder, tmp_path):
    """Two slices done, one with two of its rates, one failed, one not begun."""
    frame = make_ladder(seeds=1)
    later = frame["tokens"] > 65536
    kept = ~later | ((frame["tokens"] == 131072) & (frame["lr"] < 2**-7))
    status = np.where(kept, "finished", "planned")
    status[(frame["tokens"] == 262144) & (frame["lr"] > 2**-2)] = "running"
    frame = frame.assign(status=status, loss=frame["loss"].where(kept))
    frame.to_parquet(tmp_path / "runs.parquet")
    result = _run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json")
    text = (
        "refused: 25 planned runs are not done (24 planned, 1 running); run the same `hyperp-sweep run` again"
    )
    _one_line(result, 3, text)
    assert "until then the exponents of tokens are not identified" in result.stderr.splitlines()[0]
    rows = yaml.safe_load((tmp_path / "law.points.yaml").read_text())["blocks"]["law_points"]["points"]
    counts = {size: sum(r["scale.tokens"] == size for r in rows) for size in (131072, 262144, 524288)}
    assert counts[262144] == counts[524288] == 9
    assert counts[131072] >= 7
    planned = set(frame["lr"][frame["tokens"] == 524288])  # to the last digit, or they would be other runs
    assert {r["base_lr"] for r in rows if r["scale.tokens"] == 524288} == planned
    assert len(rows) == sum(counts.values())


def test_a_slice_that_never_ran_is_given_the_rates_of_the_others(make_ladder, tmp_path):
    frame = make_ladder(seeds=1, tokens=(32768, 65536, 131072))
    gone = frame["tokens"] == 131072
    frame.loc[gone, ["lr", "base_lr", "loss"]] = np.nan
    frame.assign(status=np.where(gone, "failed", "finished")).to_parquet(tmp_path / "runs.parquet")
    result = _run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json", "--json")
    (point,) = json.loads(result.stdout)["next"]
    assert point["tokens"] == 131072
    assert len(point["lr"]) == 9
    assert "refused: 9 planned runs are not done (9 failed)" in result.stderr


def test_hydra_words_are_not_printed_for_what_hyperp_train_cannot_do(make_ladder, tmp_path):
    law = tmp_path / "law.json"
    recommend = ["recommend", law, "--tokens", "1e5", "--hydra"]
    for change, text in (
        (lambda f: f.assign(optimizer="foo"), "fitted for optimizer=foo, which is no option of hyperp-train"),
        (lambda f: f.drop(columns="base_lr"), "the law's table had no base_lr"),
    ):
        change(make_ladder()).to_parquet(tmp_path / "runs.parquet")
        assert _run("fit", tmp_path, "--by", "tokens", "-o", law).exit_code == 0
        result = _run(*recommend)
        assert result.exit_code == 2
        assert text in result.stderr.splitlines()[-1]
        rate = json.loads(_run(*recommend[:-1], "--json").stdout)["lr"]
        assert f"use the plain rate, lr={rate:.6g}" in result.stderr
        assert "run next" not in result.stderr
        assert result.stdout == ""


def test_a_rate_that_is_hardly_identified_warns(make_ladder, tmp_path):
    frame = make_ladder(tokens=(32768, 65536, 131072), scatter=2.0, octaves=(-12, 2))
    frame.to_parquet(tmp_path / "runs.parquet")
    assert _run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json").exit_code == 0
    result = _run("recommend", tmp_path / "law.json", "--tokens", "1e5", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["high"] > 30 * answer["low"]
    (warning,) = answer["warnings"]
    assert "the data hardly identify it; `hyperp-law next` says which runs would" in warning
    assert result.stderr == f"warning: {warning}\n"


def test_outputs_make_their_folder_and_are_named_as_asked(demo, tmp_path):
    deep = tmp_path / "no" / "dir"
    assert _run("fit", demo, "--by", "tokens", "-o", deep / "law.json").exit_code == 0
    assert _run("next", deep / "law.json", "-o", tmp_path / "new" / "points.yaml").exit_code == 0
    assert _run("fit", demo, "--by", "width", "-o", tmp_path / "other" / "x.json").exit_code == 3
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["x.points.yaml"]
    (tmp_path / "file").write_text("")
    result = _run("fit", demo, "--by", "tokens", "-o", tmp_path / "file" / "x.json")
    _one_line(result, 2, f"error: cannot write {tmp_path}/file/x.json: {tmp_path}/file is not a folder")
    result = _run("fit", demo, "--by", "width", "-o", tmp_path / "file" / "x.json")  # nowhere to put points
    assert result.exit_code == 3
    assert f"note: cannot write {tmp_path}/file/x.points.yaml" in result.stderr


def test_edges_are_refused_with_rates_to_add(make_ladder, tmp_path):
    make_ladder(octaves=(-14, -9)).to_parquet(tmp_path / "runs.parquet")
    fit = ["fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json"]
    result = _run(*fit)
    _one_line(result, 3, "refused: the exponents of tokens are not identified")
    assert (
        "run next: optimizer=muonh parametrization=hyperp schedule=linear width=32 depth=2 tokens=32768"
        in result.stderr
    )
    assert "lr=0.003906, 0.007812" in result.stderr
    answer = json.loads(_run(*fit, "--json").stdout)
    assert len(answer["next"]) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["law.points.yaml", "runs.parquet"]
    points = yaml.safe_load((tmp_path / "law.points.yaml").read_text())["blocks"]["law_points"]["points"]
    assert len(points) == 10
    assert {p["scale.tokens"] for p in points} == {2**k for k in range(15, 20)}
    assert all(0.003 < p["base_lr"] < 0.01 for p in points)
    checked = _run("check", tmp_path)
    assert checked.exit_code == 0
    assert "edge high" in checked.stdout
    assert "add the rates 0.003906, 0.007812" in checked.stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["check", "absent.parquet"], 2, "RUNS=absent.parquet does not exist"),
        (["fit", "RUNS", "--by", "flops", "-o", "OUT"], 2, "covariate must be one of width, depth"),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--where", "optimizer"],
            2,
            "--where must be COLUMN=VALUE",
        ),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--fix", "depth=x"],
            2,
            "--fix must be such as depth=-0.5",
        ),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--window", "-1"],
            2,
            "--window must be a positive number",
        ),
        (["fit", "RUNS", "--by", "width", "-o", "OUT"], 3, "the exponents of width are not identified"),
        (["recommend", "LAW"], 2, "the law needs --tokens"),
        (["recommend", "LAW", "--tokens", "many"], 2, "tokens must be a whole number of at least 1"),
        (["recommend", "LAW", "--tokens", "-3"], 2, "tokens must be a whole number of at least 1"),
        (["recommend", "LAW", "--tokens", "1e5", "--depth", "8"], 3, "the law holds depth at 2"),
        (
            ["recommend", "LAW", "--tokens", "1e5", "--json", "--hydra"],
            2,
            "--json and --hydra exclude each other",
        ),
        (["recommend", "absent.json", "--tokens", "1e5"], 2, "absent.json cannot be read"),
        (["recommend", "LAW", "--tokens", "5e4", "--at", "tokens=6e4"], 2, "tokens is given twice, as 50000"),
        (
            ["recommend", "LAW", "--at", "tokens=1", "--at", "tokens=2"],
            2,
            "tokens is given twice, as 1 and 2",
        ),
        (["check", "RUNS", "--where", "width=32", "--where", "width=64"], 2, "--where gives width twice"),
        (["check", "RUNS", "--map", "foo=lr"], 2, "--map foo=lr: nothing reads foo; the name must be one of"),
        (["check", "RUNS", "--map", "foo=lr", "--by", "foo"], 2, "--map foo=lr: lr is read as lr already"),
        (["check", "RUNS", "--map", "loss=lr*2"], 2, "--map loss=lr*2: lr is read as lr already"),
        (["transfer", "RUNS", "--over", "colour"], 2, "covariate must be one of width"),
        (["transfer", "RUNS", "--over", "depth"], 3, "depth has one value"),
        (["report", "LAW", "-o", "LAW"], 2, "must be a folder, it is a file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(demo, tmp_path, words, code, text):
    places = {"RUNS": demo, "LAW": demo / "law.json", "OUT": tmp_path / "out.json"}
    _one_line(_run(*(places.get(word, word) for word in words)), code, text)
    assert {p.name for p in tmp_path.iterdir()} <= ({"out.points.yaml"} if code == 3 else set())


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda f: f.assign(lr=f["lr"].where(f.index != 3)), 2, "column lr must be a positive finite number"),
        (lambda f: f.assign(lr=f["lr"].where(f.index != 3, np.inf)), 2, "got inf in row 4"),
        (
            lambda f: f.assign(tokens=f["tokens"].astype(object).where(f.index != 3, "x")),
            2,
            "got 'x' in row 4",
        ),
        (lambda f: f.assign(loss=-f["loss"]), 2, "column loss must be a positive number in a finished run"),
        (lambda f: f.assign(loss=np.nan), 3, "0 rate(s) with a finished run"),
        (lambda f: pd.concat([f, f[:1]]), 2, "two finished runs have lr=0.00195312 and seed=0 in one slice"),
        (lambda f: f[:0], 2, "holds no rows"),
        (lambda f: f[f["tokens"] == 65536], 3, "tokens has one value, 65536"),
        (lambda f: f[f["lr"] == 2**-5], 3, "1 rate(s) with a finished run, at least 3 are needed"),
        (lambda f: f.assign(loss=3.0), 3, "are not identified"),
        (lambda f: f.assign(status="diverged", loss=np.nan), 3, "0 rate(s) with a finished run"),
    ],
)
@pytest.mark.parametrize("method", ["shared", "two-stage", "pool", "argmin"])
def test_a_table_that_cannot_answer_says_why_in_one_line(make_ladder, tmp_path, change, code, text, method):
    change(make_ladder()).to_csv(tmp_path / "runs.csv", index=False)
    words = ["--by", "tokens", "--method", method, "-o", tmp_path / "law.json"]
    result = _run("fit", tmp_path / "runs.csv", *words)
    assert result.exit_code == code, result.output
    assert text in result.stderr.splitlines()[0]
    assert result.stdout == ""
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(("by", "code"), [("width", 3), ("colour", 2)])
def test_a_law_of_an_earlier_fit_is_left_and_said_to_be_so(demo, tmp_path, by, code):
    out = tmp_path / "law.json"
    out.write_bytes((demo / "law.json").read_bytes())
    result = _run("fit", demo, "--by", by, "-o", out)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == f"note: {out} is from an earlier fit and was left as it is"
    assert out.read_bytes() == (demo / "law.json").read_bytes()
    assert "note:" not in _run("fit", demo, "--by", by, "-o", tmp_path / "new.json").stderr


def test_transfer_and_recommend_write_what_to_run(demo, tmp_path):
    points = tmp_path / "more.yaml"
    for words, name, sizes in (
        (["transfer", demo, "--over", "depth"], "scale.depth", {4, 8}),
        (["recommend", demo / "law.json", "--tokens", "1e5", "--optimizer", "muon"], "scale.depth", {2}),
        (["recommend", demo / "law.json", "--tokens", "1e5", "--depth", "8"], "scale.depth", {8}),
    ):
        assert _run(*words, "--points", points).exit_code == 3
        rows = yaml.safe_load(points.read_text())["blocks"]["more"]["points"]
        assert {row[name] for row in rows} == sizes
        assert all(row["base_lr"] > 0 for row in rows)


def test_a_wrong_option_is_one_line_too(demo):
    command = [
        sys.executable,
        "-m",
        "hyperp.analysis.cli",
        "recommend",
        str(demo / "law.json"),
        "--colour",
        "red",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: No such option: --colour\n"
