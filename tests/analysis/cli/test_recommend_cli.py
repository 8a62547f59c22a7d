"""hyperp-law recommend and next: the rate in three forms, what the law refuses, and the runs to do next."""

import json

import yaml

from tests.analysis.law_command import one_line, run, says


def test_recommend_in_three_forms(demo):
    law = demo / "law.json"
    text, words = (
        run("recommend", law, "--tokens", "5.2e5"),
        run("recommend", law, "--tokens", "520000", "--hydra"),
    )
    answer = json.loads(run("recommend", law, "--tokens", "5.2e5", "--json").stdout)
    assert answer["target"]["tokens"] == 520000
    assert f"lr = {answer['lr']:.4g}" in text.stdout
    assert "95% prediction interval" in text.stdout
    assert "-0.32 (10B to 166B tokens" in text.stdout
    assert words.stdout.split()[:3] == ["optim=muonh", "parametrization=hyperp", "schedule=linear"]
    assert words.stdout.split()[3] == f"base_lr={answer['lr']:.6g}"
    assert {"scale.tokens=520000", "scale.width=32", "scale.depth=2"} <= set(words.stdout.split()[4:])
    assert "warning: tokens=520000 lies 1.98 times outside" in text.stderr
    assert "note: the fitted runs had lr = 1 base_lr" in words.stderr


def test_a_law_refuses_other_optimizers_and_far_targets(demo, tmp_path):
    law = demo / "law.json"
    result = run("recommend", law, "--tokens", "3e5", "--optimizer", "muon")
    one_line(result, 3, "optimizer 'muonh' ... 'muon'")
    assert run("recommend", law, "--tokens", "3e5", "--optimizer", "muonh").exit_code == 0
    far = ["recommend", law, "--tokens", "4e6"]
    result = run(*far, "--points", tmp_path / "far.yaml")
    assert result.exit_code == 3
    assert says(result.stderr, "tokens=4000000 lies 15.3 times ... 32768 to 262144")
    points = yaml.safe_load((tmp_path / "far.yaml").read_text())["blocks"]["far"]["points"]
    assert f"such as tokens={points[0]['scale.tokens']}" in result.stderr
    assert {p["scale.tokens"] for p in points} == {1024000}
    assert "4e+05 or more" in result.stderr
    # The law itself reaches only as far as the first of several steps.
    result = run("recommend", law, "--tokens", "1e13", "--points", tmp_path / "far.yaml")
    assert says(result.stderr, "run a slice at tokens=2621440 ... 1e+12 or more is enough")
    points = yaml.safe_load((tmp_path / "far.yaml").read_text())["blocks"]["far"]["points"]
    assert {p["scale.tokens"] for p in points} == {2621440}
    below = run("recommend", law, "--tokens", "600").stderr
    assert "6e+03 or less" in below
    assert "tokens=4434" in below  # half way, in log
    assert run(*far, "--extrapolate").exit_code == 0


def test_next_writes_points_and_says_how_to_run_them(demo, tmp_path):
    result = run("next", demo / "law.json", "--tokens", "1e6", "-o", tmp_path / "points.yaml")
    assert result.exit_code == 0, result.stderr
    assert f"+{tmp_path.name}@sweep=points" in result.stdout
    assert yaml.safe_load((tmp_path / "points.yaml").read_text())["blocks"]["points"]["points"]


def test_a_very_wide_interval_is_refused_with_the_runs_that_would_narrow_it(make_ladder, tmp_path):
    frame = make_ladder(tokens=(32768, 40000, 50000), scatter=2.0, octaves=(-12, 2))
    frame.to_parquet(tmp_path / "runs.parquet")
    law, points = tmp_path / "law.json", tmp_path / "points.yaml"
    assert run("fit", tmp_path, "--by", "tokens", "-o", law).exit_code == 0
    words = ["recommend", law, "--tokens", "262144"]
    text = "interval of lr spans a factor of"
    for more in ([], ["--hydra"]):
        refused = run(*words, *more, "--points", points)
        assert (refused.exit_code, refused.stdout) == (3, "")
        assert text in refused.stderr
        assert "run next:" in refused.stderr
    refused = run(*words, "--json")
    assert refused.exit_code == 3
    assert text in json.loads(refused.stdout)["refused"]
    assert yaml.safe_load(points.read_text())["blocks"]["points"]["points"]
    shown = run(*words, "--extrapolate")
    assert shown.exit_code == 0
    assert "hardly identify it" in shown.stderr


def test_next_fails_if_no_offered_slice_is_new(demo, tmp_path):
    for among in ("width=64", "tokens=65536"):
        result = run("next", demo / "law.json", "--among", among, "-o", tmp_path / "points.yaml")
        assert result.exit_code == 2
        assert "--among" in result.stderr
        assert not (tmp_path / "points.yaml").exists()
    result = run("next", demo / "law.json", "--among", "tokens=1e5,2e5", "-o", tmp_path / "points.yaml")
    assert says(result.stderr, "--among must be NAME=SIZE ... got '2e5'")


def test_a_refusal_for_another_schedule_asks_for_runs_with_it(demo, tmp_path):
    points = tmp_path / "points.yaml"
    words = ["recommend", demo / "law.json", "--tokens", "5e4", "--schedule", "cosine", "--points", points]
    result = run(*words)
    assert result.exit_code == 3
    runs = [line for line in result.stderr.splitlines() if line.startswith("run next:")]
    assert len(runs) == 4
    assert all("optimizer=muonh parametrization=hyperp schedule=cosine width=32" in line for line in runs)
    assert not any("data=" in line or "metric=" in line for line in runs)
    assert "schedule=cosine" in yaml.safe_load(points.read_text())["blocks"]["points"]["overrides"]


def test_hydra_overrides_need_an_optimizer_of_hyperp_train_and_base_lr(make_ladder, tmp_path):
    law = tmp_path / "law.json"
    recommend = ["recommend", law, "--tokens", "1e5", "--hydra"]
    for change, text in (
        (lambda f: f.assign(optimizer="foo"), "--hydra: ... optimizer=foo"),
        (lambda f: f.drop(columns="base_lr"), "--hydra: ... base_lr"),
    ):
        change(make_ladder()).to_parquet(tmp_path / "runs.parquet")
        assert run("fit", tmp_path, "--by", "tokens", "-o", law).exit_code == 0
        result = run(*recommend)
        assert result.exit_code == 2
        assert says(result.stderr.splitlines()[-1], text)
        rate = json.loads(run(*recommend[:-1], "--json").stdout)["lr"]
        assert f"use the plain rate, lr={rate:.6g}" in result.stderr
        assert "run next" not in result.stderr
        assert result.stdout == ""


def test_transfer_and_recommend_write_what_to_run(demo, tmp_path):
    points = tmp_path / "more.yaml"
    for words, name, sizes in (
        (["transfer", demo, "--over", "depth"], "scale.depth", {4, 8}),
        (["recommend", demo / "law.json", "--tokens", "1e5", "--optimizer", "muon"], "scale.depth", {2}),
        (["recommend", demo / "law.json", "--tokens", "1e5", "--depth", "8"], "scale.depth", {8}),
    ):
        assert run(*words, "--points", points).exit_code == 3
        rows = yaml.safe_load(points.read_text())["blocks"]["more"]["points"]
        assert {row[name] for row in rows} == sizes
        assert all(row["base_lr"] > 0 for row in rows)


def test_for_prints_what_a_trainer_takes_and_equals_the_older_options(demo, tmp_path):
    words = ["recommend", demo / "law.json", "--tokens", "5.2e5"]
    text = run(*words, "--for", "megatron", "--sequence-length", "128")
    assert text.exit_code == 0, text.stderr
    lines = [line.strip() for line in text.stdout.splitlines()]
    assert {"ARGUMENTS=(", "--global-batch-size 4", "--train-iters 1015"} <= set(lines)
    assert (
        "# - optimizer muonh (embedding adamw, unembedding adamh, vector adamw): Megatron-LM" in text.stdout
    )
    assert "warning: tokens=520000" in text.stderr
    assert run(*words, "--for", "hyperp").stdout == run(*words, "--hydra").stdout
    assert run(*words, "--for", "json").stdout == run(*words, "--json").stdout
    refused = run(*words[:2], "--tokens", "1e9", "--for", "json")
    assert refused.exit_code == 3
    assert "lies" in json.loads(refused.stdout)["refused"]


def test_for_names_what_is_wrong(demo):
    words = ["recommend", demo / "law.json", "--tokens", "5.2e5"]
    for more, text in (
        (["--for", "deepspeed"], "--for must be one of hyperp, megatron ... got 'deepspeed'"),
        (["--for", "hf", "--json"], "--for and --json cannot be combined, got hf, json"),
        (["--json", "--hydra"], "--json and --hydra cannot be combined"),
        (
            ["--for", "hf", "--sequence-length", "100"],
            "sequence_length must divide the batch of 512 tokens, got 100; 500 would be whole sequences",
        ),
        (["--for", "hf", "--sequence-length", "x"], "sequence_length must be a whole number ... got 'x'"),
    ):
        result = run(*words, *more)
        assert result.exit_code == 2
        assert says(result.stderr.splitlines()[-1], text), result.stderr
        assert result.stdout == ""


def test_a_law_of_another_trainer_hands_over_no_defaults_of_ours(make_ladder, tmp_path):
    runs = make_ladder(tokens=(32768, 65536, 131072), noise=0.001).assign(trainer="command")
    runs.to_csv(tmp_path / "runs.csv", index=False)
    law = tmp_path / "law.json"
    assert run("fit", tmp_path / "runs.csv", "--by", "tokens", "-o", law).exit_code == 0
    assert json.loads(law.read_text())["trainer"] == "command"
    found = run("recommend", law, "--tokens", "131072", "--for", "megatron").stdout
    lines = {line.strip() for line in found.splitlines()}
    assert {"#--adam-beta2 0.95", "#--clip-grad 1.0", "--train-iters 256"} <= lines
    assert "runs were of trainer=command" in found
