"""Coordinate check: what a run records, that training is unaffected, and the way to the picture."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import hyperp.conf
from hyperp.analysis.cli.main import app
from hyperp.analysis.diagnostics.coordinates import ACTIVATIONS
from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Corpus
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.table.runs import collect
from hyperp.training.coordinates import probe_activations, probe_tokens
from hyperp.training.train import Stopped, train
from hyperp.training.trainer import Trainer
from tests.corpora import zipf_corpus

torch.set_num_threads(1)
VOCAB, CONTEXT = 31, 32
TINY = (
    "scale.width=16",
    "scale.tokens=2048",
    "scale.batch_tokens=256",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "data.held_out_tokens=1600",  # more windows than the probe takes
    "parametrization=mup",
    "parametrization.reference_width=8",
    "parametrization.init_embedding_std=0.1",
    "optim=adamw",
    "base_lr=0.01",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=1",
)
EXPERTS = ("model=moe", "scale.granularity=2", "scale.sparsity=2", f"model.context={CONTEXT}")
STEPS = "runtime.coordinates=[1,3,8]"


def config(*words: str) -> Config:
    return resolve(compose([*TINY, *words]))


def corpus() -> Corpus:
    return zipf_corpus(16_000, 4_000)


def rows_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "coordinates.jsonl").read_text().splitlines()]


@torch.no_grad()
def by_hand(trainer: Trainer) -> dict:
    """All activations of the probe, computed from the definition of the modules."""
    model: Any = trainer.model
    found = {}
    x = model.embedding(probe_tokens(trainer))
    for layer, block in enumerate(model.blocks):
        m = block.residual_multiplier
        a = block.attention(block.attention_norm(x), model.cos_TN, model.sin_TN)
        x = x + m * a
        b = block.mlp(block.mlp_norm(x))
        x = x + m * b
        found |= {("attention", layer): a, ("mlp", layer): b, ("residual", layer): x}
    found["logits", None] = model.unembedding(model.norm(x)) * model.logit_multiplier
    return found


def root_mean_square(x: torch.Tensor) -> float:
    return float(np.sqrt(np.mean(x.double().numpy() ** 2)))


def test_rows_are_what_the_definition_gives(tmp_path):
    made = config(STEPS, "scale.depth=3")
    train(made, tmp_path, corpus=corpus())
    twin = Trainer(made, corpus())
    start, expected = by_hand(twin), {}
    for step in range(9):
        if step in (0, 1, 3, 8):
            for key, now in by_hand(twin).items():
                expected[step, *key] = root_mean_square(now), root_mean_square(now - start[key])
        if step < 8:
            twin.train_step()
    found = {
        (row["step"], row["quantity"], row.get("layer")): (row["rms"], row["change_rms"])
        for row in rows_of(tmp_path)
    }
    assert len(rows_of(tmp_path)) == len(found) == 4 * (3 * 3 + 1)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=2e-5, atol=1e-7)
    assert all(found[key][1] == 0 for key in found if key[0] == 0)
    assert all(found[key][1] > 1e-3 for key in found if key[0] == 8)


@pytest.mark.parametrize("words", [(), EXPERTS, ("precision=bfloat16", "optim=sso")], ids=str)
def test_training_does_not_notice(tmp_path, words):
    plain = train(config(*words), tmp_path / "plain", corpus=corpus())
    watched = train(config(*words, STEPS), tmp_path / "watched", corpus=corpus())
    assert watched.run_id == plain.run_id
    assert (watched.loss, watched.train_loss) == (plain.loss, plain.train_loss)
    assert plain.status == "finished"
    logs = [
        [
            json.loads(line).get("loss")
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("plain", "watched")
    ]
    assert len(logs[0]) >= 8
    assert logs[0] == logs[1]
    assert not (tmp_path / "plain" / "coordinates.jsonl").exists()
    assert {row["quantity"] for row in rows_of(tmp_path / "watched")} == set(ACTIVATIONS)


def test_a_measurement_leaves_no_trace():
    trainer = Trainer(config(), corpus())
    probe_activations(trainer)
    assert all(p.grad is None and p.requires_grad for p in trainer.model.parameters())
    assert not any(module._forward_hooks for module in trainer.model.modules())


@pytest.mark.parametrize("optimizer", ["adamw", "sso"])  # of which one starts by projecting the weights
def test_a_resumed_run_measures_from_the_same_start(tmp_path, optimizer):
    made = config(STEPS, f"optim={optimizer}")
    train(made, tmp_path / "whole", corpus=corpus())
    steps = iter(range(1, 9))
    with pytest.raises(Stopped, match="step 5"):
        train(made, tmp_path / "halves", corpus=corpus(), stop=lambda: next(steps) == 5)
    half = tmp_path / "halves" / "coordinates.jsonl"
    with half.open("a") as file:  # as by a process that was killed later than it had saved
        file.write('{"step": 8, "quantity": "logits", "rms": 1.0, "change_rms": 1.0}\n{"step": 8, "qua')
    train(made, tmp_path / "halves", corpus=corpus())
    assert half.read_text() == (tmp_path / "whole" / "coordinates.jsonl").read_text()
    assert {row["step"] for row in rows_of(tmp_path / "halves")} == {0, 1, 3, 8}


def test_the_probe_is_the_same_for_every_seed_and_size():
    one = probe_tokens(Trainer(config(), corpus()))
    other = probe_tokens(Trainer(config("seed=3", "scale.width=32", "scale.depth=1"), corpus()))
    assert one.shape == (1024 // CONTEXT, CONTEXT)
    assert torch.equal(one, other)
    few = Trainer(config("data.held_out_tokens=64"), corpus())
    assert torch.equal(probe_tokens(few), few.held_out[0])


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (
            "runtime.coordinates=[0,2]",
            r"runtime\.coordinates must .* 1, got \[0, 2\]",
        ),
        (
            "runtime.coordinates=[1,9]",
            r"runtime\.coordinates must .* 8, got \[1, 9\]",
        ),
        ("runtime.coordinates=[1.5]", r"runtime\.coordinates"),
    ],
)
def test_steps_that_no_run_has_are_refused(word, text):
    with pytest.raises(ValueError, match=text):
        config(word)


def test_the_experiment_has_every_parametrization_at_one_rate_each():
    plan = make_plan(["+experiment=coord_check"])
    shipped = {path.stem for path in Path(str(hyperp.conf.__path__[0]), "parametrization").glob("*.yaml")}
    assert {point.own.parametrization.name for point in plan.points} == shipped
    for block in {point.blocks for point in plan.points}:
        members = [point for point in plan.points if point.blocks == block]
        assert len({point.own.base_lr for point in members}) == 1
        assert len({point.own.scale.width for point in members}) >= 4
        exponent = members[0].own.parametrization.width_exponent
        assert exponent is not None
        narrow = min(members, key=lambda point: point.own.scale.width)
        for point in members:
            expected = narrow.lr * (point.own.scale.width / narrow.own.scale.width) ** exponent
            np.testing.assert_allclose(point.lr, expected, rtol=1e-12, atol=0)
        if narrow.own.optim.name == "adamw":  # one rate for all of them at the smallest width
            np.testing.assert_allclose(narrow.lr, 2**-7, rtol=1e-12, atol=0)


# The table of a sweep and the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A collected sweep of two widths and two seeds, and one run without measurements."""
    root = tmp_path_factory.mktemp("swept")
    for width in (16, 32):
        for seed in (0, 1):
            made = config(f"scale.width={width}", f"seed={seed}", STEPS)
            train(made, root / made.run_id(), corpus=corpus())
    silent = config("seed=2")
    train(silent, root / silent.run_id(), corpus=corpus())
    collect(root, root / "runs.parquet", pytest.fail)
    return root


def run(*words):
    return CliRunner().invoke(app, ["coordinates", *(str(word) for word in words)])


def test_collect_writes_every_row_beside_the_table(swept):
    long = pd.read_parquet(swept / "runs.coordinates.parquet")
    assert list(long.columns) == ["run_id", "step", "quantity", "layer", "rms", "change_rms"]
    assert long["run_id"].nunique() == 4
    for run_id, group in long.groupby("run_id"):
        rows = rows_of(swept / str(run_id))
        assert group["rms"].tolist() == [row["rms"] for row in rows]
        assert group["layer"].isna().tolist() == [row.get("layer") is None for row in rows]


def test_collect_reads_what_is_not_finite_and_names_what_it_cannot_read(swept, tmp_path):
    runs = [folder for folder in swept.iterdir() if folder.is_dir()]
    for folder in runs[:3]:
        (tmp_path / folder.name).mkdir()
        for name in ("record.json", "config.yaml"):
            (tmp_path / folder.name / name).write_bytes((folder / name).read_bytes())
    nan, damaged, _ = (tmp_path / folder.name / "coordinates.jsonl" for folder in runs[:3])
    row = {"step": 1, "quantity": "logits", "rms": "nan", "change_rms": "inf"}
    nan.write_text(json.dumps(row) + '\n{"step": 2, "qu')
    damaged.write_text('{"step": 1, "quantity": "logits", "rms": 1.0}\n')
    warnings: list[str] = []
    output = tmp_path / "all.parquet"
    collect(tmp_path, output, warnings.append)
    (kept,) = pd.read_parquet(tmp_path / "all.coordinates.parquet").to_dict("records")
    assert kept["run_id"] == nan.parent.name
    assert np.isnan(kept["rms"])
    assert kept["change_rms"] == np.inf
    assert warnings == [f"{damaged} is left out: 'change_rms'"]
    for path in (nan, damaged):
        path.unlink()
    collect(tmp_path, output, warnings.append)
    assert not (tmp_path / "all.coordinates.parquet").exists()


def test_the_command_draws_and_says_what_it_found(swept, tmp_path):
    done = run(swept, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "left out 1 run, no activations" in done.stdout
    names = ("coordinates.csv", "coordinates.png", "coordinates.svg", "slopes.csv")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    with (tmp_path / "out" / "coordinates.csv").open() as stream:
        points = list(csv.DictReader(stream))
    assert len(points) == 4 * 2 * (4 + 3)  # activations, widths; steps of the size and of its change
    (series,) = json.loads(run(swept, "--json").stdout)
    with (tmp_path / "out" / "slopes.csv").open() as stream:
        values = [float(row["value"]) for row in csv.DictReader(stream)]
    assert values == [slope["value"] for kind in series["kinds"] for slope in kind["slopes"]]
    assert {kind["layer"] for kind in series["kinds"]} == {1, None}  # of two blocks the last
