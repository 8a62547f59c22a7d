"""`hyperp-sweep`: plan many runs, do them, see what became of them, collect them into a table."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from yaml import YAMLError

from hyperp.config import one_line
from hyperp.sweeps import planfile, tables
from hyperp.sweeps.account import account, last_sent, with_jobs
from hyperp.sweeps.plan import Plan, Point, check_runs, make_plan
from hyperp.sweeps.status import DONE, concluded, counts, counts_line, set_aside, states

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
UNDER_WAY = ("queued", "running")
WATCH_SECONDS = 5.0

HELP = """Train a grid of runs and account for every one of them.

\b
  hyperp-sweep plan +experiment=demo                    what would be run; starts nothing
  hyperp-sweep run +experiment=demo                     run what is missing, several at a time
  hyperp-sweep run +experiment=demo launcher.workers=1  any Hydra words: key=value, group=option, key=a,b
  hyperp-sweep submit +experiment=demo launcher=slurm   hand what is missing to Slurm, and return at once
  hyperp-sweep auto +experiment=demo --until interval=15%   run, fit, run what is asked for, until it is known
  hyperp-sweep status runs/demo                         what became of each, and why
  hyperp-sweep collect runs/demo -o runs/demo/runs.parquet

A run's id is a hash of its configuration, so the same command run again does only what is missing or failed.
A plan is the `sweep` section of the configuration; conf/sweep/example.yaml shows what it can say.
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"hyperp-sweep {version('hyperp-scaling')}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="Hydra words that compose the plan, such as +experiment=demo seed=0,1", show_default=False
    ),
]
Root = Annotated[Path, typer.Argument(help="Folder of the sweep: its runtime.root", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


@app.command()
def plan(words: Words = None, as_json: Json = False) -> None:
    """Print the runs of a plan by block, with tokens and FLOPs. Starts and writes nothing.

    Example: hyperp-sweep plan +experiment=demo runtime.root=runs/other
    """
    made = make_plan(words or [])
    done = {state.run_id for state in states(made) if state.status in DONE}
    summary = tables.plan_summary(made, done)
    if as_json:
        print(json.dumps({"root": str(made.root), "blocks": summary}, indent=1))
        return
    tables.show_plan(summary)
    print(f"{len(done)} of {len(made.points)} runs are done; runs go to {made.root}")


@app.command()
def run(words: Words = None) -> None:
    """Do every run of a plan that has not finished or diverged yet, several at a time on this machine.

    Ctrl-C stops; the same command goes on.
    Exit 0: every run finished or diverged; 1: some failed; 2: bad input.

    Example: hyperp-sweep run +experiment=demo launcher.workers=2
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if not _run_here(make_plan(words or [])):
        sys.exit(FAILED)


def _run_here(made: Plan) -> bool:
    """Do what is left of a plan; whether every run finished or diverged."""
    from hyperp.sweeps.pool import read_launcher  # after the plan: it needs more imports than bad input does

    launcher = read_launcher(made)
    before = with_jobs(made.root, states(made), _warn)
    flying = [run for run in before if run.status in UNDER_WAY and run.job]
    if flying:
        raise ValueError(
            f"{len(flying)} of the runs are queued or running in Slurm; wait for them, or take them back: "
            f"hyperp-sweep cancel {made.root}"
        )
    todo = [point for point, state in zip(made.points, before, strict=True) if state.status not in DONE]
    if todo:
        check_runs(todo)
        _check_devices(todo)
    with planfile.lock(made.root):
        set_aside(made.root, before, _warn)
        planfile.write(made)
        reasons = _work(made, todo, launcher) if todo else {}
    after = concluded(made, reasons)
    if not todo:
        total = len(after)
        print(f"nothing to do: {total} of {total} runs are done ({_found(counts(after))}); {made.root}")
        return True
    print(f"{counts_line(after)}; {made.root}")
    return not tables.show_not_done(after, made.root)


@app.command()
def auto(
    words: Words = None,
    until: Annotated[str, typer.Option(help="interval=15%: the rate is known to 15% at the target")] = "",
    by: Annotated[str, typer.Option(help="the size that the law is over")] = "tokens",
    target: Annotated[
        float | None, typer.Option(help="where, in that size; 8 times the largest fitted if not given")
    ] = None,
    most_flops: Annotated[float, typer.Option(help="stop before more than this is spent")] = math.inf,
    rounds: Annotated[int, typer.Option(min=1, help="stop after so many fits")] = 8,
) -> None:
    """Run the cheapest slices of a plan, fit a law, run what it asks for next; until it says enough.

    Exit 0: the interval is small enough; 1: it is not, and the budget is spent or nothing is left to run.

    Example: hyperp-sweep auto +experiment=token_law --until interval=15% --target 5e5
    """
    from hyperp.sweeps.auto import Goal, Step, read_until, search
    from hyperp.sweeps.collect import collect as write_table

    signal.signal(signal.SIGTERM, _interrupt)
    sizes = (f"--{by.replace('_', '-')}", f"{target:g}") if target is not None else ()
    goal = Goal(by, read_until(until), sizes, most_flops, rounds)
    made = make_plan(words or [])
    path = made.root / "runs.parquet"

    def table() -> Path:
        write_table(made.root, path, _warn)
        return path

    def show(step: Step) -> None:
        known = f"the rate is known to {step.half:.1%}" if step.half is not None else step.reason
        print(f"{step.runs} runs, {step.flops:.3g} FLOPs: {known}")

    do = _run_here if made.launcher.get("name") == "local" else _submit_and_wait
    last = search(made, goal, do, show, table)
    full = sum(point.flops for point in made.points)
    print(f"{last.runs} runs, {last.flops:.3g} FLOPs; the whole plan has {len(made.points)}, {full:.3g}")
    if last.half is None or last.half > goal.half:
        print(f"hyperp-sweep: stopped before {until}: {last.reason}", file=sys.stderr)
        sys.exit(FAILED)


def _submit_and_wait(made: Plan) -> None:
    _submit(made)
    while any(run.status in UNDER_WAY for run in with_jobs(made.root, states(made), _warn)):
        time.sleep(WATCH_SECONDS)


@app.command()
def submit(words: Words = None) -> None:
    """Hand every run of a plan that is neither done nor under way to Slurm, and return at once.

    Example: hyperp-sweep submit +experiment=demo launcher=slurm launcher.partition=gpu launcher.gpus=1
    """
    made = make_plan(words or [])
    if made.launcher.get("name") == "local":
        raise ValueError("launcher must be slurm to submit; hyperp-sweep run does the runs on this machine")
    _submit(made)


def _submit(made: Plan) -> None:
    from hyperp.sweeps.submit import read_launcher
    from hyperp.sweeps.submit import submit as hand_over

    launcher = read_launcher(made)
    with planfile.lock(made.root):
        before = with_jobs(made.root, states(made), _refuse_blind)
        done = (*DONE, *UNDER_WAY)
        todo = [point for point, run in zip(made.points, before, strict=True) if run.status not in done]
        check_runs(todo)
        set_aside(made.root, before, _warn)
        planfile.write(made)
        sent = hand_over(made.root, todo, launcher)
    left = [run for run in before if run.status in done]
    already = f" ({_found(counts(left))} before)" if left else ""
    jobs = ", ".join(one.job or one.name for one in sent)
    where = f" as {sum(len(one.tasks) for one in sent)} jobs, Slurm's {jobs}" if sent else ""
    print(f"submitted {len(todo)} of {len(made.points)} runs{where}{already}; {made.root}")


@app.command()
def cancel(
    root: Root,
    run_ids: Annotated[
        list[str] | None, typer.Argument(help="Runs to cancel; all if none is named", show_default=False)
    ] = None,
) -> None:
    """Take runs out of Slurm's queue, or off their nodes; what they saved is kept.

    Runs that share a job go together. Example: hyperp-sweep cancel runs/demo
    """
    from hyperp.sweeps import slurm

    sent = last_sent(root, slurm.queue())
    unknown = sorted(set(run_ids or []) - set(sent))
    if unknown:
        raise ValueError(f"RUN_IDS must be runs that were submitted from {root}, got {', '.join(unknown)}")
    chosen = [one for run_id, one in sent.items() if not run_ids or run_id in run_ids]
    jobs = sorted({one.job.job_id for one in chosen if one.job and one.job.in_flight})
    slurm.cancel(jobs)
    print(f"cancelled {len(jobs)} job{'s' * (len(jobs) != 1)}; {root}")


@app.command()
def logs(
    root: Root,
    run_id: Annotated[str, typer.Argument(help="The run, as status names it", show_default=False)],
) -> None:
    """Print what a run printed, its traceback if it failed, and what its last job said outside of it.

    Example: hyperp-sweep logs runs/demo 0123456789ab
    """
    found = [root / run_id / name for name in ("output.log", "error.txt")]
    one = last_sent(root, {}).get(run_id)
    if one and one.job_id:
        folder = root / one.submission.folder
        found += [folder / f"{one.job_id}_0_log.{kind}" for kind in ("out", "err")]
    there = [path for path in found if path.is_file()]
    if not there:
        raise ValueError(f"RUN_ID must be a run of {root} that has printed something, got {run_id}")
    for path in there:
        print(f"==> {path} <==")
        print(path.read_text(errors="replace").rstrip())


@app.command()
def status(
    root: Root,
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="List every run, not only those of note")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until no run is under way")] = False,
) -> None:
    """Count the runs of a sweep by block and status; list what runs, diverged, failed or was stopped.

    Example: hyperp-sweep status runs/demo --all
    """
    runs = account(root, _warn)
    while watch and any(run.status in UNDER_WAY for run in runs):
        tables.show_status(runs, runs if every else tables.notable(runs))
        time.sleep(WATCH_SECONDS)
        runs = account(root, _warn)
    listed = runs if every else tables.notable(runs)
    if as_json:
        blocks = {name: counts(members) for name, members in tables.by_block(runs).items()}
        report = {"root": str(root), "counts": counts(runs), "blocks": blocks}
        print(json.dumps(report | {"runs": [tables.describe(run) for run in listed]}, indent=1))
        return
    tables.show_status(runs, listed)


@app.command()
def collect(
    root: Root,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The .parquet to write; ROOT/runs.parquet if not given", show_default=False
        ),
    ] = None,
) -> None:
    """Write one row a run, whatever became of it, as Parquet and beside it as CSV.

    What the stability monitors saw, step by step, goes beside it as .metrics.parquet.

    Example: hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
    """
    from hyperp.sweeps.collect import collect as write_table
    from hyperp.sweeps.coordinates import beside

    path = output or root / "runs.parquet"
    runs = write_table(root, path, _warn)
    print(f"{counts_line(runs)}; {path} and {path.with_suffix('.csv').name}")
    if beside(path).is_file():
        print(f"activations: {beside(path)}")


def _check_devices(todo: Sequence[Point]) -> None:
    from hyperp.trainer import resolve_device

    for name in {point.config.runtime.device for point in todo} - {"auto"}:
        resolve_device(name)


def _gpus(todo: Sequence[Point]) -> list[str]:
    from torch import cuda

    from hyperp.sweeps.resources import dealt_gpus

    devices = {point.config.runtime.device for point in todo}
    return dealt_gpus(devices, os.environ.get("CUDA_VISIBLE_DEVICES"), cuda.device_count())


def _found(number: dict[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in number.items())


def _work(made: Plan, todo: Sequence[Point], launcher: Any) -> dict[str, str]:
    """Do the runs; returns the reasons of those that failed, by id."""
    from hyperp.sweeps.pool import Ended, run_pool
    from hyperp.sweeps.progress import make_display

    reasons = {}
    try:
        with make_display(todo) as display, closing(run_pool(todo, launcher, _gpus(todo))) as events:
            for event in events:
                display.show(event)
                if isinstance(event, Ended) and event.status == "failed":
                    reasons[event.run_id] = event.reason
    except KeyboardInterrupt:
        print(
            f"stopped ({_found(counts(states(made)))}); the same command goes on from here", file=sys.stderr
        )
        sys.exit(STOPPED)
    return reasons


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


def _refuse_blind(text: str) -> NoReturn:
    raise RuntimeError(text.partition(";")[0])


def _warn(text: str) -> None:
    print(f"hyperp-sweep: warning: {text}", file=sys.stderr)


def main() -> None:
    """Entry point. Bad input, a wrong option too, is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except typer.Abort:  # Ctrl-C before there is anything to stop
        code = STOPPED
    except (ValueError, OSError, YAMLError) as error:
        code = _refuse(one_line(error), BAD_INPUT)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong option; Typer's class for it depends on its version
            code = _refuse(" ".join(error.format_message().split()), BAD_INPUT)
        elif isinstance(error, RuntimeError):
            code = _refuse(str(error), FAILED)
        else:
            raise
    sys.exit(code)


def _refuse(text: str, code: int) -> int:
    print(f"hyperp-sweep: error: {text}", file=sys.stderr)
    return code
