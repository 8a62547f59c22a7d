"""hyperp-law fit: laws of synthetic and public runs, refusals with the next runs, and the files written."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.analysis.law_command import one_line, run, says, shared_table

FOREIGN = ["--map", "loss=smooth loss", "--map", "batch_tokens=bs*2048", "--map", "tokens=D"]


def test_fit_prints_and_writes_the_same_law(demo, tmp_path):
    out = tmp_path / "law.json"
    result = run(
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


def test_given_optima_give_the_published_exponent_in_either_space(tmp_path):
    """Five MuonH optima (marin issue 7856): -0.5563 +- 0.0287 in log space, -0.607 in linear space."""
    table = shared_table("marin7856_muonh_constlr_optima.csv")
    fit = ["fit", table, "--optima", "--map", "lr=lr_opt", "--by", "tokens", "-o", tmp_path / "law.json"]
    assert run(*fit).exit_code == 0
    law = json.loads((tmp_path / "law.json").read_text())
    (beside,) = law["beside"]
    assert beside["method"] == "least-squares"
    found = [beside["exponents"]["tokens"], *beside["intervals"]["tokens"]]
    np.testing.assert_allclose(found, [-0.5563, -0.6477, -0.4649], rtol=0, atol=5e-5)
    np.testing.assert_allclose(law["exponents"]["tokens"]["value"], -0.556, rtol=0, atol=2e-3)
    # The optima bend: a quadratic by hand is 0.056 +- 0.012, and says 0.00131 at 8 times the range.
    bend = law["bends"]["tokens^2"]
    np.testing.assert_allclose(bend["data_value"], 0.056, rtol=0, atol=3e-3)
    assert 0.008 < bend["data_se"] < 0.03
    (warning,) = [line for line in law["warnings"] if line.startswith("the optima bend in log tokens")]
    assert "says 0.00131, this one 0.000" in warning
    assert run(*fit, "--space", "linear").exit_code == 0
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["space"] == "linear"
    np.testing.assert_allclose(law["exponents"]["tokens"]["value"], -0.607, rtol=0, atol=5e-4)


def test_public_width_sweeps_give_their_exponents_and_name_the_curves_without_one(tmp_path):
    """Spectral Sphere -0.07 +- 0.01, Muon +0.05 +- 0.03; AdamW's erratic curves hardly tell an exponent."""
    table = shared_table("sso_mup_lr_sweep.csv")
    words = ["fit", table, "--map", "width=hidden_size", "--by", "width", "-o", tmp_path / "law.json"]
    for name, low, high in (("spball", -0.08, -0.06), ("muon", 0.02, 0.08)):
        assert run(*words, "--where", f"optimizer={name}").exit_code == 0
        law = json.loads((tmp_path / "law.json").read_text())
        assert low < law["exponents"]["width"]["value"] < high
    assert run(*words, "--where", "optimizer=adamw").exit_code == 0
    e = json.loads((tmp_path / "law.json").read_text())["exponents"]["width"]
    assert e["low"] < -0.3
    assert e["high"] > 0.1
    result = run(*words, "--where", "optimizer=adamw", "--method", "shared")
    assert result.exit_code == 3
    assert "4 slices, of which 2 bracketed" in result.stderr
    assert "width 512: " in result.stderr


def test_rate_and_batch_together_from_public_runs(tmp_path):
    table = shared_table("steplaw_dense_lr_bs_loss.csv")
    words = [*FOREIGN, "--by", "N,tokens", "--tuned", "lr,batch_tokens", "--also-by", "tokens"]
    assert run("fit", table, *words, "-o", tmp_path / "law.json").exit_code == 0
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["method"] == "hierarchical"
    assert sum(s["used"] for s in law["slices"]) == 17
    # Published over more runs: N^-0.713 D^0.307, batch D^0.571.
    assert -0.9 < law["exponents"]["N"]["value"] < -0.65
    assert 0.15 < law["exponents"]["tokens"]["value"] < 0.31
    assert 0.5 < law["also"]["batch_tokens"]["exponents"]["tokens"]["value"] < 0.7
    assert max(o["loss_penalty"] for o in law["leave_one_out"]) < 0.002


def test_a_foreign_grid_over_rate_and_batch_gives_the_published_pool(tmp_path):
    """StepLaw's dense runs by their recipe: lr = 77.7 N^-0.766 D^0.197, batch = 0.209 D^0.613."""
    table = shared_table("steplaw_dense_lr_bs_loss.csv")
    words = [*FOREIGN, "--by", "N,tokens", "--tuned", "lr,batch_tokens", "--also-by", "tokens"]
    result = run("fit", table, *words, "--method", "pool", "-o", tmp_path / "law.json")
    assert result.exit_code == 0, result.stderr
    law = json.loads((tmp_path / "law.json").read_text())
    found = [np.exp(law["a"]["value"]), *(law["exponents"][n]["value"] for n in ("N", "tokens"))]
    np.testing.assert_allclose(found, [77.7, -0.766, 0.197], rtol=1e-3, atol=5e-4)
    batch = law["also"]["batch_tokens"]
    found = [np.exp(batch["a"]["value"]), batch["exponents"]["tokens"]["value"]]
    np.testing.assert_allclose(found, [0.209, 0.613], rtol=3e-3, atol=5e-4)
    answer = json.loads(
        run("recommend", tmp_path / "law.json", "--tokens", "2e11", "--at", "N=1e9", "--json").stdout
    )
    assert answer["also"]["batch_tokens"]["low"] < answer["also"]["batch_tokens"]["value"]
    assert "argmin puts the exponent of tokens" in result.stdout


def test_an_exponent_of_a_size_that_does_not_vary_is_refused(tmp_path):
    """StepLaw's mixtures of experts: total N moves by a quarter of a percent."""
    table = shared_table("steplaw_moe_lr_bs_loss.csv")
    words = [*FOREIGN, "--tuned", "lr,batch_tokens", "--method", "pool", "-o", tmp_path / "law.json"]
    result = run("fit", table, "--by", "N,Na,tokens", *words)
    assert result.exit_code == 3
    assert says(result.stderr, "N does not vary ... 2.15061e+09 to 2.15619e+09")
    assert says(
        run("fit", table, "--by", "N,tokens", *words).stderr,
        "error: two finished runs ... --where ... --slice",
    )
    assert run("fit", table, "--by", "Na,tokens", *words).exit_code == 0  # active parameters do vary


def test_a_fit_of_an_unfinished_sweep_asks_for_the_rest_of_every_slice(make_ladder, tmp_path):
    """Two slices done, one with two of its rates, one failed, one not begun."""
    frame = make_ladder(seeds=1)
    later = frame["tokens"] > 65536
    kept = ~later | ((frame["tokens"] == 131072) & (frame["lr"] < 2**-7))
    status = np.where(kept, "finished", "planned")
    status[(frame["tokens"] == 262144) & (frame["lr"] > 2**-2)] = "running"
    frame = frame.assign(status=status, loss=frame["loss"].where(kept))
    frame.to_parquet(tmp_path / "runs.parquet")
    result = run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json")
    text = "refused: 25 planned runs ... (24 planned, 1 running) ... `hyperp-sweep run` ... tokens"
    one_line(result, 3, text)
    rows = yaml.safe_load((tmp_path / "law.points.yaml").read_text())["blocks"]["law_points"]["points"]
    counts = {size: sum(r["scale.tokens"] == size for r in rows) for size in (131072, 262144, 524288)}
    assert counts[262144] == counts[524288] == 9
    assert counts[131072] >= 7
    planned = set(frame["lr"][frame["tokens"] == 524288])  # to the last digit, or they would be other runs
    assert {r["base_lr"] for r in rows if r["scale.tokens"] == 524288} == planned
    assert len(rows) == sum(counts.values())


def test_a_slice_that_never_ran_gets_the_rates_of_the_others(make_ladder, tmp_path):
    frame = make_ladder(seeds=1, tokens=(32768, 65536, 131072))
    gone = frame["tokens"] == 131072
    frame.loc[gone, ["lr", "base_lr", "loss"]] = np.nan
    frame.assign(status=np.where(gone, "failed", "finished")).to_parquet(tmp_path / "runs.parquet")
    result = run("fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json", "--json")
    (point,) = json.loads(result.stdout)["next"]
    assert point["tokens"] == 131072
    assert len(point["lr"]) == 9
    assert says(result.stderr, "refused: 9 planned runs ... (9 failed)")


def test_edges_are_refused_with_rates_to_add(make_ladder, tmp_path):
    make_ladder(octaves=(-14, -9)).to_parquet(tmp_path / "runs.parquet")
    fit = ["fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json"]
    result = run(*fit)
    one_line(result, 3, "refused: ... tokens ... not identified")
    assert (
        "run next: optimizer=muonh parametrization=hyperp schedule=linear width=32 depth=2 tokens=32768"
        in result.stderr
    )
    assert "lr=0.003906, 0.007812" in result.stderr
    answer = json.loads(run(*fit, "--json").stdout)
    assert len(answer["next"]) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["law.points.yaml", "runs.parquet"]
    points = yaml.safe_load((tmp_path / "law.points.yaml").read_text())["blocks"]["law_points"]["points"]
    assert len(points) == 10
    assert {p["scale.tokens"] for p in points} == {2**k for k in range(15, 20)}
    assert all(0.003 < p["base_lr"] < 0.01 for p in points)
    checked = run("check", tmp_path)
    assert checked.exit_code == 0
    assert "edge high" in checked.stdout
    assert "add the rates 0.003906, 0.007812" in checked.stdout


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda f: f.assign(lr=f["lr"].where(f.index != 3)), 2, "column lr must be ... in row 4"),
        (lambda f: f.assign(lr=f["lr"].where(f.index != 3, np.inf)), 2, "got inf in row 4"),
        (
            lambda f: f.assign(tokens=f["tokens"].astype(object).where(f.index != 3, "x")),
            2,
            "got 'x' in row 4",
        ),
        (lambda f: f.assign(loss=-f["loss"]), 2, "column loss must be ... finished"),
        (lambda f: f.assign(loss=np.nan), 3, "0 rate(s)"),
        (lambda f: pd.concat([f, f[:1]]), 2, "lr=0.00195312 and seed=0"),
        (lambda f: f[:0], 2, "no rows"),
        (lambda f: f[f["tokens"] == 65536], 3, "tokens ... one value, 65536"),
        (lambda f: f[f["lr"] == 2**-5], 3, "1 rate(s) ... at least 3"),
        (lambda f: f.assign(loss=3.0), 3, "not identified"),
        (lambda f: f.assign(status="diverged", loss=np.nan), 3, "0 rate(s)"),
    ],
)
@pytest.mark.parametrize("method", ["shared", "two-stage", "pool", "argmin"])
def test_a_table_that_cannot_answer_says_why_in_one_line(make_ladder, tmp_path, change, code, text, method):
    change(make_ladder()).to_csv(tmp_path / "runs.csv", index=False)
    words = ["--by", "tokens", "--method", method, "-o", tmp_path / "law.json"]
    result = run("fit", tmp_path / "runs.csv", *words)
    assert result.exit_code == code, result.output
    assert says(result.stderr.splitlines()[0], text)
    assert result.stdout == ""
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(("by", "code"), [("width", 3), ("colour", 2)])
def test_a_failed_fit_leaves_an_earlier_law_and_says_so(demo, tmp_path, by, code):
    out = tmp_path / "law.json"
    out.write_bytes((demo / "law.json").read_bytes())
    result = run("fit", demo, "--by", by, "-o", out)
    assert result.exit_code == code
    assert says(result.stderr.splitlines()[-1], f"note: {out} ... earlier fit")
    assert out.read_bytes() == (demo / "law.json").read_bytes()
    assert "note:" not in run("fit", demo, "--by", by, "-o", tmp_path / "new.json").stderr


def test_sizes_may_be_repeated_or_listed(make_ladder, tmp_path):
    frames = [make_ladder(covariates={"width": width}, rng_seed=width) for width in (16, 32, 64)]
    pd.concat(frames).to_parquet(tmp_path / "runs.parquet")
    laws = []
    for words in (["--by", "tokens", "--by", "width"], ["--by", "tokens,width"]):
        result = run("fit", tmp_path, *words, "-o", tmp_path / "law.json")
        assert result.exit_code == 0, result.stderr
        laws.append(json.loads((tmp_path / "law.json").read_text()))
    assert laws[0]["covariates"] == laws[1]["covariates"] == ["tokens", "width"]
    assert laws[0]["command"] == laws[1]["command"]
