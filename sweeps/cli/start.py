"""The commands of `hyperp-sweep` that begin with a plan: plan, run, submit, auto."""

import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hyperp.sweeps import printing
from hyperp.sweeps.account import add_job_states
from hyperp.sweeps.cli.options import Json, Overrides
from hyperp.sweeps.console import raise_keyboard_interrupt, warn
from hyperp.sweeps.local.progress import format_duration
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan, check_buildable, make_plan
from hyperp.sweeps.runs.cost import DEFAULT_GPU, PEAK_TFLOPS, AssumedGpu, measured_speed
from hyperp.sweeps.runs.status import (
    DONE,
    UNDER_WAY,
    count_statuses,
    join_counts,
    plan_states,
    set_damaged_aside,
)
from hyperp.terminal import FAILED

if TYPE_CHECKING:
    from hyperp.sweeps.slurm.submit import SlurmLauncher


WATCH_SECONDS = 5.0
WIDE = 10.0  # a half-width beyond which a number says no more than words


def plan(
    overrides: Overrides = None,
    as_json: Json = False,
    gpu: Annotated[
        str, typer.Option(help=f"that GPU-hours are of: {', '.join(PEAK_TFLOPS)}")
    ] = DEFAULT_GPU.gpu,
    mfu: Annotated[
        float, typer.Option(help="share of the GPU's peak that training reaches")
    ] = DEFAULT_GPU.mfu,
) -> None:
    """Print the runs of a plan by block, with tokens, FLOPs and GPU-hours. Starts and writes nothing.

    Example: hyperp-sweep plan +experiment=demo runtime.root=runs/other
    """
    assumed, made = AssumedGpu(gpu, mfu), make_plan(overrides or [])
    _check_launcher(made)
    before = plan_states(made)
    done = {run.run_id for run in before if run.status in DONE}
    summary, speed = printing.plan_summary(made, done, assumed), measured_speed(before)
    left = sum(point.flops for point in made.points if point.run_id not in done)
    if as_json:
        cost = {"gpu": gpu, "mfu": mfu, "measured_flops_per_second": speed and speed[0], "flops_left": left}
        print(json.dumps({"root": str(made.root), "blocks": summary, "cost": cost}, indent=1))
        return
    printing.print_plan(summary)
    print(assumed.sentence())
    print(f"{len(done)} of {len(made.points)} runs are done; runs go to {made.root}")
    if speed and left:
        rate = f"{speed[0]:.3g} FLOP/s, as measured in {speed[1]} of them"
        print(f"what is left takes about {format_duration(left / speed[0])}, one run at a time at {rate}")


def _check_launcher(made: Plan) -> None:
    """Raise ValueError for a launcher that `run` and `submit` would refuse."""
    from hyperp.sweeps.local.pool import read_local_launcher

    (read_local_launcher if _is_local(made) else _slurm_launcher)(made)


def _slurm_launcher(made: Plan) -> "SlurmLauncher":
    """The launcher of a plan. Raises ValueError if it is wrong, or cannot do what is left of the plan."""
    from hyperp.sweeps.slurm.submit import check_rank_batches, read_slurm_launcher

    launcher = read_slurm_launcher(made)
    runs = zip(made.points, plan_states(made), strict=True)
    check_rank_batches([point for point, run in runs if run.status not in DONE], launcher)
    return launcher


def run(overrides: Overrides = None) -> None:
    """Do every run of a plan that has not finished or diverged yet, several at a time on this machine.

    Ctrl-C stops; the same command goes on.
    Exit 0: every run finished or diverged; 1: some failed; 2: bad input.

    Example: hyperp-sweep run +experiment=demo launcher.workers=2
    """
    signal.signal(signal.SIGTERM, raise_keyboard_interrupt)
    made = make_plan(overrides or [])
    from hyperp.sweeps.launch import run_locally  # after the plan: it needs more imports than bad input does

    if not run_locally(made):
        sys.exit(FAILED)


def submit(overrides: Overrides = None) -> None:
    """Hand over every run of a plan that is neither done nor under way, and return at once.

    To a process in the background of this machine, or with launcher=slurm to a cluster.

    Example: hyperp-sweep submit +experiment=demo launcher=slurm launcher.partition=gpu launcher.gpus=1
    """
    made = make_plan(overrides or [])
    if _is_local(made):
        from hyperp.sweeps.launch import submit_to_background

        submit_to_background(made)
    else:
        _submit_to_slurm(made)


def _is_local(made: Plan) -> bool:
    return made.launcher.get("name") != "slurm"


def _submit_to_slurm(made: Plan) -> None:
    from hyperp.sweeps.slurm.submit import submit_arrays

    launcher = _slurm_launcher(made)
    with planfile.lock_sweep(made.root):
        before = add_job_states(made.root, plan_states(made), _refuse_blind)
        done = (*DONE, *UNDER_WAY)
        todo = [point for point, run in zip(made.points, before, strict=True) if run.status not in done]
        check_buildable(todo)
        set_damaged_aside(made.root, before, warn)
        planfile.write_plan(made)
        sent = submit_arrays(made.root, todo, launcher)
    left = [run for run in before if run.status in done]
    already = f" ({join_counts(count_statuses(left))} before)" if left else ""
    jobs = ", ".join(one.job or one.name for one in sent)
    where = f" as {sum(len(one.tasks) for one in sent)} jobs, Slurm's {jobs}" if sent else ""
    print(f"submitted {len(todo)} of {len(made.points)} runs{where}{already}; {made.root}")


class BlindError(RuntimeError):
    """Slurm does not say what became of the jobs that were sent."""


def _refuse_blind(text: str) -> NoReturn:
    raise BlindError(text.partition(";")[0])


def auto(
    overrides: Overrides = None,
    until: Annotated[str, typer.Option(help="interval=15%: the rate is known to 15% at the target")] = "",
    by: Annotated[str, typer.Option(help="the size that the law is over")] = "tokens",
    target: Annotated[
        float | None, typer.Option(help="where, in that size; 8 times the plan's largest if not given")
    ] = None,
    most_flops: Annotated[
        float | None, typer.Option(help="stop before more than this is spent; the whole plan's if not given")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="stop after so many fits")] = 64,
) -> None:
    """Run the cheapest slices of a plan, fit a law, run the slice it asks for next; until it says enough.

    The law is over one size (--by), of the slices that differ in it alone. It chooses among them by how much
    they shrink the interval for what they cost, and is believed from six slices on. With a larger
    --most-flops it goes on, after the plan, with slices of its own. The interval is that of the last fit: who
    stops where it is small enough favours scatter that looks small, and one only just reached is optimistic.

    Exit 0: the interval is small enough; 1: it is not, and the budget is spent or nothing is left to run.

    Example: hyperp-sweep auto +experiment=token_law --until interval=30% --target 262144
    """
    from hyperp.sweeps.auto import TARGET_FACTOR, AutoGoal, Round, law_slices, parse_until, search_rate
    from hyperp.sweeps.table.runs import collect as write_table

    signal.signal(signal.SIGTERM, raise_keyboard_interrupt)
    half = parse_until(until)
    made = make_plan(overrides or [])
    full = sum(point.flops for point in made.points)
    largest = max(getattr(one[0].config.scale, by) for one in law_slices(made, by))
    if target is not None and not 1 <= target < math.inf:
        raise ValueError(f"--target must be a size of at least 1, got {target:g}")
    if most_flops is not None and not most_flops > 0:
        raise ValueError(f"--most-flops must be positive, got {most_flops:g}")
    where = TARGET_FACTOR * largest if target is None else target
    goal = AutoGoal(by, half, where, full if most_flops is None else most_flops, rounds)
    from hyperp.sweeps.launch import run_locally

    path = made.root / "runs.parquet"

    def table() -> Path:
        write_table(made.root, path, warn)
        return path

    def show(step: Round) -> None:
        known = step.reason if step.half is None else f"the rate is known to {step.half:.1%}"
        if step.half is not None and step.half > WIDE:
            known = "too few slices to know the rate"
        print(f"{step.runs} runs, {step.flops:.3g} FLOPs: {known}")

    last = search_rate(made, goal, run_locally if _is_local(made) else _submit_and_wait, show, table)
    print(f"{last.runs} runs, {last.flops:.3g} FLOPs; the whole plan has {len(made.points)}, {full:.3g}")
    if last.reason is not None:
        print(f"hyperp-sweep: stopped before {until}: {last.reason}", file=sys.stderr)
        sys.exit(FAILED)
    option = f"--{by.replace('_', '-')} {where:.15g}"
    print(f"the law is in {made.root / 'law.json'}: hyperp-law recommend {made.root / 'law.json'} {option}")


def _submit_and_wait(made: Plan) -> None:
    _submit_to_slurm(made)
    while _under_way(made):
        time.sleep(WATCH_SECONDS)


def _under_way(made: Plan) -> bool:
    try:
        return any(
            run.status in UNDER_WAY for run in add_job_states(made.root, plan_states(made), _refuse_blind)
        )
    except BlindError as error:  # for a while, mostly: jobs go on without their controller
        warn(f"{error}; asking again")
        return True
