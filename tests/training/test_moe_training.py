"""Runs of mixtures of experts: records, exact resumption and accumulation, sweeps, and no collapse."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hyperp.config import Config, ModelConfig, compose, resolve
from hyperp.data.corpus import Corpus, load_corpus
from hyperp.flops import count_parameters, flops_per_token
from hyperp.rundir import record
from hyperp.training.train import Stopped, train
from hyperp.training.trainer import Trainer
from tests import forked
from tests.corpora import zipf_corpus

torch.set_num_threads(1)
TINY = (
    "scale.width=16",
    "scale.depth=2",
    "scale.tokens=8192",
    "scale.batch_tokens=256",
    "model.context=32",
    "model.head_size=8",
    "data.held_out_tokens=1024",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=4",
    "runtime.checkpoint_every=0",
    "runtime.monitor_every=0",
)
EXPERTS = ("model=moe", "model.context=32", "model.head_size=8", "scale.granularity=4", "scale.sparsity=4")
VOLATILE = ("seconds", "tokens_per_second", "resumed", "config")


def config(*words: str) -> Config:
    return resolve(compose([*TINY, *EXPERTS, *words]))


def corpus() -> Corpus:
    return zipf_corpus(16_000, 4_000)


def rows(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def facts(one: record.Record) -> dict:
    return {key: value for key, value in asdict(one).items() if key not in VOLATILE}


@pytest.mark.parametrize("optimizer", ["muonh", "sso", "adamw"])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, optimizer):
    made = config(f"optim={optimizer}", "model.shared_expert=true")
    whole = train(made, tmp_path / "whole", corpus=corpus())
    steps = iter(range(1, 100))
    with pytest.raises(Stopped):  # between two lines of the log
        train(made, tmp_path / "parts", corpus=corpus(), stop=lambda: next(steps) == 10)
    parts = train(made, tmp_path / "parts", corpus=corpus())
    assert parts.resumed == 1
    assert facts(parts) == facts(whole)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_record_and_the_log_have_the_balance_of_every_layer(tmp_path):
    made = config()
    one = train(made, tmp_path, corpus=corpus())
    twin, vio = Trainer(made, corpus()), []
    for _ in range(made.scale.steps):
        twin.train_step()
        vio += [twin.balance_metrics()["max_vio"]]
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == list(range(4, made.scale.steps + 1, 4))
    for row in logged:
        want = np.mean(vio[row["step"] - 4 : row["step"]], axis=0)
        assert row["max_vio"] == pytest.approx(want.tolist(), rel=1e-12)
    assert one.max_vio["mean"] == pytest.approx(np.mean(vio, axis=0).tolist(), rel=1e-12)
    assert one.max_vio["largest"] == pytest.approx(np.max(vio, axis=0).tolist(), rel=1e-12)
    assert len(one.max_vio["mean"]) == made.scale.depth
    assert one.parameters == count_parameters(made.scale, made.shape(31))
    assert one.flops == flops_per_token(made.scale, made.shape(31)) * made.scale.tokens
    for role in ("router", "expert"):
        assert one.algorithms[role]["algorithm"] == "muonh"
        assert one.factors[role]["lr"] == one.factors["hidden"]["lr"] == one.lr
    assert record.load(tmp_path) == one


def test_a_dense_run_has_no_balance(tmp_path):
    one = train(resolve(compose([*TINY])), tmp_path, corpus=corpus())
    assert one.max_vio == {}
    assert all("max_vio" not in row for row in rows(tmp_path))


def test_the_balance_loss_is_trained_on_and_not_reported():
    plain, heavy = (Trainer(config(f"model.balance_weight={w}"), corpus()) for w in (0, 100))
    assert plain.evaluate() == heavy.evaluate()
    first = [float(trainer.train_step()) for trainer in (plain, heavy)]
    assert first[0] == first[1]  # the same weights still
    assert first[0] == pytest.approx(math.log(31), rel=0.1)
    routers = [dict(t.model.named_parameters())["blocks.0.mlp.router.weight"] for t in (plain, heavy)]
    assert not torch.equal(*routers)
    monitored = [trainer.divergence.mean_loss() for trainer in (plain, heavy)]
    assert monitored[0] == monitored[1]


@pytest.mark.parametrize("weight", [0, 0.1])
def test_gradient_accumulation_is_the_same_run_with_a_balance_loss_too(weight):
    words = (f"model.balance_weight={weight}", "parametrization.init_embedding_std=0.1")
    whole, parts = (
        Trainer(config(*words, f"runtime.micro_batch_tokens={tokens}"), corpus()) for tokens in (0, 64)
    )
    assert whole.config.run_id() == parts.config.run_id()
    grads = []
    for trainer in (whole, parts):
        x, y = trainer.batches.batch(0)
        size = len(x) if trainer is whole else 2
        trainer._backward(x.split(size), y.split(size))
        grads.append({name: p.grad for name, p in trainer.model.named_parameters()})
        assert trainer.loads is not None
    for name, grad in grads[0].items():
        assert (grads[1][name] - grad).norm() < 1e-4 * grad.norm(), name
    assert whole.loads is not None
    assert parts.loads is not None
    assert torch.equal(whole.loads.state_5L, parts.loads.state_5L)


def test_the_ids_of_dense_runs_are_those_of_before_there_were_experts():
    made = resolve(compose(["runtime.root=anywhere"]))
    assert made.run_id() == "ce0ac3ccef6c"
    for field in ("shared_expert", "sqrt_gate", "balance_weight"):
        assert field in asdict(ModelConfig())
        assert field not in made.identity()["model"]
    ids = {config(word).run_id() for word in ("seed=0", "model.sqrt_gate=false", "model.balance_weight=0.1")}
    assert len(ids) == 3


def test_a_sweep_over_granularity_and_sparsity_ends_in_the_table(tmp_path):
    grid = "{grid:{scale.granularity:[2,8],scale.sparsity:[1,4]}}"
    words = [*TINY, "scale.tokens=4096", *EXPERTS[:3], "launcher.workers=1", f"runtime.root={tmp_path}"]
    for command in (
        ["run", *words, f"+sweep.blocks.experts={grid}"],
        ["collect", tmp_path, "-o", tmp_path / "runs.parquet"],
    ):
        done = forked.run_command("hyperp-sweep", *command)
        assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "runs.parquet")
    assert (table["status"] == "finished").all()
    cells = table.groupby(["granularity", "sparsity"])
    assert cells.size().to_dict() == {(2, 1): 1, (2, 4): 1, (8, 1): 1, (8, 4): 1}
    assert table["parameters"].nunique() == 4  # routers differ
    assert table["loss"].nunique() == 4


def max_vio_of(optimizer: str, *words: str, looks: int = 4, seed: int = 0) -> list[float]:
    """MaxVio of the worst layer, averaged over `looks` equal parts of the run; 3 is total collapse here."""
    sizes = ("scale.granularity=4", "scale.sparsity=4", "scale.tokens=65536", f"seed={seed}")
    made = resolve(compose([f"optim={optimizer}", "model=moe", *sizes, "runtime.threads=1", *words]))
    trainer, vio = Trainer(made, load_corpus(made.data)), []
    for _ in range(looks):
        for _ in range(made.scale.steps // looks):
            trainer.train_step()
        vio.append(max(trainer.balance_metrics()["max_vio"]))
    return vio


@pytest.mark.parametrize("router", ["muonh", "adamw", "adamh"])
def test_the_routers_rule_is_configuration(router):
    trainer = Trainer(config(f"optim.algorithms.router={router}"), corpus())
    rules = {group["role"]: group["algorithm"] for group in trainer.optimizer.param_groups}
    assert rules["router"] == router
    assert rules["expert"] == rules["hidden"] == "muonh"
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train_step()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["muonh", "sso"])
def test_the_router_does_not_collapse_at_hyperp_rates(optimizer):
    """Embeddings start at 1e-4, so all tokens are similar at first and choose the same experts."""
    vio = max_vio_of(optimizer)
    assert vio[0] > 1.5
    assert vio[-1] < 1.0
    assert vio == sorted(vio, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("optimizer", ["muonh", "sso"])
def test_a_router_on_adamw_stays_collapsed_where_one_on_a_sphere_recovers(optimizer, seed):
    """Without a balance loss, which would prevent collapse with both rules of `optim.algorithms.router`."""
    words = ("model.balance_weight=0",)
    sphere = max_vio_of(optimizer, *words, seed=seed)
    adamw = max_vio_of(optimizer, *words, "optim.algorithms.router=adamw", seed=seed)
    assert min(adamw) > 2.7
    assert sphere[-1] < adamw[-1]
    assert sum(sphere) < sum(adamw)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_mixture_of_experts_trains_as_an_eager_one(precision):
    losses = []
    for compiled in ("false", "true"):
        trainer = Trainer(config(f"precision={precision}", f"runtime.compile={compiled}"), corpus())
        losses.append([float(trainer.train_step()) for _ in range(4)])
        assert trainer.balance_metrics()["max_vio"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "float32" else 1e-2)
