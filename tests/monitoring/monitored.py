"""A run of six steps for the tests of monitors."""

from typing import Any

from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Corpus
from hyperp.training.trainer import Trainer
from tests.corpora import zipf_corpus

VOCAB, CONTEXT, STEPS = 31, 16, 6
TINY = (
    "scale.width=16",
    "scale.depth=2",
    f"scale.tokens={STEPS * 64}",
    "scale.batch_tokens=64",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "data.held_out_tokens=64",
    "parametrization=raw",
    "parametrization.init_embedding_std=0.5",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=4",
    "runtime.checkpoint_every=0",
)
MOE = (
    "model=moe",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "scale.granularity=4",
    "scale.sparsity=2",
)


def config(*words: str) -> Config:
    return resolve(compose([*TINY, *words]))


def corpus() -> Corpus:
    return zipf_corpus(5_000, 1_000)


def trainer_at(step: int, *words: str) -> Trainer:
    trainer = Trainer(config(*words), corpus())
    for _ in range(step):
        trainer.train_step()
    return trainer


def seen(trainer: Trainer) -> dict[str, Any]:
    row = trainer.stability.take()
    assert row is not None
    return row
