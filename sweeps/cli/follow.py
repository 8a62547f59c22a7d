"""The commands of `hyperp-sweep` that begin with a sweep's folder: status, cancel, logs, collect."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hyperp.sweeps import printing
from hyperp.sweeps.account import account, last_submissions
from hyperp.sweeps.cli.options import Json, Root
from hyperp.sweeps.console import warn
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.runs.status import UNDER_WAY, count_statuses, counts_line, survey_runs
from hyperp.sweeps.slurm import submissions

WATCH_SECONDS = 5.0


def status(
    root: Root,
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="List every run, not only those of note")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until no run is under way")] = False,
) -> None:
    """Count the runs of a sweep by block and status; list what runs, diverged, failed or was stopped.

    Example: hyperp-sweep status runs/demo --all
    """
    runs = account(root, warn)
    while watch and any(run.status in UNDER_WAY for run in runs):
        printing.print_status(runs, runs if every else printing.notable_runs(runs))
        time.sleep(WATCH_SECONDS)
        runs = account(root, warn)
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
        list[str] | None, typer.Argument(help="Runs to cancel; all if none is named", show_default=False)
    ] = None,
) -> None:
    """Take runs out of Slurm's queue, or off their nodes; or stop what is in the background of this machine.

    What they saved is kept. Runs that share a job, or this machine, go together.

    Example: hyperp-sweep cancel runs/demo
    """
    pool = background_pools.active_pool(root)
    if pool:
        _cancel_here(root, pool, run_ids or [])
    elif (root / submissions.NAME).exists():
        _cancel_jobs(root, run_ids or [])
    else:
        survey_runs(root)  # whether it is the folder of a sweep at all
        print(f"cancelled 0 runs: none is in the background or in Slurm; {root}")


def _cancel_here(root: Path, pool: background_pools.BackgroundPool, run_ids: Sequence[str]) -> None:
    if run_ids:
        raise ValueError(
            f"RUN_IDS must be left out where the runs are on this machine: {root} is cancelled as a whole, "
            f"got {', '.join(run_ids)}"
        )
    under_way = [run for run in account(root, warn) if run.job == pool.name and run.status in UNDER_WAY]
    background_pools.stop_pool(root, pool)
    print(f"cancelled {len(under_way)} run{'s' * (len(under_way) != 1)} of process {pool.process}; {root}")


def _cancel_jobs(root: Path, run_ids: Sequence[str]) -> None:
    from hyperp.sweeps.slurm import commands

    sent = last_submissions(root, commands.queued_jobs())
    unknown = sorted(set(run_ids) - set(sent))
    if unknown:
        raise ValueError(f"RUN_IDS must be runs that were submitted from {root}, got {', '.join(unknown)}")
    chosen = [one for run_id, one in sent.items() if not run_ids or run_id in run_ids]
    jobs = sorted({one.job.job_id for one in chosen if one.job and one.job.in_flight})
    commands.cancel_jobs(jobs)
    print(f"cancelled {len(jobs)} job{'s' * (len(jobs) != 1)}; {root}")


def logs(
    root: Root,
    run_id: Annotated[
        str, typer.Argument(help="The run, as status names it, or the beginning of that", show_default=False)
    ],
    rank: Annotated[
        int | None, typer.Option(min=0, help="This one of its processes alone", show_default=False)
    ] = None,
) -> None:
    """Print how a run ended, what it printed, its traceback if it failed, and what its last job said.

    Of several processes, what the main one printed, and the one that failed first.

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
    """The run that is meant by the beginning of its id; ValueError unless it is one."""
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
            "--output", "-o", help="The .parquet to write; ROOT/runs.parquet if not given", show_default=False
        ),
    ] = None,
) -> None:
    """Write one row a run, whatever became of it, as Parquet and beside it as CSV.

    What the stability monitors saw, step by step, goes beside it as .metrics.parquet.

    Example: hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
    """
    from hyperp.run_table import coordinates_beside
    from hyperp.sweeps.table.runs import collect as write_table

    path = output or root / "runs.parquet"
    runs = write_table(root, path, warn)
    print(f"{counts_line(runs)}; {path} and {path.with_suffix('.csv').name}")
    if coordinates_beside(path).is_file():
        print(f"activations: {coordinates_beside(path)}")
