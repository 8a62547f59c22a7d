"""hyperp-law opinion: the tables and words, JSON, a trainer's configuration, exit codes and errors."""

import json

import pytest

from tests.analysis.law_command import one_line, run, says

RUN = ["opinion", "--optimizer", "muonh", "--tokens", "1e13", "--batch-tokens", "33.6e6"]
SIZES = ["--width", "2560", "--depth", "26"]


def test_the_opinion_in_words_and_as_json():
    text = run(*RUN, *SIZES, "--lr", "0.0037").stdout
    answer = json.loads(run(*RUN, *SIZES, "--lr", "0.0037", "--json").stdout)
    first = answer["rows"][0]
    assert first["law"]["id"] == "hyperp"
    assert says(text, f"hyperp ... {first['lr']:.4g} ... tokens 60.1 x")
    assert "Laws of other optimizers, whose rates mean another step and are not converted" in text
    assert answer["words"][0] in text
    assert "arXiv 2603.28743" in text
    assert "mup needs a reference run of adamw" in text


def test_your_own_law_and_a_reference(demo):
    text = run("opinion", "--optimizer", "muonh", "--tokens", "5.2e5", "--law", demo / "law.json").stdout
    assert f"{demo / 'law.json'} says " in text
    found = run("opinion", "--optimizer", "adamw", "--width", "4096", "--reference", "width=1024 lr=0.01")
    assert says(found.stdout, "mup ... 0.0025")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer", "muonhh", "--tokens", "1e9"], "got 'muonhh'; did you mean muonh?"),
        (
            ["--optimizer", "muonh", "--tokens", "0"],
            "tokens must be a whole number of at least 1 ... got '0'",
        ),
        (["--optimizer", "muonh", "--tokens", "nan"], "tokens must be ... got 'nan'"),
        (
            ["--optimizer", "muonh", "--tokens", "1e9", "--lr", "nan"],
            "lr must be finite and positive, got nan",
        ),
        (["--tokens", "1e9"], "--optimizer must be given"),
        (["--optimizer", "muonh"], "tokens, batch_tokens, width, depth or params must be given"),
        (["--optimizer", "muonh", "--width", "8", "--strict"], "--strict must come with --config"),
        (["--optimizer", "muonh", "--width", "8", "--reference", "width=8"], "reference.lr must be given"),
        (["--optimizer", "muonh", "--width", "8", "--reference", "x"], "--reference must be such as ... 'x'"),
        (["--config", "no-such-file.toml"], "no-such-file.toml"),
    ],
)
def test_bad_input_is_one_line(words, message):
    one_line(run("opinion", *words), 2, message)


def test_the_doctor_names_findings_and_only_strict_makes_them_a_failure(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "optimizer: muonh\ntokens: 1.0e+12\nbatch_tokens: 512\nsequence_length: 4096\nwidth: 2560\n"
        "depth: 26\n"
        "lr: {hidden: 0.004}\nweight_decay: {hidden: 0.1}\n"
    )
    result = run("opinion", "--config", path)
    assert result.exit_code == 0
    assert "batch-in-sequences: batch_tokens is 512" in result.stdout
    assert "decay-on-a-sphere: muonh" in result.stdout
    assert "The planned rate of 0.004 " in result.stdout
    assert run("opinion", "--config", path, "--strict").exit_code == 1
    answer = json.loads(run("opinion", "--config", path, "--json").stdout)
    assert [one["rule"] for one in answer["findings"]] == ["batch-in-sequences", "decay-on-a-sphere"]
    assert answer["opinion"]["plan"]["lr"] == 0.004


def test_options_go_before_the_configuration(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("optimizer: muonh\ntokens: 1.0e+12\nlr: {hidden: 0.004}\nweight_decay: {hidden: 0.1}\n")
    options = ["--tokens", "2e12", "--lr", "0.003", "--weight-decay", "0", "--schedule", "cosine"]
    result = run("opinion", "--config", path, *options, "--strict", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["config"]["target"]["tokens"] == 2e12
    assert answer["opinion"]["plan"]["lr"] == 0.003
    assert answer["opinion"]["plan"]["schedule"] == "cosine"
    one_line(run("opinion", "--config", path, "--optimizer", "muonhh"), 2, "did you mean muonh?")


def test_without_an_optimizer_there_are_findings_and_no_opinion(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("steps: 10\nwarmup_steps: 20\n")
    result = run("opinion", "--config", path)
    assert result.exit_code == 0
    assert "warmup-beyond-the-run: the warm-up takes 20 steps" in result.stdout
    assert "No opinion: give --optimizer" in result.stdout
