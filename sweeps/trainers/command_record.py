"""The record of a command's run: what its configuration says, how it ended, and the results that it left."""

import math
import platform
import socket
from collections.abc import Mapping
from typing import Any

from hyperp import __version__
from hyperp.rundir import allocation
from hyperp.rundir.record import Record
from hyperp.sweeps.plan.command_run import CommandRun
from hyperp.sweeps.plan.command_section import STANDARD_RESULTS
from hyperp.sweeps.plan.placeholders import fill
from hyperp.sweeps.plan.run_config import facts_of, values_of
from hyperp.sweeps.trainers.attempts import Attempts
from hyperp.sweeps.trainers.output import OutputFollower
from hyperp.sweeps.trainers.results import NoResultError, read_result


def record_of_exit(
    run: CommandRun, places: Mapping[str, Any], attempts: Attempts, output: OutputFollower, code: int
) -> Record:
    """The record of a command that ended by itself, with an exit code, or a signal as a negative number.

    A loss that is not finite has diverged whatever the exit code; one above the limit only if the command
    ended well, since a log may begin with losses as high.
    """
    found: dict[str, float] = {}
    missing = None
    for name, source in run.trainer.result.items():
        try:
            place = fill(source.place, {**run.values, **places})
            found[name] = read_result(source, place, output.path, attempts.output_from)
        except NoResultError as error:
            missing = missing or f"result.{name}: {error}"
    loss, limit = found.pop("loss", None), run.trainer.diverged.limit
    where = {"wandb_run_id": output.wandb} if output.wandb else {}
    if loss is not None and code >= 0 and not math.isfinite(loss):
        return make_record(run, attempts, {"status": "diverged", "reason": f"loss {loss:g}"}, where)
    if code:
        return make_record(run, attempts, {"status": "failed", **failed_exit(code, output)}, where)
    if loss is not None and loss > limit:
        reason = f"loss {loss:g}, above {limit:g}"
        return make_record(run, attempts, {"status": "diverged", "reason": reason}, where)
    if missing is not None:
        reason = f"it ended with exit code 0, but {missing}"
        ended = {"status": "failed", "reason": reason, "cause": "no_result"}
        return make_record(run, attempts, ended, where)
    return make_record(run, attempts, {"status": "finished", "loss": loss}, where, found)


def failed_exit(code: int, output: OutputFollower) -> dict[str, str]:
    """Reason and cause for an exit code, or a signal as a negative number."""
    last = output.last_words()
    said = f": {last}" if last else ""
    if code < 0:
        return {"reason": f"killed by signal {-code}{said}", "cause": "killed"}
    return {
        "reason": f"exit code {code}{said}",
        "cause": "out_of_memory" if output.lacked_memory() else "exited",
    }


def make_record(
    run: CommandRun,
    attempts: Attempts,
    ended: Mapping[str, Any],
    where: Mapping[str, str] | None = None,
    results: Mapping[str, float] | None = None,
) -> Record:
    """A record of what the configuration and the attempts say.

    Args:
        run: the configuration.
        attempts: how often the command was started, and for how long.
        ended: fields that say how it ended: status, and reason, cause or loss.
        where: what to add to the environment.
        results: what was measured beside the loss; names that a record lacks become columns of their own.
    """
    facts, finished = facts_of(run), ended["status"] == "finished"
    seconds, measured = round(attempts.seconds, 3), dict(results or {})
    standard = {name: measured.pop(name) for name in STANDARD_RESULTS if name in measured}
    parameters = run.values.get("parameters")
    fields: dict[str, Any] = {
        "run_id": run.run_id(),
        **facts.context,
        "scale": facts.sizes,
        "seed": facts.seed,
        "lr": facts.lr,
        "base_lr": facts.base_lr,
        "config": values_of(run),
        "trainer": "command",
        "others": {**facts.others, **measured},
        "steps": facts.steps or attempts.step if finished else attempts.step,
        "parameters": int(parameters) if isinstance(parameters, int | float) else None,
        "flops": facts.flops if finished else None,
        "seconds": seconds,
        "tokens_per_second": round(facts.tokens / seconds, 1)
        if finished and facts.tokens and seconds
        else None,
        "resumed": attempts.resumed,
        "environment": _environment(run, attempts) | dict(where or {}),
        "version": __version__,
    }
    fields |= standard
    fields |= ended
    return Record(**fields)


def _environment(run: CommandRun, attempts: Attempts) -> dict[str, str]:
    """Where the run was done, and by which code."""
    code = {}
    if run.trainer.commit:
        code["commit"] = f"{run.trainer.commit}{'-dirty' * run.trainer.dirty}"
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "attempts": str(attempts.started),
        **code,
        **allocation.slurm_environment(),
    }
