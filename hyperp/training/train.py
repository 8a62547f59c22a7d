"""Do one run in its folder: the loop over steps, its log and checkpoints, and the record of how it ended."""

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

from hyperp import __version__
from hyperp.config import Config
from hyperp.data.corpus import Corpus
from hyperp.distributed.ranks import Ranks, current_ranks
from hyperp.files import HeldError, is_locked, lock, replacing
from hyperp.flops import training_flops
from hyperp.optim.linalg.msign import resolve_msign_dtype
from hyperp.optim.rule import RULES, option_names
from hyperp.roles import Role
from hyperp.rundir import allocation, failure, heartbeat, record
from hyperp.rundir.claim import LOCK, Stopped, claim_run, completed_record
from hyperp.rundir.failure import Failure, exception_summary
from hyperp.rundir.heartbeat import HeartbeatWriter
from hyperp.rundir.metrics import METRICS, MetricsLog, NoLog
from hyperp.rundir.record import Record
from hyperp.training import checkpoint, sharded_checkpoint
from hyperp.training.coordinates import CoordinateCheck
from hyperp.training.tracking import Tracker
from hyperp.training.trainer import Trainer

CHECKPOINT = "checkpoint.pt"
TAKEN_OVER = 2  # sent to the other ranks in place of 1, which is a request to stop

# Called as report(step, steps, training loss in nats per token, tokens per second).
Report = Callable[[int, int, float, float], None]


class Clock:
    """Seconds of training, summed over restarts, and the speed of this process."""

    def __init__(self, trainer: Trainer):
        self.start, self.earlier, self.first_step = time.monotonic(), trainer.seconds, trainer.step
        self.batch_tokens = trainer.config.scale.batch_tokens

    def seconds(self) -> float:
        """Seconds of training so far, those of earlier processes included."""
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
    """Train to the last step and return None, or return the reason once the run has diverged.

    `stop` is called after every step; if it is true on any rank, saves the step and raises Stopped.
    """
    config, steps, ranks = trainer.config, trainer.config.scale.steps, trainer.ranks
    runtime, clock = config.runtime, Clock(trainer)
    metrics = MetricsLog(run_dir / METRICS, trainer.step, tracker.write) if ranks.is_main else NoLog()
    reason, losses = None, trainer.unlogged

    def progress() -> dict[str, Any]:
        speed = clock.speed(trainer.step)
        return {"step": trainer.step, "steps": steps, "tokens_per_second": speed}

    coordinates = CoordinateCheck(trainer, run_dir)
    beating = HeartbeatWriter(run_dir, progress) if ranks.is_main else nullcontext()
    with closing(metrics), closing(coordinates), beating as beat:
        while trainer.step < steps and reason is None:
            losses.append(trainer.train_step())
            stopping, step = stop_requested(ranks, beat, stop), trainer.step
            coordinates.measure(step)
            if step % runtime.log_every == 0 or step == steps:
                mean, speed = float(torch.stack(losses).mean()), clock.speed(step)
                losses.clear()
                if report and ranks.is_main:
                    report(step, steps, mean, speed)
                rate = config.schedule.factor(step - 1, steps) * trainer.rates["hidden"].lr
                metrics.write(step, loss=mean, lr=rate, tokens_per_second=speed, **trainer.balance_metrics())
                reason = ranks.share(lambda: trainer.divergence.reason(trainer.step))
            if (seen := trainer.stability.take()) is not None:
                metrics.write(step, stability=seen)
            if runtime.eval_every and step % runtime.eval_every == 0 and step < steps:
                metrics.write(step, held_out_loss=trainer.evaluate())
            due = runtime.checkpoint_every and step % runtime.checkpoint_every == 0
            if (due or stopping) and step < steps:
                reason = reason or ranks.share(lambda: trainer.divergence.reason(trainer.step))
                if reason is None:
                    trainer.seconds = clock.seconds()
                    save_checkpoint(trainer, run_dir)
                    if stopping:
                        raise Stopped(step)
        trainer.seconds = clock.seconds()
    return reason


def stop_requested(ranks: Ranks, beat: HeartbeatWriter | None, stop: Callable[[], bool]) -> bool:
    """Whether any rank was asked to stop. Raises HeldError on all ranks if the run was taken over."""
    request = ranks.largest(TAKEN_OVER if beat and beat.lost else int(stop()))
    if request == TAKEN_OVER:
        raise HeldError("the run was taken over by another process")
    return bool(request)


def save_checkpoint(trainer: Trainer, run_dir: Path) -> None:
    """Save what the run resumes from, on any number of ranks, in place of the last checkpoint."""
    if trainer.ranks.is_distributed:
        sharded_checkpoint.save(run_dir, trainer)
        trainer.ranks.share(lambda: (run_dir / CHECKPOINT).unlink(missing_ok=True))
    else:
        checkpoint.save(run_dir / CHECKPOINT, trainer.state())
        sharded_checkpoint.remove(run_dir)


def restore_checkpoint(trainer: Trainer, run_dir: Path) -> None:
    """Resume from the last checkpoint, if there is one."""
    folder = trainer.ranks.share(lambda: sharded_checkpoint.newest(run_dir))
    if folder is not None:
        sharded_checkpoint.restore(trainer, folder)
    elif trainer.ranks.share(lambda: checkpoint.load(run_dir / CHECKPOINT) is not None):
        saved = checkpoint.load(run_dir / CHECKPOINT)
        assert saved is not None
        trainer.restore(saved)


def base_record(config: Config, roles: Iterable[Role] = ("hidden",), **values: Any) -> Record:
    """A record of what the configuration alone determines, with the rates of `roles`, and of `values`."""
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


def final_record(trainer: Trainer, reason: str | None) -> Record:
    """Evaluate a run that has trained to its end, or has diverged for `reason`, and make its record."""
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
        algorithms={group["role"]: _algorithm_options(group) for group in trainer.optimizer.param_groups},
        loss=loss,
        bits_per_byte=None if loss is None else loss / math.log(2) / trainer.corpus.bytes_per_token,
        train_loss=trainer.divergence.mean_loss(),
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
            **({"parallel": config.runtime.parallel} if trainer.ranks.is_distributed else {}),
            **allocation.slurm_environment(),
        },
    )


def _algorithm_options(group: dict[str, Any]) -> dict[str, Any]:
    options = {name: group[name] for name in option_names(RULES[group["algorithm"]])}
    if "msign_dtype" in options:  # the one that was used, as in a checkpoint
        options["msign_dtype"] = resolve_msign_dtype(options["msign_dtype"], group["params"])
    return {"algorithm": group["algorithm"], **options}


def train(
    config: Config,
    run_dir: Path,
    report: Report | None = None,
    corpus: Corpus | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Do the run in `run_dir`, or the rest of it, and return its record.

    A run that has finished or diverged is not done again; one that was killed resumes from its last
    checkpoint to the same bits (on CPU). With several ranks (`join_process_group`), all of them call this
    alike and rank 0 writes the files.

    A later exception becomes the record of a failed run, with the traceback in `run_dir`/error.txt; the next
    call does the run again. With several ranks the record is of the one that failed first; ranks other than 0
    write their failure to error.N.json and raise the exception.

    Raises:
        ValueError: the configuration cannot be run here; nothing was written.
        HeldError: another process is doing the run.
        Stopped: `stop` returned true, and the step was saved.
    """
    ranks = current_ranks()
    ended = ranks.share(lambda: completed_record(config.run_id(), run_dir))
    if ended is not None:
        return ended
    trainer = Trainer(config, corpus)
    with ExitStack() as held:
        ended = ranks.share(lambda: _claim_for_rank_0(config, run_dir, held))
        if ended is not None:  # by the process that held the lock
            return ended
        try:
            result = _train_to_record(trainer, run_dir, report, stop)
        except HeldError:  # whoever has the run now writes its record
            raise
        except Exception as error:
            met = failure.report_failure(run_dir, error, ranks.rank, ranks.size)
            if not ranks.is_main:
                raise
            return _record_first_failure(config, run_dir, met)
        if ranks.is_main:
            sharded_checkpoint.remove(run_dir)
            for leftover in (CHECKPOINT, LOCK):
                (run_dir / leftover).unlink(missing_ok=True)
    return result


def _claim_for_rank_0(config: Config, run_dir: Path, held: ExitStack) -> Record | None:
    """Claim the run, and return its record if it has ended meanwhile."""
    found = claim_run(config.run_id(), asdict(config), run_dir, held)
    return found if isinstance(found, Record) else None


def _record_first_failure(config: Config, run_dir: Path, met: Failure) -> Record:
    """Record the failure that came first; `met` is that of rank 0. Rewrites the record as more is known."""
    tracked = failure.track_first_failure(run_dir, met)
    return [write_failed_record(config, run_dir, first) for first in tracked][-1]


def _train_to_record(
    trainer: Trainer, run_dir: Path, report: Report | None, stop: Callable[[], bool]
) -> Record:
    restore_checkpoint(trainer, run_dir)
    tracker = Tracker(trainer.config, run_dir, trainer.ranks.is_main)
    try:
        result = final_record(trainer, run_steps(trainer, run_dir, tracker, report, stop))
    except HeldError:
        raise
    except Exception as error:
        tracker.finish(base_record(trainer.config, status="failed", reason=exception_summary(error)))
        raise
    trainer.ranks.share(lambda: record.save(result, run_dir))
    tracker.finish(result)
    return result


def write_failed_record(
    config: Config,
    run_dir: Path,
    met: Failure | str,
    environment: dict[str, str] | None = None,
    cause: str | None = None,
) -> Record:
    """Write the record of a failed run, from the Failure of a rank, or from a reason and a `cause`.

    A Failure's traceback goes to error.txt; otherwise the error.txt of an earlier attempt is removed.
    `environment` is where the run was; None means here.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    where = allocation.slurm_environment() if environment is None else environment
    if isinstance(met, Failure):
        reason, cause = met.reason, met.cause
        with replacing(run_dir / "error.txt") as file:
            file.write(met.traceback)
    else:
        reason = met
        if not _is_guess_of_same_attempt(run_dir, where):
            (run_dir / "error.txt").unlink(missing_ok=True)
    failed = base_record(config, status="failed", reason=reason, cause=cause, environment=where)
    record.save(failed, run_dir)
    (run_dir / heartbeat.FILE).unlink(missing_ok=True)
    return failed


def _is_guess_of_same_attempt(run_dir: Path, where: dict[str, str]) -> bool:
    """Whether the record is of the same attempt of a Slurm job, and only guesses what ended it."""
    try:
        ended = record.load(run_dir)
    except ValueError:
        return False
    if ended is None or ended.cause != failure.RANK_LOST or "slurm_job_id" not in where:
        return False
    return all(ended.environment.get(n) == where.get(n) for n in ("slurm_job_id", "slurm_restart_count"))


def train_or_record_failure(
    config: Config,
    run_dir: Path,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Call `train`, and record a configuration that cannot be run here as a failed run too.

    A record that is there already, of this run by another process or of another run, stays as it is.
    """
    ranks = current_ranks()
    try:
        ranks.share(lambda: None if is_locked(run_dir / LOCK) else failure.remove_rank_errors(run_dir))
        return train(config, run_dir, report, stop=stop)
    except HeldError:
        raise
    except Exception as error:
        met = failure.report_failure(run_dir, error, ranks.rank, ranks.size)
        if not ranks.is_main:
            raise
        run_dir.mkdir(parents=True, exist_ok=True)
        with lock(run_dir / LOCK, f"run {config.run_id()}"):
            return completed_record(config.run_id(), run_dir) or _record_first_failure(config, run_dir, met)
