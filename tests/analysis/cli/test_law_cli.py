"""The command hyperp-law: help, options, one-line errors, exit codes, and no output without an answer."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hyperp.analysis.cli.main import app
from tests.analysis.law_command import one_line, run

COMMANDS = (
    "import",
    "check",
    "fit",
    "recommend",
    "next",
    "opinion",
    "validate",
    "report",
    "loss",
    "leverage",
    "isoflop",
    "transfer",
    "coordinates",
)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example_and_says_the_exit_codes(command, flag):
    result = run(command, flag)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert re.search(rf"Examples?: hyperp-law {command} ", text)
    assert re.search(r"Exit codes: 0 .* 2 .* 3 ", text)


def test_the_list_of_commands_cuts_no_summary():
    text = run("-h").stdout
    assert set(COMMANDS) == {line.split()[0] for line in text.partition("Commands:")[2].strip().splitlines()}
    assert "..." not in text.partition("Options:")[2]


@pytest.mark.parametrize(("old", "new"), [("--out", "--output"), ("--over", "--tuned")])
def test_former_names_of_options_are_accepted_and_not_listed(demo, tmp_path, old, new):
    out = tmp_path / "law.json"
    words = {"--output": out, "--tuned": "lr", "--by": "tokens"}
    for words_of_old in ([old, words[new]], [f"{old}={words[new]}"]):
        rest = [word for name, value in words.items() if name != new for word in (name, value)]
        assert run("fit", demo, *words_of_old, *rest).exit_code == 0
        assert out.is_file()
        out.unlink()
    text = run("fit", "-h").stdout
    assert f"{new} " in text
    assert f"{old} " not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "found", "absent"),
    [
        ("rec", "recommend", "validate"),
        ("fit --method po", "pool", "argmin"),
        ("fit --tu", "--tuned", "--by"),
    ],
)
def test_the_shell_completes_commands_options_and_methods(shell, typed, found, absent):
    """As the shell asks: what is typed comes in the environment, the answer goes to standard output."""
    code = "import sys; sys.argv[:] = ['hyperp-law']; from hyperp.analysis.cli.main import main; main()"
    asked = {
        "_HYPERP_LAW_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": f"hyperp-law {typed}",
        "COMP_CWORD": str(len(typed.split())),
        "_TYPER_COMPLETE_ARGS": f"hyperp-law {typed}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    assert absent not in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ([], 0, "Commands:\n", ""),
        (["--version"], 0, "hyperp-law 0.", ""),
        (["chek"], 2, "", "error: No such command"),
    ],
)
def test_no_arguments_print_the_help_and_a_typo_is_an_error(words, code, out, err):
    command = [sys.executable, "-m", "hyperp.analysis.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert out in done.stdout
    assert err in done.stderr
    assert bool(err) == bool(done.stderr)
    assert bool(out) == bool(done.stdout)


def test_check_describes_the_table(demo):
    result = run("check", demo)
    assert result.exit_code == 0
    assert "4 diverged, 118 finished" in result.stdout
    assert "7 slices" in result.stdout
    answer = json.loads(run("check", demo, "--json").stdout)
    assert answer["statuses"] == {"diverged": 4, "finished": 118}
    verdicts = {v["covariate"]: v for v in answer["identifiable"]}
    assert verdicts["tokens"]["identified"]
    assert verdicts["tokens"]["groups"] == ["muonh, hyperp, width 32"]
    assert verdicts["tokens"]["by"] == ["tokens"]
    assert verdicts["width"]["by"] == ["width", "tokens"]  # not alone
    assert "2 slices, of which 2 bracketed, 3 needed" in verdicts["width"]["reason"]
    assert "yes, with --by width,tokens" in result.stdout
    assert {s["state"] for s in answer["slices"]} == {"bracketed"}


def test_check_names_the_group_where_nothing_else_varies(make_ladder, tmp_path):
    make_ladder(tokens=(32768, 65536, 131072)).to_parquet(tmp_path / "runs.parquet")
    (verdict,) = json.loads(run("check", tmp_path, "--json").stdout)["identifiable"]
    assert (verdict["covariate"], verdict["groups"]) == ("tokens", ["one group of 3 slices"])
    fit = ["fit", tmp_path, "--by", "tokens", "-o", tmp_path / "law.json"]
    assert "3 slices, hierarchical" in run(*fit).stdout
    text = run(*fit, "--method", "shared").stdout
    assert "1 degree of freedom, shared" in text
    assert "1 degrees" not in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tuned", "foo"], "--tuned must be lr ... got foo"),
        (["--tuned", "loss"], "--tuned must be lr ... got loss"),
        (
            ["--tuned", "lr,foo"],
            "--tuned must be lr ... width ... got lr,foo",
        ),
        (["--tuned", "lr,loss"], "--tuned must be lr ... width or depth ... got lr,loss"),
        (["--by", "foo"], "covariate must ... width ... got 'foo'"),
        (
            ["--by", "batch_tokens", "--tuned", "lr,batch_tokens"],
            "batch_tokens ... --by, --fix and --tuned",
        ),
        (["--window", "-1"], "--window must be ... got -1"),
        (["--window", "nan"], "--window must be ... got nan"),
        (["--method", "guess"], "--method must be ... shared, two-stage ... got 'guess'"),
    ],
)
def test_check_refuses_what_fit_refuses(demo, tmp_path, words, text):
    one_line(run("check", demo, *words), 2, text)
    by = [] if "--by" in words else ["--by", "tokens"]
    one_line(run("fit", demo, *by, *words, "-o", tmp_path / "law.json"), 2, text)


def test_check_takes_a_column_tuned_with_the_rate_as_fit_does(make_ladder, tmp_path):
    frame = pd.concat(
        make_ladder(covariates={"batch_tokens": b}, log2_at_64k=c, tokens=(65536,))
        for b, c in ((256, -5.2), (512, -4.7), (1024, -4.2))
    )
    frame.to_parquet(tmp_path / "runs.parquet")
    answer = json.loads(run("check", tmp_path, "--tuned", "lr,batch_tokens", "--json").stdout)
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
        one_line(run(*words), 2, f"{law} ... changed")


def test_an_output_never_overwrites_a_table(demo):
    before = (demo / "runs.parquet").read_bytes()
    assert run("fit", demo, "--by", "tokens", "-o", demo / "runs.parquet").exit_code == 2
    assert run("next", demo / "law.json", "-o", demo / "runs.parquet").exit_code == 2
    assert (demo / "runs.parquet").read_bytes() == before


def test_transfer_gives_drift_for_both_optimizers(demo):
    answers = {
        a["context"]["optimizer"]: a
        for a in json.loads(run("transfer", demo, "--over", "width", "--json").stdout)
    }
    for name, truth in (("adamw", -1.0), ("muonh", -0.2)):
        drift = answers[name]["drift"]
        assert drift["low"] < truth < drift["high"]
        assert abs(drift["octaves_per_doubling"] - truth) < 0.25
    assert answers["adamw"]["penalty"]["nats"] > 5 * answers["muonh"]["penalty"]["nats"] > 0
    assert "Transfer over width" in run("transfer", demo, "--over", "width").stdout


def test_validate_passes_or_fails_and_the_report_says_which(demo, make_curve, tmp_path):
    law = json.loads((demo / "law.json").read_text())
    rate = json.loads(run("recommend", demo / "law.json", "--tokens", "524288", "--json").stdout)["lr"]
    held = {**law["held"], "tokens": 524288}
    rates, rng = float(f"{rate:.4g}") * np.array([0.5, 1, 2]), np.random.default_rng(0)
    for shift, code, word in ((0.0, 0, "PASS"), (1.0, 1, "FAIL")):
        points = make_curve(np.log2(rate) + shift, rates, 2, rng, noise=0.001)
        points.assign(**law["context"], **held).to_csv(tmp_path / f"{word}.csv", index=False)
        result = run("validate", demo / "law.json", tmp_path / f"{word}.csv", "-o", tmp_path / f"{word}.json")
        assert result.exit_code == code
        assert word in result.stdout
        assert (word in result.stderr) == (code == 1)
        assert json.loads((tmp_path / f"{word}.json").read_text())["passed"] == (code == 0)
    report = ["report", demo / "law.json", "-o", tmp_path / "report", "--check"]
    for word in ("PASS", "FAIL"):
        assert run(*report, tmp_path / f"{word}.csv").exit_code == 0
        assert f"**{word}: " in (tmp_path / "report" / "report.md").read_text()


def test_outputs_make_their_folder_and_are_named_as_asked(demo, tmp_path):
    deep = tmp_path / "no" / "dir"
    assert run("fit", demo, "--by", "tokens", "-o", deep / "law.json").exit_code == 0
    assert run("next", deep / "law.json", "-o", tmp_path / "new" / "points.yaml").exit_code == 0
    assert run("fit", demo, "--by", "width", "-o", tmp_path / "other" / "x.json").exit_code == 3
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["x.points.yaml"]
    (tmp_path / "file").write_text("")
    result = run("fit", demo, "--by", "tokens", "-o", tmp_path / "file" / "x.json")
    one_line(result, 2, f"error: cannot write {tmp_path}/file/x.json ... {tmp_path}/file is not a folder")
    result = run("fit", demo, "--by", "width", "-o", tmp_path / "file" / "x.json")  # nowhere to put points
    assert result.exit_code == 3
    assert f"note: cannot write {tmp_path}/file/x.points.yaml" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["check", "absent.parquet"], 2, "RUNS=absent.parquet"),
        (["fit", "RUNS", "--by", "flops", "-o", "OUT"], 2, "covariate must ... width, depth ... got 'flops'"),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--where", "optimizer"],
            2,
            "--where must be COLUMN=VALUE ... got 'optimizer'",
        ),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--fix", "depth=x"],
            2,
            "--fix must be ... got 'depth=x'",
        ),
        (
            ["fit", "RUNS", "--by", "tokens", "-o", "OUT", "--window", "-1"],
            2,
            "--window must be ... got -1",
        ),
        (["fit", "RUNS", "--by", "width", "-o", "OUT"], 3, "width ... not identified"),
        (["recommend", "LAW"], 2, "needs --tokens"),
        (["recommend", "LAW", "--tokens", "many"], 2, "tokens must be ... got 'many'"),
        (["recommend", "LAW", "--tokens", "-3"], 2, "tokens must be ... at least 1 ... got '-3'"),
        (["recommend", "LAW", "--tokens", "1e5", "--depth", "8"], 3, "holds depth at 2"),
        (
            ["recommend", "LAW", "--tokens", "1e5", "--json", "--hydra"],
            2,
            "--json and --hydra",
        ),
        (["recommend", "absent.json", "--tokens", "1e5"], 2, "absent.json"),
        (
            ["recommend", "LAW", "--tokens", "5e4", "--at", "tokens=6e4"],
            2,
            "tokens must ... once, got 50000 and 6e4",
        ),
        (
            ["recommend", "LAW", "--at", "tokens=1", "--at", "tokens=2"],
            2,
            "tokens must be given once, got 1 and 2",
        ),
        (["check", "RUNS", "--where", "width=32", "--where", "width=64"], 2, "--where ... width ... twice"),
        (["check", "RUNS", "--map", "foo=lr"], 2, "--map foo=lr: NAME must be ... got foo"),
        (["check", "RUNS", "--map", "foo=lr", "--by", "foo"], 2, "--map foo=lr: lr must not ... second name"),
        (["check", "RUNS", "--map", "loss=lr*2"], 2, "--map loss=lr*2: lr must not ... second name"),
        (["transfer", "RUNS", "--over", "colour"], 2, "covariate must ... width ... got 'colour'"),
        (["transfer", "RUNS", "--over", "depth"], 3, "depth has one value"),
        (["report", "LAW", "-o", "LAW"], 2, "must be a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(demo, tmp_path, words, code, text):
    places = {"RUNS": demo, "LAW": demo / "law.json", "OUT": tmp_path / "out.json"}
    one_line(run(*(places.get(word, word) for word in words)), code, text)
    assert {p.name for p in tmp_path.iterdir()} <= ({"out.points.yaml"} if code == 3 else set())


def test_an_unknown_option_is_one_line_too(demo):
    command = [
        sys.executable,
        "-m",
        "hyperp.analysis.cli.main",
        "recommend",
        str(demo / "law.json"),
        "--xyzzy",
        "red",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "hyperp-law: error: No such option: --xyzzy\n"


def test_guesses_are_told_on_stderr_and_standard_input_is_a_table(make_ladder, tmp_path, monkeypatch):
    frame = make_ladder().rename(columns={"lr": "config.optim.lr", "tokens": "train_tokens"})
    (tmp_path / "runs.csv").write_text(frame.to_csv(index=False))
    words = ("--by", "tokens", "-o", tmp_path / "law.json", "--json")
    from_file = run("fit", tmp_path / "runs.csv", *words)
    told = ["read lr from config.optim.lr", "read tokens from train_tokens"]
    assert from_file.stderr.splitlines()[:2] == told
    result = CliRunner().invoke(app, ["fit", "-", *map(str, words)], input=frame.to_csv(index=False))
    assert result.stderr.splitlines()[:2] == told
    first, second = json.loads(from_file.stdout), json.loads(result.stdout)
    assert first["records"] == str(tmp_path / "runs.csv")
    assert second["records"] == "-"
    assert first["records_sha256"] == second["records_sha256"]
    assert first["exponents"] == second["exponents"]
    assert not any("read lr" in line for line in first["warnings"])


@pytest.mark.parametrize("command", ["check", "fit", "loss"])
def test_malformed_tables_are_one_line(tmp_path, command):
    path = tmp_path / "runs.csv"
    path.write_text("lr,loss,tokens\n0.1,3.5,8\n0.2,3.4\n")
    words = {
        "check": (),
        "fit": ("--by", "tokens", "-o", tmp_path / "law.json"),
        "loss": ("-o", tmp_path / "l.json"),
    }
    result = run(command, path, *words[command])
    one_line(result, 2, "runs.csv: row 2 (line 3) has 2 values, but the header names 3 columns")
