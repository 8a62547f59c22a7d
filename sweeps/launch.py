"""Doing the runs of a plan on this machine, until all have ended."""

import sys
from collections.abc import Sequence

from hyperp.sweeps import tables
from hyperp.sweeps.account import with_jobs
from hyperp.sweeps.console import found, warn
from hyperp.sweeps.local import background_pools as local
from hyperp.sweeps.local.pool import Ended, Event, LocalLauncher, read_launcher
from hyperp.sweeps.local.work import work
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan, Point, check_runs, shape_of
from hyperp.sweeps.runs.status import DONE, UNDER_WAY, Run, concluded, counts, counts_line, set_aside, states
from hyperp.terminal import STOPPED
from hyperp.training.memory import check_memory


def run_here(made: Plan) -> bool:
    """Do what is left of a plan, with a display; whether every run finished or diverged."""
    launcher = read_launcher(made)
    before = with_jobs(made.root, states(made), warn)
    refuse_in_flight(made, before)
    todo = left_of(made, before)
    with planfile.lock(made.root):
        local.close(made.root)
        set_aside(made.root, before, warn)
        planfile.write(made)
        reasons = _work(made, todo, launcher) if todo else {}
    after = concluded(made, reasons)
    if not todo:
        total = len(after)
        print(f"nothing to do: {total} of {total} runs are done ({found(counts(after))}); {made.root}")
        return True
    print(f"{counts_line(after)}; {made.root}")
    return not tables.show_not_done(after, made.root)


def submit_here(made: Plan) -> None:
    """Have what is left of a plan done by a process in the background, and return."""
    launcher = read_launcher(made)
    before = with_jobs(made.root, states(made), warn)
    at_work = local.at_work(made.root)
    if at_work is None:
        refuse_in_flight(made, before)
    done = DONE if at_work is None else (*DONE, *UNDER_WAY)
    kept = [run for run in before if run.status in done]
    already = f" ({found(counts(kept))} before)" if kept else ""
    if at_work and len(kept) == len(before):
        print(f"submitted 0 of {len(before)} runs{already}; {made.root}")
        return
    if at_work:
        raise ValueError(
            f"process {at_work.process} on {at_work.host} is at work on {made.root}: wait for it, or stop it "
            f"with hyperp-sweep cancel {made.root}; then submit what is left"
        )
    todo = left_of(made, before)
    with planfile.lock(made.root) as held:
        local.close(made.root)
        set_aside(made.root, before, warn)
        planfile.write(made)
        pool = local.start(made.root, [point.run_id for point in todo], launcher, held) if todo else None
    where = f" to process {pool.process} on this machine" if pool else ""
    print(f"submitted {len(todo)} of {len(before)} runs{where}{already}; {made.root}")


def refuse_in_flight(made: Plan, runs: Sequence[Run]) -> None:
    """Raise ValueError if runs of the plan are under way in Slurm, or in the background."""
    flying = [run for run in runs if run.status in UNDER_WAY and run.job]
    if flying:
        where = "in the background" if local.at_work(made.root) else "in Slurm"
        raise ValueError(
            f"{len(flying)} of the runs are queued or running {where}; wait for them, or take them back: "
            f"hyperp-sweep cancel {made.root}"
        )


def left_of(made: Plan, runs: Sequence[Run]) -> list[Point]:
    """The points that are not done, once it is clear that they can be done here. Raises ValueError if not."""
    todo = [point for point, run in zip(made.points, runs, strict=True) if run.status not in DONE]
    if todo:
        from hyperp.training.trainer import resolve_device

        for point in todo:
            check_memory(point.config.scale, shape_of(point.config))
        check_runs(todo)
        for name in {point.config.runtime.device for point in todo} - {"auto"}:
            resolve_device(name)
    return todo


def _work(made: Plan, todo: Sequence[Point], launcher: LocalLauncher) -> dict[str, str]:
    """Do the runs; returns the reasons of those that failed, by id."""
    reasons = {}

    def note(event: Event) -> None:
        if isinstance(event, Ended) and event.status == "failed":
            reasons[event.run_id] = event.reason

    try:
        work(todo, launcher, note)
    except KeyboardInterrupt:
        print(f"stopped ({found(counts(states(made)))}); the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)
    return reasons
