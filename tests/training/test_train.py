"""One run: it learns, is deterministic, resumes to the same bits after SIGKILL, and records how it ended."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from hyperp.config import Config, compose, resolve
from hyperp.files import HeldError, lock
from hyperp.rundir import record
from hyperp.training import checkpoint
from hyperp.training.train import Stopped, train, train_or_record_failure
from hyperp.training.trainer import Trainer
from tests import forked

torch.set_num_threads(1)
OPTIMIZERS = ("sso", "muonsphere", "muonh", "adamh", "muon", "adamw")
TINY = (
    "scale.width=16",
    "scale.depth=1",
    "scale.tokens=8192",
    "model.context=32",
    "scale.batch_tokens=256",
    "data.held_out_tokens=2048",
    "parametrization=raw",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
    "runtime.threads=1",
    "runtime.log_every=4",
    "runtime.checkpoint_every=4",
)
VOLATILE = ("seconds", "tokens_per_second", "resumed", "config")


def config(root: Path, *words: str) -> Config:
    return resolve(compose([*TINY, f"runtime.root={root}", *words]))


def run(root: Path, *words: str) -> record.Record:
    made = config(root, *words)
    return train(made, root / made.run_id())


def facts(one: record.Record) -> dict:
    return {key: value for key, value in vars(one).items() if key not in VOLATILE}


def losses(run_dir: Path) -> list:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("loss"), row.get("held_out_loss")) for row in rows]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(tmp_path, optimizer):
    one = run(tmp_path, f"optim={optimizer}", "scale.tokens=32768", "base_lr=0.01")
    assert one.status == "finished"
    assert one.loss is not None
    assert one.loss < 4.0  # a uniform guess is 5.55 nats, the frequencies of bytes alone about 3.3
    assert one.bits_per_byte == pytest.approx(one.loss / 0.693147, rel=1e-5)


def test_the_same_configuration_gives_the_same_bits(tmp_path):
    one, two = run(tmp_path / "a"), run(tmp_path / "b")
    assert facts(one) == facts(two)
    assert losses(tmp_path / "a" / one.run_id) == losses(tmp_path / "b" / two.run_id)
    assert run(tmp_path / "a", "seed=1").loss != one.loss


def test_a_finished_run_is_not_done_again(tmp_path):
    one = run(tmp_path)
    path = tmp_path / one.run_id / "record.json"
    before = path.stat().st_mtime_ns
    assert run(tmp_path) == one
    assert path.stat().st_mtime_ns == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.yaml", "metrics.jsonl", "record.json"]


def test_logging_and_evaluating_more_often_changes_no_result(tmp_path):
    one = run(tmp_path / "a")
    two = run(tmp_path / "b", "runtime.log_every=1", "runtime.eval_every=3", "runtime.checkpoint_every=0")
    assert facts(one) == facts(two)


def test_gradient_accumulation_is_the_same_run(tmp_path):
    whole, parts = run(tmp_path / "a"), run(tmp_path / "b", "runtime.micro_batch_tokens=64")
    assert whole.run_id == parts.run_id
    assert parts.loss == pytest.approx(whole.loss, rel=1e-3)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("muonsphere", "adamh", "muon")]


@pytest.mark.parametrize("optimizer", ["muonh", "sso", "adamw", *OTHERS])
def test_sigkill_and_resume_give_the_same_bits(tmp_path, optimizer):
    words = ("scale.tokens=65536", f"optim={optimizer}", "runtime.eval_every=50")
    whole = run(tmp_path / "whole", *words)
    killed = config(tmp_path / "killed", *words)
    run_dir = tmp_path / "killed" / killed.run_id()
    for past_step in (30, 100):
        process = forked.context.Process(target=train, args=(killed, run_dir))
        process.start()
        wait_for_step(run_dir / "metrics.jsonl", past_step)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (run_dir / "checkpoint.pt").exists()
        assert record.load(run_dir) is None
    resumed = train(killed, run_dir)
    assert resumed.resumed == 2
    assert facts(resumed) == facts(whole)
    assert losses(run_dir) == losses(tmp_path / "whole" / whole.run_id)


def wait_for_step(path: Path, step: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists():
            lines = path.read_text().split("\n")[:-1]
            if lines and json.loads(lines[-1])["step"] > step:
                return
        time.sleep(0.002)
    raise AssertionError(f"{path} did not reach step {step}")


def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_over(tmp_path, caplog):
    one = run(tmp_path / "a")
    run_dir = tmp_path / "b" / one.run_id
    run_dir.mkdir(parents=True)
    (run_dir / "checkpoint.pt").write_bytes(b"half a file")
    two = run(tmp_path / "b")
    assert facts(two) == facts(one)
    assert "set aside as checkpoint.damaged" in caplog.text


def test_a_diverged_run_is_a_record_without_a_number(tmp_path):
    one = run(tmp_path, "optim=adamw", "parametrization=standard", "base_lr=30", "optim.clip=0")
    assert one.status == "diverged"
    assert one.loss is None
    assert "training loss" in (one.reason or "")
    assert json.loads((tmp_path / one.run_id / "record.json").read_text())["loss"] is None


def test_a_failure_is_a_record_that_a_later_run_repairs(tmp_path, monkeypatch):
    made = config(tmp_path)
    run_dir = tmp_path / made.run_id()

    def broken(self):
        raise RuntimeError("out of luck\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", broken)
        one = train_or_record_failure(made, run_dir)
    assert (one.status, one.reason) == ("failed", "RuntimeError: out of luck")
    assert "broken" in (run_dir / "error.txt").read_text()
    assert train(made, run_dir).status == "finished"
    assert not (run_dir / "error.txt").exists()


def test_an_error_in_training_is_a_failed_record_and_never_bad_input(tmp_path, monkeypatch):
    made = config(tmp_path)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    one = train(made, tmp_path / made.run_id())
    assert (one.status, one.reason) == ("failed", "OSError: No space left on device")


def test_a_run_that_another_process_does_is_left_to_it(tmp_path):
    made = config(tmp_path)
    run_dir = tmp_path / made.run_id()
    run_dir.mkdir()
    for do in (train, train_or_record_failure):
        with (
            lock(run_dir / ".lock", "it"),
            pytest.raises(HeldError, match=f"{made.run_id()} is held by process"),
        ):
            do(made, run_dir)
    assert record.load(run_dir) is None
    assert train(made, run_dir).status == "finished"


def test_a_damaged_record_is_set_aside_and_the_run_done_again(tmp_path, caplog):
    one = run(tmp_path)
    path = tmp_path / one.run_id / "record.json"
    path.write_text(path.read_text()[:100])
    assert facts(run(tmp_path)) == facts(one)
    assert "set aside as record.damaged" in caplog.text


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    one = run(tmp_path)
    other = config(tmp_path, "seed=1")
    for do in (train, train_or_record_failure):
        with pytest.raises(ValueError, match=f"run_dir must .*{other.run_id()}, got .*{one.run_id}"):
            do(other, tmp_path / one.run_id)
    assert record.load(tmp_path / one.run_id) == one


def test_a_run_does_not_go_on_with_other_text(tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_bytes(bytes(range(32, 127)) * 4000)
    made = config(tmp_path, "data=text", f"data.files=[{text}]")
    run_dir = tmp_path / made.run_id()
    trainer = Trainer(made)
    for _ in range(4):
        trainer.train_step()
    run_dir.mkdir()
    checkpoint.save(run_dir / "checkpoint.pt", trainer.state())
    text.write_bytes(bytes(range(32, 126)) * 4000)
    one = train(made, run_dir)
    assert one.status == "failed"
    assert (one.reason or "").startswith("ValueError: data.source must be that of the checkpoint")
    assert (run_dir / "checkpoint.pt").exists()


def test_the_record_says_every_option_and_its_precision(tmp_path):
    one = run(tmp_path, "optim=sso")
    assert one.algorithms["hidden"]["algorithm"] == "sso"
    assert one.algorithms["hidden"]["momentum"] == 0.9
    assert one.algorithms["embedding"]["algorithm"] == "adamw"
    assert one.environment["precision"] == "float32"
    assert one.epochs is not None
    assert 0 < one.epochs < 1


def test_the_training_loss_is_of_the_last_steps_alone(tmp_path):
    one = run(tmp_path, "scale.tokens=4096", "runtime.log_every=1")
    logged = [loss for _, loss, _ in losses(tmp_path / one.run_id) if loss is not None]
    assert len(logged) == 16
    assert one.train_loss is not None
    weights = [(31 / 32) ** (16 - 1 - i) for i in range(16)]
    mean = sum(w * x for w, x in zip(weights, logged, strict=True)) / sum(weights)
    assert one.train_loss == pytest.approx(mean, rel=1e-6)


def test_bad_input_writes_nothing(tmp_path):
    made = config(tmp_path / "runs", "data=text", f"data.files=[{tmp_path}/nothing/*.txt]")
    with pytest.raises(ValueError, match="nothing"):
        train(made, tmp_path / "runs" / made.run_id())
    assert not (tmp_path / "runs").exists()


def test_the_record_says_every_factor(tmp_path):
    one = run(tmp_path, "parametrization=hyperp")
    for factors in one.factors.values():
        product = one.base_lr
        for name, value in factors.items():
            product *= 1.0 if name == "lr" else value
        assert factors["lr"] == pytest.approx(product, rel=1e-12)
    assert one.lr == one.factors["hidden"]["lr"]


def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", "runtime.checkpoint_every=0")
    made, steps = config(tmp_path / "stopped", "runtime.checkpoint_every=0"), []
    folder = tmp_path / "stopped" / made.run_id()
    for stop_after in (1, 5, 6):

        def asked(after: int = stop_after) -> bool:
            saved = len(steps)
            steps.append(saved)
            return saved + 1 == after

        with pytest.raises(Stopped, match=f"step {stop_after}\\b"):
            train(made, folder, stop=asked)
        assert record.load(folder) is None
    ended = train(made, folder)
    assert ended.resumed == 3
    assert facts(ended) == facts(whole)
    assert losses(folder) == losses(tmp_path / "whole" / whole.run_id)
