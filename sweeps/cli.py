"""`hyperp-sweep`: plan many runs, do them, see what became of them, collect them into a table."""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from yaml import YAMLError

from hyperp.config import one_line
from hyperp.sweeps import planfile, tables
from hyperp.sweeps.plan import Plan, Point, check_runs, make_plan
from hyperp.sweeps.status import DONE, Run, counts, counts_line, state_of, survey

FAILED, BAD_INPUT, STOPPED = 1, 2, 130

HELP = """Train a grid of runs and account for every one of them.

\b
  hyperp-sweep plan +experiment=demo                    what would be run; starts nothing
  hyperp-sweep run +experiment=demo                     run what is missing, several at a time
  hyperp-sweep run +experiment=demo launcher.workers=1  any Hydra words: key=value, group=option, key=a,b
  hyperp-sweep status runs/demo                         planned, running, finished, diverged, failed
  hyperp-sweep collect runs/demo -o runs/demo/runs.parquet

A run's id is a hash of its configuration, so the same command run again does only what is missing or failed.
A plan is the `sweep` section of the configuration; conf/sweep/example.yaml shows what it can say.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    done = {point.run_id for point, state in _states(made) if state.status in DONE}
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
    made = make_plan(words or [])
    from hyperp.sweeps.pool import read_launcher  # after the plan: it needs more imports than bad input does

    launcher = read_launcher(made)
    todo = []
    for point, state in _states(made):
        if state.damaged:
            _warn(f"{state.damaged}; it will be run again")
        if state.status not in DONE:
            todo.append(point)
    total = len(made.points)
    if not todo:
        planfile.write(made)
        print(f"nothing to do: {total} of {total} runs are done ({_counts_line(made)}); {made.root}")
        return
    check_runs(todo)
    _check_devices(todo)
    with planfile.lock(made.root):
        planfile.write(made)
        _work(made, todo, launcher)
    _conclude(made)


@app.command()
def status(
    root: Root,
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="List every run, not only those of note")] = False,
) -> None:
    """Count the runs of a sweep by block and status; list what runs, diverged, failed or was stopped.

    Example: hyperp-sweep status runs/demo --all
    """
    runs = survey(root)
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

    Example: hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
    """
    from hyperp.sweeps.collect import collect as write_table

    path = output or root / "runs.parquet"
    runs = write_table(root, path, _warn)
    print(f"{counts_line(runs)}; {path} and {path.with_suffix('.csv').name}")


def _check_devices(todo: Sequence[Point]) -> None:
    from hyperp.trainer import resolve_device

    for name in {point.config.runtime.device for point in todo} - {"auto"}:
        resolve_device(name)


def _states(made: Plan) -> list[tuple[Point, Run]]:
    return [(point, state_of(made.root, point.run_id, None)) for point in made.points]


def _counts_line(made: Plan) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts(state for _, state in _states(made)).items())


def _work(made: Plan, todo: Sequence[Point], launcher: Any) -> None:
    from hyperp.sweeps.pool import run_pool
    from hyperp.sweeps.progress import make_display

    try:
        with make_display(todo) as display, closing(run_pool(todo, launcher)) as events:
            for event in events:
                display.show(event)
    except KeyboardInterrupt:
        print(f"stopped ({_counts_line(made)}); the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)


def _conclude(made: Plan) -> None:
    states = [state for _, state in _states(made)]
    print(f"{counts_line(states)}; {made.root}")
    failed = [state for state in states if state.status == "failed"]
    for state in failed:
        print(f"failed {state.run_id}: {state.reason} (see {made.root / state.run_id})", file=sys.stderr)
    if failed:
        sys.exit(FAILED)


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise KeyboardInterrupt


def _warn(text: str) -> None:
    print(f"hyperp-sweep: warning: {text}", file=sys.stderr)


def main() -> None:
    """Entry point. Bad input is one line on standard error and exit code 2."""
    try:
        app()
    except RuntimeError as error:
        print(f"hyperp-sweep: error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except (ValueError, OSError, YAMLError) as error:
        print(f"hyperp-sweep: error: {one_line(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
