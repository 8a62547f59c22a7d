"""The commands of `hyperp-sweep` that begin with a plan: plan, run, submit, auto."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from hyperp import sweeps
from hyperp.sweeps import printing
from hyperp.sweeps.cli.options import Json, Overrides
from hyperp.sweeps.console import raise_keyboard_interrupt, warn
from hyperp.sweeps.local.progress import format_duration
from hyperp.sweeps.plan.command_run import CommandRun
from hyperp.sweeps.plan.plan import Plan
from hyperp.sweeps.plan.run_config import values_of
from hyperp.sweeps.runs.cost import DEFAULT_GPU, PEAK_TFLOPS, AssumedGpu, measured_speed
from hyperp.sweeps.runs.status import DONE, count_statuses, counts_line, join_counts, plan_states
from hyperp.sweeps.trainers import trainer_of
from hyperp.terminal import FAILED, STOPPED

WIDE = 10.0  # a half-width above which the number is not worth printing
GPUS = ", ".join(PEAK_TFLOPS)


def plan(
    overrides: Overrides = None,
    as_json: Json = False,
    gpu: Annotated[str, typer.Option(help=f"GPU that GPU-hours are of: {GPUS}")] = DEFAULT_GPU.gpu,
    mfu: Annotated[
        float, typer.Option(help="Share of the GPU's peak that training reaches")
    ] = DEFAULT_GPU.mfu,
    show: Annotated[int, typer.Option(min=0, help="Print the commands of so many of the first runs")] = 0,
) -> None:
    """Print what would be run, by block, and what it costs.

    Shows runs, tokens, FLOPs and GPU-hours of every block. Starts nothing and writes nothing.

    Example: hyperp-sweep plan +experiment=demo runtime.root=runs/other
    """
    assumed, made = AssumedGpu(gpu, mfu), _make_plan(overrides)
    from hyperp.sweeps.launch import check_launcher  # not before the plan: bad input is told sooner

    check_launcher(made)
    before = plan_states(made)
    done = {run.run_id for run in before if run.status in DONE}
    summary, speed = printing.plan_summary(made, done, assumed), measured_speed(before)
    left = sum(point.flops for point in made.points if point.run_id not in done)
    if as_json:
        cost = {"gpu": gpu, "mfu": mfu, "measured_flops_per_second": speed and speed[0], "flops_left": left}
        print(json.dumps({"root": str(made.root), "blocks": summary, "cost": cost}, indent=1))
        return
    printing.print_plan(summary)
    for point in made.points[:show]:
        print(f"{point.run_id}: {shlex.join(trainer_of(values_of(point.config)).command(point))}")
    if any(point.facts.flops is None for point in made.points):
        print("FLOPs and GPU-hours are not known: give trainer.derive.flops, such as 6 * parameters * tokens")
    else:
        print(assumed.sentence())
    print(f"{len(done)} of {len(made.points)} runs are done; runs go to {made.root}")
    if speed and left:
        rate = f"{speed[0]:.3g} FLOP/s, as measured in {speed[1]} of them"
        print(f"what is left takes about {format_duration(left / speed[0])}, one run at a time at {rate}")


def run(overrides: Overrides = None) -> None:
    """Train what is missing or failed, on this machine.

    Runs several at a time and returns when every run of the plan has ended. Ctrl-C stops; the same command
    goes on from the last checkpoints.
    Exit 0: every run finished or diverged; 1: some failed; 2: bad input.

    Example: hyperp-sweep run +experiment=demo launcher.workers=2
    """
    signal.signal(signal.SIGTERM, raise_keyboard_interrupt)
    if not _run_and_print(_make_plan(overrides)):
        sys.exit(FAILED)


def _make_plan(overrides: list[str] | None) -> Plan:
    """The plan of the overrides; says on standard error what is doubtful about a foreign trainer."""
    made = sweeps.make_plan(overrides or [])
    commands = {p.config.folder: p.config.trainer for p in made.points if isinstance(p.config, CommandRun)}
    for folder, trainer in commands.items():
        if trainer.dirty:
            warn(f"{folder} has changes since its commit {str(trainer.commit)[:12]}; run ids do not tell")
    return made


def _run_and_print(made: Plan) -> bool:
    """Do the runs of a plan; whether all finished or diverged."""
    total, before = len(made.points), plan_states(made)
    with _explaining_stop(made):
        runs = sweeps.run(made)
    if all(one.status in DONE for one in before):
        done = join_counts(count_statuses(runs))
        print(f"nothing to do: {total} of {total} runs are done ({done}); {made.root}")
        return True
    print(f"{counts_line(runs)}; {made.root}")
    return not printing.print_undone(runs, made.root)


@contextmanager
def _explaining_stop(made: Plan) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        reached = join_counts(count_statuses(plan_states(made)))
        print(f"stopped ({reached}); the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)


def submit(overrides: Overrides = None) -> None:
    """Hand over what is missing or failed; returns at once.

    To a process in the background of this machine, or with launcher=slurm to a cluster. You can close the
    terminal: `jobs.json` records what was submitted, each run's folder what happened to it.

    Example: hyperp-sweep submit +experiment=demo launcher=slurm launcher.partition=gpu launcher.gpus=1
    """
    print(sweeps.submit(_make_plan(overrides)))


def auto(
    overrides: Overrides = None,
    until: Annotated[
        str, typer.Option(help="Goal, such as interval=15%: the rate is known to 15% at the target")
    ] = "",
    by: Annotated[str, typer.Option(help="Size that the law is fitted over")] = "tokens",
    target: Annotated[
        float | None,
        typer.Option(help="Value of that size to predict at [default: 8 times the plan's largest]"),
    ] = None,
    most_flops: Annotated[
        float | None,
        typer.Option(help="Stop before spending more FLOPs than this [default: the whole plan's]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Stop after this many fits")] = 64,
) -> None:
    """Run, fit, and run what the law asks for, until it is known.

    Runs the cheapest slices of a plan first, fits a law, then runs the slice that shrinks the prediction
    interval most for its cost, and so on. The law is over one size (--by), of the slices that differ in it
    alone. Once it knows the shape of the basin, a slice is run at the planned rates about its prediction, and
    at the others only if the best of these is the last. It is believed from six slices on. With a larger
    --most-flops it goes on, after the plan, with slices of its own.

    The interval is that of the last fit. Stopping at the first interval that is small enough favours scatter
    that happens to look small, so one that has only just reached the goal is optimistic.

    Exit 0: the interval is small enough; 1: it is not, and the budget is spent or nothing is left to run.

    Example: hyperp-sweep auto +experiment=token_law --until interval=30% --target 262144
    """
    from hyperp.sweeps.auto import Round, make_goal, parse_until, search_rate
    from hyperp.sweeps.launch import is_local, submit_and_wait

    signal.signal(signal.SIGTERM, raise_keyboard_interrupt)
    half_width = parse_until(until)
    made = _make_plan(overrides)
    goal = make_goal(made, by, half_width, target, most_flops, rounds)

    def show(step: Round) -> None:
        known = step.reason if step.half_width is None else f"the rate is known to {step.half_width:.1%}"
        if step.half_width is not None and step.half_width > WIDE:
            known = "too few slices to know the rate"
        print(f"{step.runs} runs, {step.flops:.3g} FLOPs: {known}")

    def wait_for_slurm(part: Plan) -> None:
        print(submit_and_wait(part))

    last = search_rate(made, goal, _run_and_print if is_local(made) else wait_for_slurm, show)
    full = sum(point.flops for point in made.points)
    print(f"{last.runs} runs, {last.flops:.3g} FLOPs; the whole plan has {len(made.points)}, {full:.3g}")
    if last.reason is not None:
        print(f"hyperp-sweep: stopped before {until}: {last.reason}", file=sys.stderr)
        sys.exit(FAILED)
    law, option = made.root / "law.json", f"--{by.replace('_', '-')} {goal.target:.15g}"
    print(f"the law is in {law}: hyperp-law recommend {law} {option}")
