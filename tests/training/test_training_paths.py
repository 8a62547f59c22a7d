"""What a run reports, against separate computations: losses, bits, FLOPs, seconds, precision."""

import json
import math
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Corpus, tokens_corpus
from hyperp.flops import Shape, flops_per_token
from hyperp.scale import Scale
from hyperp.training.train import train
from hyperp.training.trainer import Trainer
from tests import forked

torch.set_num_threads(1)
VOCAB, CONTEXT, BATCH_TOKENS, BYTES_PER_TOKEN = 31, 32, 256, 3.7
TINY = (
    "scale.width=16",
    "scale.depth=1",
    "scale.tokens=4096",
    f"scale.batch_tokens={BATCH_TOKENS}",
    f"model.context={CONTEXT}",
    "model.head_size=8",
    "data.held_out_tokens=224",  # seven windows
    "parametrization=raw",
    "parametrization.init_embedding_std=0.1",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.log_every=4",
    "runtime.checkpoint_every=4",
    "runtime.monitor_every=0",
)
STEPS = 4096 // BATCH_TOKENS


def config(*words: str) -> Config:
    return resolve(compose([*TINY, *words]))


def corpus() -> Corpus:
    """A corpus whose held-out halves have ids of different frequency, so that windows differ in loss."""
    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.3, size=20_000) % VOCAB).astype(np.uint8)
    held_out = np.concatenate([ids[16_000:18_000] % 4, ids[18_000:]])
    return Corpus("text", ids[:16_000], held_out, VOCAB, BYTES_PER_TOKEN, digest="0" * 64)


def trained(made: Config) -> Trainer:
    trainer = Trainer(made, corpus())
    for _ in range(made.scale.steps):
        trainer.train_step()
    return trainer


@torch.no_grad()
def held_out_loss(trainer: Trainer, windows: int) -> float:
    """Mean loss over all targets of windows spread evenly over the held-out part, one window at a time."""
    ids = trainer.corpus.held_out
    available = (len(ids) - 1) // CONTEXT
    losses = []
    for k in range(windows):
        start = (k * available // windows) * CONTEXT
        window = torch.from_numpy(ids[start : start + CONTEXT + 1].astype(np.int64))
        log_p = trainer.model(window[None, :-1])[0].double().log_softmax(dim=-1)
        losses += [-float(log_p[t, window[t + 1]]) for t in range(CONTEXT)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("chunk", [96, 160, 8192])  # three and five windows of seven leave a short last chunk
def test_the_loss_of_a_record_is_the_mean_over_the_held_out_windows(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("hyperp.training.trainer.EVALUATION_TOKENS", chunk)
    made = config()
    one = train(made, tmp_path, corpus=corpus())
    twin = trained(made)  # the same bits, since the same configuration gives them
    assert one.loss is not None
    assert one.loss == pytest.approx(held_out_loss(twin, 7), rel=1e-6)
    assert one.bits_per_byte == pytest.approx(one.loss / math.log(2) / BYTES_PER_TOKEN, rel=1e-12)
    assert one.train_loss == pytest.approx(twin.divergence.mean_loss(), rel=1e-12)
    assert one.train_loss != pytest.approx(one.loss, rel=1e-2)
    assert one.flops == flops_per_token(made.scale, made.shape(VOCAB)) * 4096
    assert one.parameters == sum(p.numel() for p in twin.model.parameters())
    assert one.steps == STEPS


def test_a_record_says_what_was_run(tmp_path):
    words = ("seed=5", "optim=sso", "parametrization=mup", "schedule=cosine")
    made = config(*words, "parametrization.reference_width=8", "parametrization.init_embedding_std=0.1")
    one = train(made, tmp_path, corpus=corpus())
    assert (one.run_id, one.seed) == (made.run_id(), 5)
    assert (one.optimizer, one.parametrization, one.schedule) == ("sso", "mup", "cosine")
    assert one.base_lr == 0.02
    assert one.lr == pytest.approx(0.02 * 8 / 16, rel=1e-12)  # 1/width on hidden matrices
    assert one.factors["embedding"]["lr"] == pytest.approx(0.02, rel=1e-12)
    assert one.epochs == pytest.approx(4096 / 16_000, rel=1e-12)
    sizes = {"width": 16, "depth": 1, "tokens": 4096, "batch_tokens": 256, "granularity": 1, "sparsity": 1}
    assert one.scale == sizes


def test_held_out_windows_follow_no_seed_and_training_batches_do():
    one, same, other = (Trainer(config(f"seed={s}"), corpus()) for s in (1, 1, 2))
    for a, b in zip(one.held_out, other.held_out, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for s in (0, 5) for a, b in pairs(one, same, s))
    assert not any(torch.equal(a, b) for s in (0, 5) for a, b in pairs(one, other, s))
    assert float(one.train_step()) == float(same.train_step())


def pairs(one: Trainer, two: Trainer, step: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one.batches.batch(step), two.batches.batch(step), strict=True))


@pytest.mark.parametrize("micro_batch", [32, 64, 128])
def test_parts_of_a_batch_give_the_loss_of_the_whole(micro_batch):
    whole = Trainer(config(), corpus())
    parts = Trainer(config(f"runtime.micro_batch_tokens={micro_batch}"), corpus())
    sizes = []
    parts.model.embedding.register_forward_hook(lambda module, args, out: sizes.append(args[0].numel()))
    for _ in range(STEPS):
        assert float(parts.train_step()) == pytest.approx(float(whole.train_step()), rel=1e-4)
    assert set(sizes) == {micro_batch}


def test_the_training_loss_is_the_cross_entropy_before_the_step():
    trainer = Trainer(config(), corpus())
    x_BT, y_BT = trainer.batches.batch(0)
    with torch.no_grad():
        want = F.cross_entropy(trainer.model(x_BT).flatten(0, 1), y_BT.flatten())
    assert float(trainer.train_step()) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)],
)
def test_matrices_multiply_in_the_precision_asked_for(precision, dtype):
    trainer = Trainer(config(f"precision={precision}"), corpus())
    seen: list[torch.dtype] = []
    for name, module in trainer.model.named_modules():
        if name in ("unembedding", "blocks.0.mlp.down", "blocks.0.attention.query"):
            module.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    trainer.train_step()
    trainer.evaluate()
    assert len(seen) == 2 * 3
    assert set(seen) == {dtype}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_bfloat16_changes_the_loss_slightly():
    exact, rough = trained(config("precision=float32")), trained(config("precision=bfloat16"))
    assert exact.evaluate() != rough.evaluate()
    assert rough.evaluate() == pytest.approx(exact.evaluate(), rel=0.02)
    assert exact.evaluate() == trained(config("precision=auto")).evaluate()


def test_a_logged_loss_is_the_mean_since_the_last_and_a_logged_rate_the_last_used(tmp_path):
    made = config(
        "parametrization=hyperp",
        "schedule.warmup_steps=2",
        "runtime.log_every=5",
        "runtime.checkpoint_every=0",
    )
    train(made, tmp_path, corpus=corpus())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, STEPS]
    twin = Trainer(made, corpus())
    losses, rates = [], []
    for _ in range(STEPS):
        losses.append(float(twin.train_step()))
        rates += [group["lr"] for group in twin.optimizer.param_groups if group["role"] == "hidden"]
    starts = [0, 5, 10, 15]
    for start, row in zip(starts, rows, strict=True):
        part = losses[start : row["step"]]
        assert row["loss"] == pytest.approx(sum(part) / len(part), rel=1e-6)
        assert row["lr"] == pytest.approx(rates[row["step"] - 1], rel=1e-12)
    assert made.parametrization.effective_lr("hidden", made.scale, 1.0).lr != 1.0


class Stopwatch:
    """A clock that advances in training steps only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_seconds: float):
        self.now, self.step_seconds, self.stop_at = 1000.0, step_seconds, -1
        step = Trainer.train_step

        def timed(trainer: Trainer) -> Tensor:
            if trainer.step == self.stop_at:
                raise KeyboardInterrupt
            self.now += self.step_seconds
            return step(trainer)

        monkeypatch.setattr(Trainer, "train_step", timed)
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: self.now)


def test_seconds_and_speed_are_those_of_the_steps(tmp_path, monkeypatch):
    speeds = []
    with monkeypatch.context() as patch:
        Stopwatch(patch, 0.5)
        one = train(config(), tmp_path, lambda *news: speeds.append(news[3]), corpus())
    assert one.seconds == pytest.approx(STEPS * 0.5, abs=1e-3)
    assert one.tokens_per_second == pytest.approx(BATCH_TOKENS / 0.5, rel=1e-3)
    assert speeds == pytest.approx([BATCH_TOKENS / 0.5] * (STEPS // 4), rel=1e-9)


def test_seconds_add_up_over_a_restart_and_speed_is_that_of_the_process(tmp_path, monkeypatch):
    speeds = []
    with monkeypatch.context() as patch:
        watch = Stopwatch(patch, 0.5)
        watch.stop_at = 8  # just checkpointed
        with pytest.raises(KeyboardInterrupt):
            train(config(), tmp_path, corpus=corpus())
        watch.stop_at, watch.step_seconds = -1, 2.0
        watch.now += 3600
        one = train(config(), tmp_path, lambda *news: speeds.append(news[3]), corpus())
    whole = train(config(), tmp_path / "whole", corpus=corpus())
    assert one.resumed == 1
    assert (one.loss, one.train_loss, one.steps) == (whole.loss, whole.train_loss, whole.steps)
    assert one.seconds == pytest.approx(8 * 0.5 + 8 * 2.0, abs=1e-3)
    assert one.tokens_per_second == pytest.approx(4096 / 20.0, rel=1e-3)
    assert speeds == pytest.approx([BATCH_TOKENS / 2.0] * 2, rel=1e-9)


def hyperp_train(cwd: Path, *words: str) -> CompletedProcess[str]:
    return forked.run_command("hyperp-train", *words, cwd=cwd)


def only_record(root: Path) -> dict[str, Any]:
    (path,) = root.glob("*/record.json")
    return json.loads(path.read_text())


def test_a_diverged_run_counts_the_steps_it_did(tmp_path):
    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question\n" * 800)
    words = ("optim=adamw", "parametrization=standard", "base_lr=30", "optim.clip=0", "scale.tokens=131072")
    text = ("data=text", "data.files=[text.txt]")
    done = hyperp_train(tmp_path, *TINY, *words, *text)
    assert done.returncode == 1, done.stderr
    one = only_record(tmp_path / "runs" / "single")
    assert (one["status"], one["loss"], one["bits_per_byte"]) == ("diverged", None, None)
    assert f"by step {one['steps']}" in one["reason"]
    assert 0 < one["steps"] < 131072 // BATCH_TOKENS
    assert one["steps"] % 4 == 0  # it is looked for where losses are logged
    scale = Scale(**one["scale"])
    shape = Shape(256, CONTEXT, head_size=8, query_heads=2, kv_heads=1)
    assert one["flops"] == pytest.approx(
        flops_per_token(scale, shape) * one["steps"] * BATCH_TOKENS, rel=1e-9
    )


def test_text_to_tokens_to_a_record_in_bits_per_byte(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    sentences = [f"the {a} of {b} is the {c} of the law" for a in "abc" for b in "defg" for c in "hijkl"]
    (tmp_path / "text.txt").write_text("\n".join(sentences * 40))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(tmp_path / "text.txt")], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    made = hyperp_train(
        tmp_path, "--prepare", "--files", "text.txt", "--output", "ids.bin", "--tokenizer", "tokenizer.json"
    )
    assert made.returncode == 0, made.stderr
    ids = tokens_corpus(tmp_path / "ids.bin")
    size = (tmp_path / "text.txt").stat().st_size
    whole = len(ids.train) + len(ids.held_out)
    assert size / whole > 1.5

    done = hyperp_train(tmp_path, *TINY, "data=tokens", "data.path=ids.bin", "scale.tokens=8192")
    assert done.returncode == 0, done.stderr
    one = only_record(tmp_path / "runs" / "single")
    assert (one["status"], one["data"]) == ("finished", "tokens")
    assert one["loss"] < 4.0  # a uniform guess is 5.6
    assert one["bits_per_byte"] == pytest.approx(one["loss"] / math.log(2) * whole / size, rel=1e-9)
    shape = Shape(ids.vocab_size, CONTEXT, head_size=8, query_heads=2, kv_heads=1)
    assert one["flops"] == flops_per_token(Scale(**one["scale"]), shape) * 8192
