"""Make a run folder end in a record: the loop over steps, its log, its checkpoints, and how it ended."""

import math
import platform
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from hyperp import __version__
from hyperp.config import Config
from hyperp.data.corpus import Corpus
from hyperp.distributed import ranks as distributed
from hyperp.distributed.ranks import Ranks
from hyperp.files import HeldError, is_locked, lock, remove_leftovers, replacing
from hyperp.flops import training_flops
from hyperp.optim.linalg.msign import resolve_msign_dtype
from hyperp.optim.rule import RULES, option_names
from hyperp.roles import Role
from hyperp.rundir import allocation, failure, heartbeat, record
from hyperp.rundir.failure import Failure, one_line
from hyperp.rundir.heartbeat import Heartbeat
from hyperp.rundir.metrics import MetricsLog, NoLog
from hyperp.rundir.record import Record
from hyperp.training import checkpoint, sharded_checkpoint
from hyperp.training.coordinates import Coordinates
from hyperp.training.tracking import Tracker
from hyperp.training.trainer import Trainer

LOCK, CHECKPOINT = ".lock", "checkpoint.pt"
TAKEN = 2  # told to the other ranks in place of 1, a wish to stop

# Called as report(step, steps, training loss in nats per token, tokens per second).
Report = Callable[[int, int, float, float], None]


class Stopped(BaseException):
    """The run was asked to stop, and has saved `step` to go on from. Not an Exception: nothing has failed."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}, which is saved")
        self.step = step


class Clock:
    """Seconds of training, over restarts, and tokens per second of this process."""

    def __init__(self, trainer: Trainer):
        self.start, self.earlier, self.first_step = time.monotonic(), trainer.seconds, trainer.step
        self.batch_tokens = trainer.config.scale.batch_tokens

    def seconds(self) -> float:
        """Of training so far, those of earlier processes included."""
        return self.earlier + time.monotonic() - self.start

    def speed(self, step: int) -> float:
        """Tokens per second since this process began."""
        return (step - self.first_step) * self.batch_tokens / max(time.monotonic() - self.start, 1e-9)


def run_steps(
    trainer: Trainer,
    run_dir: Path,
    tracker: Tracker,
    report: Report | None,
    stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Train to the end, or until the run has diverged: then returns the reason.

    `stop` is asked after every step; if it says so on any rank, the step is saved and Stopped raised.
    """
    config, steps, ranks = trainer.config, trainer.config.scale.steps, trainer.ranks
    runtime, clock = config.runtime, Clock(trainer)
    metrics = (
        MetricsLog(run_dir / "metrics.jsonl", trainer.step, also=tracker.write) if ranks.main else NoLog()
    )
    reason, losses = None, trainer.unlogged

    def news() -> dict[str, Any]:
        speed = clock.speed(trainer.step)
        return {"step": trainer.step, "steps": steps, "tokens_per_second": speed}

    activations = Coordinates(trainer, run_dir)
    beating = Heartbeat(run_dir, news) if ranks.main else nullcontext()
    with closing(metrics), closing(activations), beating as beat:
        while trainer.step < steps and reason is None:
            losses.append(trainer.train_step())
            stopping, step = asked_to_stop(ranks, beat, stop), trainer.step
            activations.look(step)
            if step % runtime.log_every == 0 or step == steps:
                mean, speed = float(torch.stack(losses).mean()), clock.speed(step)
                losses.clear()
                if report and ranks.main:
                    report(step, steps, mean, speed)
                rate = config.schedule.factor(step - 1, steps) * trainer.rates["hidden"].lr
                metrics.write(step, loss=mean, lr=rate, tokens_per_second=speed, **trainer.balance())
                reason = ranks.share(lambda: trainer.monitor.reason(trainer.step))
            if (seen := trainer.stability.take()) is not None:
                metrics.write(step, stability=seen)
            if runtime.eval_every and step % runtime.eval_every == 0 and step < steps:
                metrics.write(step, held_out_loss=trainer.evaluate())
            due = runtime.checkpoint_every and step % runtime.checkpoint_every == 0
            if (due or stopping) and step < steps:
                reason = reason or ranks.share(lambda: trainer.monitor.reason(trainer.step))
                if reason is None:
                    trainer.seconds = clock.seconds()
                    save_state(trainer, run_dir)
                    if stopping:
                        raise Stopped(step)
        trainer.seconds = clock.seconds()
    return reason


def asked_to_stop(ranks: Ranks, beat: Heartbeat | None, stop: Callable[[], bool]) -> bool:
    """Whether any rank was asked to; HeldError on all of them if another process has taken the run over."""
    told = ranks.largest(TAKEN if beat and beat.lost else int(stop()))
    if told == TAKEN:
        raise HeldError("the run was taken over by another process")
    return bool(told)


def save_state(trainer: Trainer, run_dir: Path) -> None:
    """What the run goes on from, on any number of processes; replaces what was there."""
    if trainer.ranks.together:
        sharded_checkpoint.save(run_dir, trainer)
        trainer.ranks.share(lambda: (run_dir / CHECKPOINT).unlink(missing_ok=True))
    else:
        checkpoint.save(run_dir / CHECKPOINT, trainer.state())
        sharded_checkpoint.remove(run_dir)


def restore_state(trainer: Trainer, run_dir: Path) -> None:
    """Go on from what was saved, if anything was."""
    folder = trainer.ranks.share(lambda: sharded_checkpoint.newest(run_dir))
    if folder is not None:
        sharded_checkpoint.restore(trainer, folder)
    elif trainer.ranks.share(lambda: checkpoint.load(run_dir / CHECKPOINT) is not None):
        saved = checkpoint.load(run_dir / CHECKPOINT)
        assert saved is not None
        trainer.restore(saved)


def base_record(config: Config, roles: Iterable[Role] = ("hidden",), **values: Any) -> Record:
    """A record of what is known from the configuration alone, with the rates of `roles`, and `values`."""
    rule = config.parametrization
    rates = {role: rule.effective_lr(role, config.scale, config.base_lr) for role in roles}
    rate = rule.effective_lr("hidden", config.scale, config.base_lr)
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
        "factors": {role: {**r.factors, "lr": r.lr} for role, r in rates.items()},
        "config": asdict(config),
        "version": __version__,
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
        roles=trainer.rates,
        status="diverged" if reason else "finished",
        reason=reason,
        algorithms={group["role"]: _algorithm(group) for group in trainer.optimizer.param_groups},
        loss=loss,
        bits_per_byte=None if loss is None else loss / math.log(2) / trainer.corpus.bytes_per_token,
        train_loss=trainer.monitor.mean_loss(),
        steps=trainer.step,
        epochs=tokens / len(trainer.corpus.train),
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        flops=training_flops(config.scale, trainer.shape) * trainer.step / config.scale.steps,
        seconds=round(trainer.seconds, 3),
        tokens_per_second=round(tokens / max(trainer.seconds, 1e-9), 1),
        max_vio=trainer.loads.summary() if trainer.loads else {},
        stability=trainer.stability.summary(),
        resumed=trainer.resumed,
        environment={
            "corpus_sha256": trainer.corpus.digest,
            "device": device,
            "host": socket.gethostname(),
            "precision": trainer.precision,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "processes": str(trainer.ranks.size),
            **({"parallel": config.runtime.parallel} if trainer.ranks.together else {}),
            **allocation.environment(),
        },
    )


def _algorithm(group: dict[str, Any]) -> dict[str, Any]:
    options = {name: group[name] for name in option_names(RULES[group["algorithm"]])}
    if "msign_dtype" in options:  # what was used, which a checkpoint says too
        options["msign_dtype"] = resolve_msign_dtype(options["msign_dtype"], group["params"])
    return {"algorithm": group["algorithm"], **options}


def train(
    config: Config,
    run_dir: Path,
    report: Report | None = None,
    corpus: Corpus | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Do the run in `run_dir`, or what is left of it, and return its record.

    A run that has finished or diverged before is not done again; one that was killed resumes from its last
    checkpoint to the same bits (on CPU). Raises ValueError for a configuration that cannot be run here,
    before anything is written, HeldError if another process is doing the run, and Stopped once `stop` says
    so. A later exception becomes the record of a failed run, which the next call does again; its traceback is
    in `run_dir`/error.txt until then. Where this process is one of several (`distributed.joined`), all call
    this alike; the main one writes, of the rank that failed first, and an exception leaves the others as it
    is, with word of it in error.N.json.
    """
    ranks = distributed.world()
    ended = ranks.share(lambda: _ended(config, run_dir))
    if ended is not None:
        return ended
    trainer = Trainer(config, corpus)
    with ExitStack() as held:
        ended = ranks.share(lambda: _take(config, run_dir, held))
        if ended is not None:  # by the process that held the lock
            return ended
        try:
            result = _train(trainer, run_dir, report, stop)
        except HeldError:  # whoever has the run now writes its record
            raise
        except Exception as error:
            met = failure.tell(run_dir, error, ranks.rank, ranks.size)
            if not ranks.main:
                raise
            return _record_first(config, run_dir, met)
        if ranks.main:
            sharded_checkpoint.remove(run_dir)
            for leftover in (CHECKPOINT, LOCK):
                (run_dir / leftover).unlink(missing_ok=True)
    return result


def _take(config: Config, run_dir: Path, held: ExitStack) -> Record | None:
    """Take the run: its lock is in `held` then. Returns the record if it has ended meanwhile."""
    run_dir.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock(run_dir / LOCK, f"run {config.run_id()}"))
    record.load_or_set_aside(run_dir)
    ended = _ended(config, run_dir)
    if ended is not None:
        return ended
    heartbeat.wait_for_silence(run_dir, f"run {config.run_id()}")
    remove_leftovers(run_dir)
    failure.forget(run_dir)
    with replacing(run_dir / "config.yaml") as file:
        OmegaConf.save(OmegaConf.create(asdict(config)), file)
    return None


def _record_first(config: Config, run_dir: Path, met: Failure) -> Record:
    """Of what the ranks have met, the main one `met`, what came first."""
    return [record_failure(config, run_dir, first) for first in failure.what_came_first(run_dir, met)][-1]


def _ended(config: Config, run_dir: Path) -> Record | None:
    try:
        ended = record.load(run_dir)
    except record.OtherSchemaError:
        raise
    except ValueError:  # damaged: set aside once this process holds the run
        return None
    if ended is not None and ended.run_id != config.run_id():
        raise ValueError(
            f"{run_dir} holds run {ended.run_id}, and not {config.run_id()}, which was to go there"
        )
    return None if ended is None or ended.status == "failed" else ended


def _train(trainer: Trainer, run_dir: Path, report: Report | None, stop: Callable[[], bool]) -> Record:
    restore_state(trainer, run_dir)
    tracker = Tracker(trainer.config, run_dir, trainer.ranks.main)
    try:
        result = finish(trainer, run_steps(trainer, run_dir, tracker, report, stop))
    except HeldError:
        raise
    except Exception as error:
        tracker.finish(base_record(trainer.config, status="failed", reason=one_line(error)))
        raise
    trainer.ranks.share(lambda: record.save(result, run_dir))
    tracker.finish(result)
    return result


def record_failure(
    config: Config,
    run_dir: Path,
    met: Failure | str,
    environment: dict[str, str] | None = None,
    cause: str | None = None,
) -> Record:
    """Write the record of a failed run: a reason and a `cause`, or what a rank met, with its error.txt.

    `environment` is where the run was; None means here. The error.txt of another try is removed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    where = allocation.environment() if environment is None else environment
    if isinstance(met, Failure):
        reason, cause = met.reason, met.cause
        with replacing(run_dir / "error.txt") as file:
            file.write(met.traceback)
    else:
        reason = met
        if not _guessed(run_dir, where):
            (run_dir / "error.txt").unlink(missing_ok=True)
    failed = base_record(config, status="failed", reason=reason, cause=cause, environment=where)
    record.save(failed, run_dir)
    (run_dir / heartbeat.FILE).unlink(missing_ok=True)
    return failed


def _guessed(run_dir: Path, where: dict[str, str]) -> bool:
    """Whether the record that is there is of this very try of a Slurm job, and guesses what ended it."""
    try:
        ended = record.load(run_dir)
    except ValueError:
        return False
    if ended is None or ended.cause != failure.LOST or "slurm_job_id" not in where:
        return False
    return all(ended.environment.get(n) == where.get(n) for n in ("slurm_job_id", "slurm_restart_count"))


def train_or_record_failure(
    config: Config,
    run_dir: Path,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """`train`, but a configuration that cannot be run here becomes the record of a failed run too.

    A record that is there already, of this run by another process or of another run, is left alone.
    """
    ranks = distributed.world()
    try:
        ranks.share(lambda: None if is_locked(run_dir / LOCK) else failure.forget_words(run_dir))
        return train(config, run_dir, report, stop=stop)
    except HeldError:
        raise
    except Exception as error:
        met = failure.tell(run_dir, error, ranks.rank, ranks.size)
        if not ranks.main:
            raise
        run_dir.mkdir(parents=True, exist_ok=True)
        with lock(run_dir / LOCK, f"run {config.run_id()}"):
            return _ended(config, run_dir) or _record_first(config, run_dir, met)
