"""The commands of `hyperp-sweep` that begin with a sweep's folder: status, cancel, logs, collect."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from hyperp import sweeps
from hyperp.sweeps import printing
from hyperp.sweeps.cli.options import Json, Root
from hyperp.sweeps.runs.status import UNDER_WAY, count_statuses, counts_line, survey_runs

WATCH_SECONDS = 5.0


def status(
    root: Root,
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="List every run, not only notable ones")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until no run is queued or running")] = False,
) -> None:
    """Count the runs by status; list failures and why.

    Counts by block and status, and lists the runs that are running, diverged, failed or were stopped.

    Example: hyperp-sweep status runs/demo --all
    """
    runs = sweeps.status(root)
    while watch and any(run.status in UNDER_WAY for run in runs):
        printing.print_status(runs, runs if every else printing.notable_runs(runs))
        time.sleep(WATCH_SECONDS)
        runs = sweeps.status(root)
    listed = runs if every else printing.notable_runs(runs)
    if as_json:
        blocks = {name: count_statuses(members) for name, members in printing.group_by_block(runs).items()}
        report = {"root": str(root), "counts": count_statuses(runs), "blocks": blocks}
        print(json.dumps(report | {"runs": [printing.describe_run(run) for run in listed]}, indent=1))
        return
    printing.print_status(runs, listed)


def cancel(
    root: Root,
    run_ids: Annotated[
        list[str] | None, typer.Argument(help="Runs to cancel [default: all]", show_default=False)
    ] = None,
) -> None:
    """Stop what was submitted; what is saved is kept.

    Takes runs out of Slurm's queue or off their nodes, or stops the background process of this machine. Runs
    that share a job go together; a background process is stopped as a whole.

    Example: hyperp-sweep cancel runs/demo
    """
    print(sweeps.cancel(root, run_ids or ()))


def logs(
    root: Root,
    run_id: Annotated[
        str, typer.Argument(help="The run as status names it, or the beginning of its id", show_default=False)
    ],
    rank: Annotated[
        int | None, typer.Option(min=0, help="Show this one of its processes alone", show_default=False)
    ] = None,
) -> None:
    """Print what a run printed and how it ended.

    Prints its output, its traceback if it failed, and what its last job said. Of several processes it shows
    the main one and the one that failed first.

    Example: hyperp-sweep logs runs/demo 0123456789ab
    """
    from hyperp.sweeps.logs import describe_end, other_logs, read_logs

    run_id = _whole_id(root, run_id)
    found = read_logs(root, run_id, rank)
    rest = other_logs(root, run_id, found)
    names = ", ".join(path.name for path in rest)
    if not found and rank is not None:
        there = f"of the logs {names}" if rest else "one that has printed something"
        raise ValueError(f"--rank must be {there}, got {rank}")
    if not found:
        raise ValueError(f"RUN_ID must be a run of {root} that has printed something, got {run_id}")
    if line := describe_end(root / run_id):
        print(line)
    for path, text in found.items():
        print(f"==> {path} <==")
        print(text.rstrip())
    if rest:
        print(f"==> {len(rest)} more of its other processes (--rank N): {names} <==")


def _whole_id(root: Path, given: str) -> str:
    """The id of the one run whose id begins with `given`. Raises ValueError if there are none or several."""
    if given and (root / given).is_dir():
        return given
    known = [run.run_id for run in survey_runs(root)]
    same = [run_id for run_id in known if run_id.startswith(given)]
    if len(same) != 1:
        names = " or ".join(same[:8]) or f"one of the {len(known)} that status --all shows"
        raise ValueError(f"RUN_ID must be a run of {root}: {names}, got {given!r}")
    return same[0]


def collect(
    root: Root,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Table to write, .parquet [default: ROOT/runs.parquet]", show_default=False
        ),
    ] = None,
) -> None:
    """Write the table of all runs, as Parquet and CSV.

    One row a run, whatever became of it. What the stability monitors measured, step by step, goes beside it
    as .metrics.parquet, and activations as .coordinates.parquet.

    Example: hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
    """
    made = sweeps.collect(root, output)
    print(f"{counts_line(made.runs)}; {made.table} and {made.table.with_suffix('.csv').name}")
    if made.coordinates:
        print(f"activations: {made.coordinates}")
