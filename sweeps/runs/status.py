"""The status of every run of a sweep, from the files that the runs wrote."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from hyperp.run_table import DONE, STATUSES
from hyperp.rundir import heartbeat
from hyperp.rundir.heartbeat import Heartbeat
from hyperp.rundir.record import Record
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan
from hyperp.sweeps.plan.planfile import Planned
from hyperp.sweeps.runs.run import load_record
from hyperp.validation import invalid_field

UNDER_WAY = ("queued", "running")


@dataclass(frozen=True)
class Run:
    """One run and its status: planned, or found below the root without a plan (`planned` is None then).

    `reason` says why the run diverged or failed, or that a planned run was started and stopped. `cause` is
    one of `hyperp.rundir.record.CAUSES` for a failed run. `damaged` says what is wrong with a folder or
    record.json that cannot be read; such a run counts as failed. `job` is the last Slurm job of the run, or
    the background pool that works on it; `time_left` is that job's; `beat_job` wrote the last heartbeat.
    """

    run_id: str
    status: str
    reason: str | None = None
    planned: Planned | None = None
    record: Record | None = None
    damaged: str | None = None
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    cause: str | None = None
    job: str | None = None
    beat_job: str | None = None
    time_left: str | None = None

    @property
    def block(self) -> str | None:
        """The first block of the plan that asks for it."""
        return self.planned.blocks[0] if self.planned and self.planned.blocks else None


def survey_runs(root: Path) -> list[Run]:
    """Every planned run in the order of the plan, then runs that no plan names, by id.

    Raises ValueError if `root` holds neither a plan nor a run, and for a damaged plan.
    """
    if not root.is_dir():
        raise ValueError(
            f"ROOT must be the folder of a sweep (its runtime.root), got {root}, which is no folder"
        )
    planned = planfile.read_plan(root)
    known = {point.run_id for point in planned}
    others = sorted(path.parent.name for path in root.glob("*/record.json") if path.parent.name not in known)
    if not planned and not others:
        raise ValueError(f"ROOT must hold a plan.json or runs, got {root}, which holds neither")
    runs = [run_state(root, point.run_id, point) for point in planned]
    return runs + [run_state(root, run_id, None) for run_id in others]


def run_state(root: Path, run_id: str, planned: Planned | None) -> Run:
    """The state of one run. Its record decides, except that a failed run may be running again."""
    run_dir = root / run_id
    beat, trouble = _read_heartbeat(run_dir)
    fresh = beat is not None and beat.is_fresh()
    try:
        ended = load_record(run_dir)
    except (ValueError, OSError) as error:
        return Run(run_id, "failed", f"damaged record: {error}", planned, damaged=str(error))
    if ended is not None and not (ended.status == "failed" and fresh):
        run = Run(run_id, ended.status, ended.reason, planned, ended, cause=ended.cause)
        return replace(run, step=ended.steps, steps=ended.steps)
    if beat is not None:
        reason = None if fresh else f"stopped at step {beat.step} of {beat.steps}"
        progress = beat.model_dump(include={"step", "steps", "tokens_per_second"})
        status = "running" if fresh else "planned"
        return Run(run_id, status, reason, planned, beat_job=beat.job, **progress)
    saved = [*run_dir.glob("checkpoint.pt"), *run_dir.glob("checkpoint/[0-9]*/progress.pt")]
    if trouble is None and saved:
        trouble = "stopped, has a checkpoint"
    return Run(run_id, "planned", trouble, planned)


def _read_heartbeat(run_dir: Path) -> tuple[Heartbeat | None, str | None]:
    """The heartbeat, or what is wrong with it; (None, None) without one."""
    try:
        return Heartbeat.model_validate_json((run_dir / heartbeat.FILE).read_bytes()), None
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except ValidationError as error:
        return None, f"damaged heartbeat: {invalid_field(error, heartbeat.FILE)}"
    except OSError as error:
        return None, f"damaged heartbeat: {error}"


def plan_states(plan: Plan) -> list[Run]:
    """The state of every run of a plan, in its order."""
    return [run_state(plan.root, point.run_id, None) for point in plan.points]


def set_damaged_aside(root: Path, runs: Iterable[Run], warn: Callable[[str], None]) -> None:
    """Rename damaged records to record.damaged, so that their runs are done again. Needs the sweep's lock."""
    for run in runs:
        path = root / run.run_id / "record.json"
        if not run.damaged:
            continue
        with contextlib.suppress(OSError):  # the run itself will meet it and fail alone
            path.replace(path.with_suffix(".damaged"))
            warn(f"{run.damaged}; set aside as record.damaged, running again")


def final_states(plan: Plan, reasons: Mapping[str, str]) -> list[Run]:
    """The runs of a plan when no process works on them any more: each is finished, diverged or failed.

    `reasons` says by run id why runs failed, for those that could not leave a record.
    """
    runs = []
    for run in plan_states(plan):
        if run.status not in DONE:
            reason = reasons.get(run.run_id) or (run.status == "failed" and run.reason)
            run = replace(run, status="failed", reason=reason or "it ended without a record")
        runs.append(run)
    return runs


def count_statuses(runs: Iterable[Run]) -> dict[str, int]:
    """How many runs have each status, in the order of STATUSES, without zeros."""
    found = Counter(run.status for run in runs)
    return {status: found[status] for status in STATUSES if found[status]}


def join_counts(number: Mapping[str, int]) -> str:
    """`3 finished, 1 diverged`."""
    return ", ".join(f"{n} {status}" for status, n in number.items())


def counts_line(runs: Iterable[Run]) -> str:
    """`58 runs: 56 finished, 2 diverged`."""
    number = count_statuses(runs)
    total = sum(number.values())
    return f"{total} run{'s' * (total != 1)}: {join_counts(number)}"
