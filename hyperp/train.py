"""Make a run folder end in a record: the loop over steps, its checkpoints, and the `hyperp-train` command."""

import math
import platform
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from hyperp import checkpoint, record
from hyperp.config import Config
from hyperp.data import Corpus
from hyperp.flops import training_flops
from hyperp.record import Record
from hyperp.tracking import Tracker
from hyperp.trainer import Trainer

HEARTBEAT_SECONDS = 1.0

# Called as report(step, steps, training loss in nats per token, tokens per second).
Report = Callable[[int, int, float, float], None]


class Clock:
    """Seconds of training, over restarts, and the heartbeat that other processes read."""

    def __init__(self, trainer: Trainer, run_dir: Path):
        self.trainer, self.run_dir = trainer, run_dir
        self.start = time.monotonic() - trainer.seconds
        self.first_step, self.first_seconds = trainer.step, trainer.seconds
        self.last_beat = 0.0

    def speed(self) -> float:
        """Count the seconds; return tokens per second since this process began."""
        t = self.trainer
        t.seconds = time.monotonic() - self.start
        done = (t.step - self.first_step) * t.config.scale.batch_tokens
        return done / max(t.seconds - self.first_seconds, 1e-9)

    def beat(self) -> None:
        """Say that the run is alive, at most once in HEARTBEAT_SECONDS."""
        if time.monotonic() - self.last_beat < HEARTBEAT_SECONDS:
            return
        self.last_beat = time.monotonic()
        steps = {"step": self.trainer.step, "steps": self.trainer.config.scale.steps}
        speed = {"tokens_per_second": self.speed(), "time": time.time(), "host": socket.gethostname()}
        record.write_json(self.run_dir / "heartbeat.json", steps | speed)


def run_steps(trainer: Trainer, run_dir: Path, tracker: Tracker, report: Report | None) -> str | None:
    """Train to the end, or until the run has diverged: then returns the reason."""
    runtime, steps = trainer.config.runtime, trainer.config.scale.steps
    metrics = checkpoint.MetricsLog(run_dir / "metrics.jsonl", trainer.step, also=tracker.write)
    clock = Clock(trainer, run_dir)
    reason, mean, losses = None, float("nan"), []
    try:
        while trainer.step < steps and reason is None:
            losses.append(trainer.train_step())
            step = trainer.step
            clock.beat()
            if step % runtime.log_every == 0 or step == steps:
                mean = float(torch.stack(losses).mean())
                losses.clear()
                speed = clock.speed()
                if report:
                    report(step, steps, mean, speed)
                rate = trainer.config.schedule.factor(step - 1, steps) * trainer.rates["hidden"].lr
                metrics.write(step, loss=mean, lr=rate, tokens_per_second=speed)
                reason = trainer.monitor.reason(step)
            if runtime.eval_every and step % runtime.eval_every == 0 and step < steps:
                metrics.write(step, held_out_loss=trainer.evaluate())
            due = runtime.checkpoint_every and step % runtime.checkpoint_every == 0 and step < steps
            if due and reason is None:
                checkpoint.save(run_dir / "checkpoint.pt", trainer.state())
    finally:
        metrics.close()
    return reason


def base_record(config: Config, **values: Any) -> Record:
    """A record of what is known from the configuration alone, and `values`."""
    rate = config.parametrization.effective_lr("hidden", config.scale, config.base_lr)
    known = {
        "run_id": config.run_id(),
        "optimizer": config.optim.name,
        "parametrization": config.parametrization.name,
        "schedule": config.schedule.shape,
        "data": config.data.source,
        "scale": asdict(config.scale),
        "seed": config.seed,
        "lr": rate.lr,
        "base_lr": config.base_lr,
        "config": asdict(config),
        "version": version("hyperp-scaling"),
    }
    return Record(**(known | values))


def finish(trainer: Trainer, reason: str | None) -> Record:
    """Evaluate, and say how the run ended."""
    config = trainer.config
    loss = None if reason else trainer.evaluate()
    if loss is not None and not math.isfinite(loss):
        loss, reason = None, f"held-out loss {loss} at step {trainer.step}"
    tokens = trainer.step * config.scale.batch_tokens
    device = (
        torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else platform.machine()
    )
    return base_record(
        config,
        status="diverged" if reason else "finished",
        reason=reason,
        factors={role: {**rate.factors, "lr": rate.lr} for role, rate in trainer.rates.items()},
        loss=loss,
        bits_per_byte=None if loss is None else loss / math.log(2) / trainer.corpus.bytes_per_token,
        train_loss=trainer.monitor.mean_loss(),
        steps=trainer.step,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        flops=training_flops(config.scale, trainer.shape) * trainer.step / config.scale.steps,
        seconds=round(trainer.seconds, 3),
        tokens_per_second=round(tokens / max(trainer.seconds, 1e-9), 1),
        resumed=trainer.resumed,
        environment={
            "corpus_sha256": trainer.corpus.digest,
            "device": device,
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
        },
    )


def train(
    config: Config, run_dir: Path, report: Report | None = None, corpus: Corpus | None = None
) -> Record:
    """Do the run in `run_dir`, or what is left of it, and return its record.

    A run that has finished or diverged before is not done again; one that was killed resumes from its last
    checkpoint to the same bits (on CPU). Raises ValueError for a configuration that cannot be run here,
    before anything is written; a later exception leaves the record of a failed run and is raised again.
    """
    ended = record.load(run_dir)
    if ended is not None and ended.status != "failed":
        return ended
    trainer = Trainer(config, corpus)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(asdict(config)), run_dir / "config.yaml")
    tracker = None
    try:
        tracker = Tracker(config, run_dir)
        saved = checkpoint.load(run_dir / "checkpoint.pt", trainer.device)
        if saved is not None:
            trainer.restore(saved)
        result = finish(trainer, run_steps(trainer, run_dir, tracker, report))
    except Exception as error:
        record_failure(config, run_dir, error)
        if tracker:
            tracker.finish(None)
        raise
    tracker.finish(result)
    record.save(result, run_dir)
    for leftover in ("checkpoint.pt", "heartbeat.json", "error.txt"):
        (run_dir / leftover).unlink(missing_ok=True)
    return result


def record_failure(config: Config, run_dir: Path, error: Exception) -> Record:
    """Write a record with status `failed` and the exception's one line, and its traceback to `error.txt`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "error.txt").write_text("".join(traceback.format_exception(error)))
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    failed = base_record(config, status="failed", reason=reason)
    record.save(failed, run_dir)
    (run_dir / "heartbeat.json").unlink(missing_ok=True)
    return failed


def train_or_record_failure(config: Config, run_dir: Path, report: Report | None = None) -> Record:
    """`train`, but an exception becomes the record of a failed run, and is not raised."""
    try:
        return train(config, run_dir, report)
    except Exception as error:
        return record_failure(config, run_dir, error)
