"""Monitors of several ranks measure the gradients, updates and norms that a single rank measures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.distributed.ranks import current_ranks
from hyperp.model.transformer import Block
from hyperp.monitoring.activations import activation_statistics
from hyperp.training.trainer import Trainer
from tests.corpora import zipf_corpus
from tests.ranks import run_on_ranks

SMALL = (
    "scale.width=16",
    "scale.batch_tokens=64",
    "scale.tokens=512",
    "model.context=8",
    "model.head_size=8",
    "data.held_out_tokens=64",
    "runtime.threads=1",
    "runtime.device=cpu",
    "runtime.monitor_every=2",
    "parametrization=raw",
    "base_lr=0.02",
)
MOE = ("model=moe", "model.context=8", "model.head_size=8", "scale.granularity=2", "scale.sparsity=3")
ACTIVATIONS = ("attention_", "mlp_output_", "residual_", "router_", "logit_max")
CASES = {"sso": ("optim=sso",), "muonh moe": ("optim=muonh", *MOE)}


def rows(parallel: str) -> dict[str, Any]:
    """The second measurement of every case, and the summary."""
    found = {}
    for name, words in CASES.items():
        made = resolve(compose([*SMALL, *words, f"runtime.parallel={parallel}"]))
        trainer = Trainer(made, zipf_corpus(5_000, 1_000))
        for _ in range(4):
            trainer.train_step()
        row = trainer.stability.take()
        losses = [float(trainer.train_step())]  # the run goes on
        found[name] = {"row": row, "summary": trainer.stability.summary(), "losses": losses}
        if parallel == "ddp":  # the parameters are whole
            found[name]["spiked"] = share_of_outliers(trainer)
    return found


def write_rows(parallel: str, folder: Path) -> None:
    (folder / f"{parallel}{current_ranks().rank}.json").write_text(json.dumps(rows(parallel)))


@torch.no_grad()
def share_of_outliers(trainer: Trainer) -> float:
    """Of attention's output, with one channel far above the others."""
    block = trainer.model.blocks[0]
    assert isinstance(block, Block)
    block.attention.out.weight[3] *= 1000
    x_BT, _ = trainer.batches.batch(0)
    return float(activation_statistics(trainer.model, x_BT, current_ranks())["attention_output_outliers"][0])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_see_what_one_sees(tmp_path, parallel):
    run_on_ranks(2, write_rows, parallel, tmp_path)
    first, second = (json.loads((tmp_path / f"{parallel}{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    torch.set_num_threads(1)
    for name, one in rows("ddp").items():
        both = first[name]
        assert both["losses"] == pytest.approx(one["losses"], rel=1e-5)
        for quantity in ("gradient_rms", "update_rms"):
            assert both["row"][quantity] == pytest.approx(one["row"][quantity], rel=1e-3)
        assert both["row"]["norm_over_radius"].keys() == one["row"]["norm_over_radius"].keys()
        for role, ends in one["row"]["norm_over_radius"].items():
            assert both["row"]["norm_over_radius"][role] == pytest.approx(ends, rel=1e-5)
        assert both["row"]["matrices"].keys() == one["row"]["matrices"].keys()
        for matrix, norms in one["row"]["matrices"].items():
            for norm, values in norms.items():
                found = both["row"]["matrices"][matrix][norm]
                if norm == "norm_over_radius":  # which is the worst of many as good, rounding decides
                    found, values = ({**ends, "worst": 0} for ends in (found, values))
                assert found == (values if values is None else pytest.approx(values, rel=1e-4))
        assert both["row"].keys() == one["row"].keys()
        activations = [name for name in one["row"] if name.startswith(ACTIVATIONS)]
        assert len(activations) == (14 if "moe" in name else 12)
        for quantity in activations:  # of the sequences of both
            assert both["row"][quantity] == pytest.approx(one["row"][quantity], rel=1e-4, abs=1e-9)
        assert both.get("spiked", one["spiked"]) == pytest.approx(one["spiked"], rel=1e-4)
        assert 0 < one["spiked"] < 1
        assert both["summary"]["largest"] == pytest.approx(one["summary"]["largest"], rel=1e-3, abs=1e-9)
