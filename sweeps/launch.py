"""Doing the runs of a plan on this machine, until all have ended."""

import sys
from collections.abc import Sequence

from hyperp.sweeps import printing
from hyperp.sweeps.account import add_job_states
from hyperp.sweeps.console import warn
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.local.pool import Event, LocalLauncher, RunEnded, read_local_launcher
from hyperp.sweeps.local.work import run_with_display
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan, Point, check_buildable, model_shape
from hyperp.sweeps.runs.status import (
    DONE,
    UNDER_WAY,
    Run,
    count_statuses,
    counts_line,
    final_states,
    join_counts,
    plan_states,
    set_damaged_aside,
)
from hyperp.terminal import STOPPED
from hyperp.training.memory import check_memory


def run_locally(made: Plan) -> bool:
    """Do what is left of a plan, with a display; whether every run finished or diverged."""
    launcher = read_local_launcher(made)
    before = add_job_states(made.root, plan_states(made), warn)
    refuse_under_way(made, before)
    todo = undone_points(made, before)
    with planfile.lock_sweep(made.root):
        background_pools.close_dead_pool(made.root)
        set_damaged_aside(made.root, before, warn)
        planfile.write_plan(made)
        reasons = _work(made, todo, launcher) if todo else {}
    after = final_states(made, reasons)
    if not todo:
        total, done = len(after), join_counts(count_statuses(after))
        print(f"nothing to do: {total} of {total} runs are done ({done}); {made.root}")
        return True
    print(f"{counts_line(after)}; {made.root}")
    return not printing.print_undone(after, made.root)


def submit_to_background(made: Plan) -> None:
    """Have what is left of a plan done by a process in the background, and return."""
    launcher = read_local_launcher(made)
    before = add_job_states(made.root, plan_states(made), warn)
    at_work = background_pools.active_pool(made.root)
    if at_work is None:
        refuse_under_way(made, before)
    done = DONE if at_work is None else (*DONE, *UNDER_WAY)
    kept = [run for run in before if run.status in done]
    already = f" ({join_counts(count_statuses(kept))} before)" if kept else ""
    if at_work and len(kept) == len(before):
        print(f"submitted 0 of {len(before)} runs{already}; {made.root}")
        return
    if at_work:
        raise ValueError(
            f"process {at_work.process} on {at_work.host} is at work on {made.root}: wait for it, or stop it "
            f"with hyperp-sweep cancel {made.root}; then submit what is left"
        )
    todo = undone_points(made, before)
    with planfile.lock_sweep(made.root) as held:
        background_pools.close_dead_pool(made.root)
        set_damaged_aside(made.root, before, warn)
        planfile.write_plan(made)
        pool = (
            background_pools.start_pool(made.root, [point.run_id for point in todo], launcher, held)
            if todo
            else None
        )
    where = f" to process {pool.process} on this machine" if pool else ""
    print(f"submitted {len(todo)} of {len(before)} runs{where}{already}; {made.root}")


def refuse_under_way(made: Plan, runs: Sequence[Run]) -> None:
    """Raise ValueError if runs of the plan are under way in Slurm, or in the background."""
    flying = [run for run in runs if run.status in UNDER_WAY and run.job]
    if flying:
        where = "in the background" if background_pools.active_pool(made.root) else "in Slurm"
        raise ValueError(
            f"{len(flying)} of the runs are queued or running {where}; wait for them, or take them back: "
            f"hyperp-sweep cancel {made.root}"
        )


def undone_points(made: Plan, runs: Sequence[Run]) -> list[Point]:
    """The points that are not done, once it is clear that they can be done here. Raises ValueError if not."""
    todo = [point for point, run in zip(made.points, runs, strict=True) if run.status not in DONE]
    if todo:
        from hyperp.training.trainer import resolve_device

        for point in todo:
            check_memory(point.config.scale, model_shape(point.config))
        check_buildable(todo)
        for name in {point.config.runtime.device for point in todo} - {"auto"}:
            resolve_device(name)
    return todo


def _work(made: Plan, todo: Sequence[Point], launcher: LocalLauncher) -> dict[str, str]:
    """Do the runs; returns the reasons of those that failed, by id."""
    reasons = {}

    def note(event: Event) -> None:
        if isinstance(event, RunEnded) and event.status == "failed":
            reasons[event.run_id] = event.reason

    try:
        run_with_display(todo, launcher, note)
    except KeyboardInterrupt:
        print(
            f"stopped ({join_counts(count_statuses(plan_states(made)))}); the same command goes on from here",
            file=sys.stderr,
        )
        sys.exit(STOPPED)
    return reasons
