"""An experiment of a foreign trainer becomes points with ids, columns and commands, or an error."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from hyperp.sweeps.auto import law_slices
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.plan.run_config import run_of, values_of
from hyperp.sweeps.trainers import trainer_of
from tests.sweeps.trainers.foreign import section, write_experiment

LADDER: dict[str, Any] = {
    "grid": {"values.tokens": [1280, 2560], "values.seed": [0, 1]},
    "lr": {"center": -3, "octaves": 1, "per_octave": {"values.tokens": -1}, "at": {"values.tokens": 1280}},
}


def command_of(point) -> list[str]:
    return trainer_of(values_of(point.config)).command(point)


def test_grids_and_rates_set_values_as_they_set_keys_of_hyperp(tmp_path):
    plan = make_plan(write_experiment(tmp_path, {"ladder": LADDER}))
    found = [(p.facts.tokens, p.facts.seed, p.lr) for p in plan.points]
    assert found == [
        (tokens, seed, 2.0 ** (i - 3 - (tokens > 1280))) for tokens in (1280, 2560) for seed in (0, 1) for i
        in (-1, 0, 1)
    ]  # fmt: skip
    assert len({point.run_id for point in plan.points}) == 12
    assert [point.flops for point in plan.points[::6]] == [6 * 8 * 1280, 6 * 8 * 2560]
    assert plan.points[0].facts.steps == 20
    assert plan.points[0].facts.others == {"pause": 0.0, "fault": ""}


def test_points_as_the_law_writes_them_set_values(tmp_path):
    point = {"scale.tokens": 2560, "width": 16, "base_lr": 0.25, "seed": 1}
    blocks = {"next": {"overrides": ["optim=adamw", "schedule=cosine"], "points": [point]}}
    (made,) = make_plan(write_experiment(tmp_path, blocks)).points
    words = ["values.tokens=2560", "values.width=16", "values.lr=0.25", "values.seed=1"]
    (same,) = make_plan([*write_experiment(tmp_path), *words]).points
    assert (made.lr, made.facts.sizes["width"], made.run_id) == (0.25, 16, same.run_id)


def test_short_keys_on_the_command_line_mean_a_commands_values(tmp_path):
    words = [*write_experiment(tmp_path), "seed=0,1", "base_lr=0.5", "scale.width=16", "values.tokens=2560"]
    plan = make_plan(words)
    assert [(p.facts.seed, p.lr, p.facts.sizes["width"], p.facts.tokens) for p in plan.points] == [
        (0, 0.5, 16, 2560),
        (1, 0.5, 16, 2560),
    ]
    blocks = {"a": {"overrides": ["seed=3", "scale.width=32"]}}
    (point,) = make_plan(write_experiment(tmp_path, blocks)).points
    assert (point.facts.seed, point.facts.sizes["width"]) == (3, 32)


def test_slices_that_differ_in_a_text_are_different_slices(tmp_path):
    values = section()["values"] | {"fault": "relu"}
    grid = {"values.tokens": [1280, 2560, 5120], "values.fault": ["relu", "gelu"]}
    plan = make_plan(write_experiment(tmp_path, {"a": {"grid": grid}}, values=values))
    with pytest.raises(ValueError, match="one law over tokens, got 2 with 3 sizes each"):
        law_slices(plan, "tokens")


def test_values_reach_the_command_as_single_arguments_without_a_shell(tmp_path):
    words = write_experiment(tmp_path, values=section()["values"] | {"fault": "$(touch x); a b"})
    (point,) = make_plan(words).points
    command = command_of(point)
    assert command[2:4] == ["--lr=0.1", "--steps=20"]
    assert command[7] == "--fault=$(touch x); a b"
    assert command[-1] == f"--out={tmp_path / 'runs' / point.run_id}"
    assert trainer_of(values_of(point.config)).command(point) == command


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": ["train", "{lr}{nope}"]}, ("trainer.command[1]", "{nope}")),
        ({"command": ["train", "{lr.real}"]}, ("trainer.command[1]", "{lr.real}")),
        ({"command": ["train", "{lr"]}, ("trainer.command[1]", "'{lr'")),
        ({"command": ["train", "{lr}{checkpoint}"]}, ("trainer.command[1]", "{checkpoint}")),
        ({"resume": {"when": "a", "arguments": ["{checkpont}"]}}, ("resume.arguments[0]", "checkpoint")),
        ({"derive": {"checkpoint_folder": "tokens"}}, ("derive.checkpoint_folder", "run_dir")),
        ({"command": []}, ("trainer.command", "got []")),
        ({"values": section()["values"] | {"unused": 1}}, ("trainer.values.unused must be used", "{unused}")),
        ({"values": {**section()["values"], "lr": 0}}, ("values.lr must be a positive number", "got 0")),
        ({"values": {**section()["values"], "seed": -1}}, ("values.seed", "got -1")),
        ({"values": {**section()["values"], "tokens": 0.5}}, ("values.tokens", "got 0.5")),
        ({"derive": {"steps": "tokens / nothing"}}, ("trainer.derive.steps", "'nothing'")),
        ({"derive": {"steps": "tokens / 0", "flops": "1"}}, ("trainer.derive.steps must be finite", "inf")),
        ({"derive": {"lr": "tokens"}}, ("derive.lr", "values")),
        ({"result": {}}, ("result must have loss", "nothing")),
        ({"result": {"loss": {"file": "a.jsonl"}}}, ("trainer.result.loss", "key must be given")),
        ({"result": {"loss": {"file": "a.txt", "key": "x"}}}, ("trainer.result.loss", "'a.txt'")),
        ({"result": {"loss": {"output": "loss (.*)"}}}, ("trainer.result.loss.output", "?P<value>")),
        ({"result": {"loss": {"wandb": "w", "output": "(?P<value>.)"}}}, ("result.loss", "output, wandb")),
        ({"progress": {"pattern": "step ("}}, ("trainer.progress.pattern", "'step ('")),
        ({"stop": {"signal": "SIGNOPE"}}, ("trainer.stop.signal", "'SIGNOPE'")),
        ({"diverged": {"when": "loss > 3"}}, ("trainer.diverged.when", "'loss > 3'")),
        ({"context": {"optimizer": "sgd"}}, ("trainer.context.schedule must be given",)),
        ({"retries": -1}, ("trainer.retries", "got -1")),
        ({"values": {**section()["values"], "block": 3}}, ("values.block must not be a column", "block")),
        ({"result": {"loss": {"output": "(?P<value>.)"}, "lr": {"output": "(?P<value>.)"}}}, ("result.lr",)),
        ({"shell": True}, ("trainer.shell is not a known field",)),
    ],
)  # fmt: skip
def test_a_wrong_section_is_an_error_of_one_line_that_names_the_field(tmp_path, changes, words):
    with pytest.raises(ValueError, match=r"^sweep\.blocks\.ladder: ") as error:
        make_plan(write_experiment(tmp_path, {"ladder": {"grid": {"values.width": [8, 16]}}}, **changes))
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert not (tmp_path / "runs").exists()


def test_a_swept_value_that_does_not_exist_is_an_error(tmp_path):
    blocks = {"a": {"grid": {"values.widht": [8, 16]}}}
    with pytest.raises(ValueError, match=r"trainer\.values\.widht") as error:
        make_plan(write_experiment(tmp_path, blocks))
    assert "did you mean" in str(error.value)
    with pytest.raises(ValueError, match=r"trainer\.name must be hyperp or command, got 'other'"):
        make_plan([*write_experiment(tmp_path, blocks), "trainer.name=other"])


def test_what_cannot_change_the_result_is_not_part_of_the_identity(tmp_path):
    def run_id(**changes: Any) -> str:
        (point,) = make_plan(write_experiment(tmp_path, **changes)).points
        return point.run_id

    same = run_id()
    for changes in (
        {"progress": None},
        {"resume": None},
        {"stop": {"signal": "SIGUSR1", "grace": 9.0}},
        {"retries": 3},
        {"derive": section()["derive"] | {"flops": "12 * tokens"}},
    ):
        assert run_id(**changes) == same, changes
    others = [
        run_id(values=section()["values"] | {"lr": 0.2}),
        run_id(values=section()["values"] | {"tokens": 2560}),
        run_id(env={"A": "1"}),
        run_id(derive={"steps": "tokens / 32", "flops": "tokens * batch_tokens"}),
        run_id(command=[*section()["command"], "--pause=0"]),
        run_id(diverged={"when": "loss is not finite, or above 9"}),
        run_id(context=section()["context"] | {"data": "other"}),
        run_id(cwd=str(tmp_path)),
    ]
    assert len({same, *others}) == 1 + len(others)
    assert run_id(values=section()["values"] | {"tokens": 1280.0}) == same


def test_the_commit_of_the_trainer_is_part_of_the_identity_and_its_path_is_not(tmp_path):
    def git(folder: Path, *words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    def planned(folder: Path):
        (point,) = make_plan(write_experiment(tmp_path, cwd=str(folder))).points
        return point

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    git(one, "init")
    (one / "train.py").write_text("1\n")
    git(one, "add", ".")
    git(one, "commit", "-m", "first")
    git(tmp_path, "clone", str(one), str(two))
    first = planned(one)
    assert planned(two).run_id == first.run_id
    assert not first.config.trainer.dirty  # pyright: ignore[reportAttributeAccessIssue]
    (two / "train.py").write_text("2\n")
    changed = planned(two)
    assert changed.run_id == first.run_id
    assert changed.config.trainer.dirty  # pyright: ignore[reportAttributeAccessIssue]
    git(two, "commit", "-am", "second")
    assert planned(two).run_id != first.run_id


def test_a_plan_file_gives_the_same_runs_back(tmp_path):
    plan = make_plan(write_experiment(tmp_path, {"ladder": LADDER}))
    plan.root.mkdir()
    planfile.write_plan(plan)
    back = [run_of(planned.config) for planned in planfile.read_plan(plan.root)]
    assert [run.run_id() for run in back] == [point.run_id for point in plan.points]
    assert back == [point.config for point in plan.points]
