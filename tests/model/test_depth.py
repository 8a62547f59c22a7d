"""Deep and narrow models train: 64 and 200 blocks on a CPU, with residual branches times 1/sqrt(2 depth)."""

import math

import pytest
import torch

from hyperp.config import compose, resolve
from hyperp.data.corpus import load_corpus
from hyperp.training.trainer import Trainer

torch.set_num_threads(1)
NARROW = ("scale.width=16", "model.head_size=8", "model.context=64", "data.held_out_tokens=8192")
EXPERTS = ("model=moe", "model.head_size=8", "model.context=64", "scale.granularity=4", "scale.sparsity=4")


def trained(*words: str) -> tuple[Trainer, list[float]]:
    made = resolve(compose(["runtime.threads=1", *NARROW, *words]))
    trainer = Trainer(made, load_corpus(made.data))
    return trainer, [float(trainer.train_step()) for _ in range(made.scale.steps)]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muonh", "sso"])
@pytest.mark.parametrize(
    ("base_lr", "experts"),
    [(0.0155, ()), (0.062, ()), (0.062, EXPERTS)],
    ids=["published", "four times", "experts"],
)
def test_64_blocks_train_without_divergence(optimizer, base_lr, experts):
    """At the published base rate, and at four times that rate, which is better at this size."""
    trainer, losses = trained(
        f"optim={optimizer}", f"base_lr={base_lr}", "scale.depth=64", "scale.tokens=32768", *experts
    )
    assert trainer.divergence.reason(trainer.step) is None
    assert max(losses[8:]) < math.log(256)  # never again above a uniform guess
    assert trainer.evaluate() < 4.2
    assert losses[-1] < min(losses[:16])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muonh", "sso"])
def test_200_blocks_train_without_divergence(optimizer):
    trainer, losses = trained(
        f"optim={optimizer}",
        "base_lr=0.062",
        "scale.depth=200",
        "scale.tokens=16384",
        "scale.batch_tokens=256",
    )
    assert trainer.divergence.reason(trainer.step) is None
    assert max(losses[8:]) < math.log(256)
    assert trainer.evaluate() < 4.2
