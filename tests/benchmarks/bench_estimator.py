"""Simulate what the intervals of `fit_law` cover, how wide they are, what its answers cost, and its speed.

    python tests/benchmarks/bench_estimator.py [--full] [--processes 2] [--methods shared] [--only exact]

The designs are in estimator_designs.py, the simulator in tests/oracles/sweep_simulator.py. Every sweep has
its own seed, so that two runs with the same options see the same sweeps. A quick run takes two minutes, a
full one half an hour on two cores. Timings are taken last, in one process. With --out it writes the table
(table.md), a row for every cell (cells.csv), and a figure of coverage against width (coverage.png and .svg).
"""

# ruff: noqa: E402
import os
import sys
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
if __name__ in ("__main__", "__mp_main__"):  # as a script, here and in the processes that it starts
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import multiprocessing
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, cast

import matplotlib as mpl
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hyperp.analysis import fit_law
from hyperp.analysis.report.figures.style import (
    STYLE,
    add_note,
    bold_title,
    new_figure,
    save_figure,
    series_style,
)
from hyperp.analysis.vocabulary import DEFAULT_METHOD, METHODS, MethodName
from hyperp.files import replacing
from tests.benchmarks.estimator_designs import ROWS, SCENARIOS, TIMED
from tests.benchmarks.estimator_scores import COLUMNS, Task, row_text, score_task, summarize_cells
from tests.oracles.sweep_simulator import simulate_sweep

OLDER = ("two-stage", "pool", "argmin")
CHUNK = 6  # sweeps in one task
NOTE = (
    "Coverage of nominal 95% intervals with Wilson's binomial interval, its count, and the median width (of "
    "rates in octaves). Refused sweeps count for neither. Regret is the mean excess loss of the answer where "
    "the target's own optimum is best, in % of the loss, with 1.96 standard errors."
)


def make_tasks(full: bool, methods: Sequence[str], only: Sequence[str]) -> list[Task]:
    """The work in pieces of a few sweeps; two-stage, pool and argmin only where they are of interest."""
    tasks = []
    for name, scenario in SCENARIOS.items():
        if only and name not in only:
            continue
        here = tuple(m for m in methods if scenario.older or m not in OLDER)
        count = scenario.full if full else scenario.quick
        for cell in scenario.cells:
            for first in range(0, count, CHUNK):
                tasks.append(Task(name, cell, here, range(first, min(first + CHUNK, count))))
    return [task for task in tasks if task.methods]


def run_tasks(tasks: Sequence[Task], processes: int) -> Iterator[list[dict[str, Any]]]:
    """The scores of every task as they come, in this process if one is asked for."""
    if processes == 1:
        yield from map(score_task, tasks)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(score_task, task) for task in tasks]):
            yield future.result()


def simulate(tasks: Sequence[Task], processes: int, console: Console) -> pd.DataFrame:
    """All scores as a table, in the order of the tasks whatever the number of processes."""
    columns = (TextColumn("sweeps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    scores: list[dict[str, Any]] = []
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=sum(len(task.replicates) for task in tasks))
        for part in run_tasks(tasks, processes):
            scores += part
            progress.advance(bar, len({score["replicate"] for score in part}))
    frame = pd.DataFrame(scores, columns=list(COLUMNS))
    order = {name: k for k, name in enumerate(SCENARIOS)}
    return frame.sort_values(
        ["scenario", "cell", "replicate", "method"],
        key=lambda column: column.map(order) if column.name == "scenario" else column,
        ignore_index=True,
    )


def time_fits(methods: Sequence[str], full: bool) -> list[dict[str, str]]:
    """Rows of the table with the shortest processor time of a fit, of three unless one takes five seconds.

    On an idle core that is the time on the clock. The largest table is for a full run and the default method.
    """
    rows = []
    for timed in TIMED:
        if timed.full_only and not full:
            continue
        frame, truth = simulate_sweep(timed.design, 0)
        quantity = f"processor seconds of a fit, {timed.text}"
        row = {"quantity": quantity, "published": timed.published, "goal": timed.goal}
        for method in methods:
            seconds: list[float] = []
            while len(seconds) < 3 and not (seconds and seconds[0] > 5):
                if timed.full_only and method != DEFAULT_METHOD:
                    break
                start = time.process_time()
                fit_law(frame, truth.design.by, method=cast(MethodName, method))
                seconds.append(time.process_time() - start)
            row[method] = f"{min(seconds):.2f} s" if seconds else ""
        rows.append(row)
    return rows


def make_table(scores: pd.DataFrame, methods: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the table whose scenario was run: published, goal, and a column for each method."""
    there = set(scores["scenario"])
    return [
        {
            "quantity": row.text,
            "published": row.published,
            "goal": row.goal,
            **{method: row_text(row, scores, method) for method in methods},
        }
        for row in ROWS
        if row.scenario in there
    ]


def print_table(rows: Sequence[dict[str, str]], console: Console) -> None:
    """Print the table to the terminal."""
    table = Table(*rows[0], show_lines=False)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def markdown(rows: Sequence[dict[str, str]], note: str) -> str:
    """The table as Markdown, with a note above it."""
    lines = [f"| {' | '.join(row.values())} |" for row in ({name: name for name in rows[0]}, *rows)]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return f"# The estimator on simulated sweeps\n\n{note}\n\n" + "\n".join(lines) + "\n"


def draw_cells(cells: pd.DataFrame, methods: Sequence[str], folder: Path) -> None:
    """Coverage at the near target against the median width, a panel for each scenario."""
    names = list(dict.fromkeys(cells["scenario"]))
    across = min(4, len(names))
    down = -(-len(names) // across)
    with mpl.rc_context(STYLE):
        figure, grid = new_figure((3.4 * across, 2.9 * down + 0.4), down, across, sharex=True, sharey=True)
        for name, axes in zip(names, grid.flat, strict=False):
            for index, method in enumerate(methods):
                own = cells[(cells["scenario"] == name) & (cells["method"] == method)].dropna(
                    subset=["near_coverage"]
                )
                y = own["near_coverage"]
                ends = (y - own["near_low"]).clip(lower=0), (own["near_high"] - y).clip(lower=0)
                style = {**series_style(index), "ls": "none", "ms": 4, "elinewidth": 0.6, "alpha": 0.8}
                axes.errorbar(own["near_width"], 100 * y, [100 * end for end in ends], label=method, **style)
            axes.axhline(95, color="black", lw=0.8)
            axes.set_xscale("log", base=2)
            bold_title(axes, name)
        for axes in grid[-1]:
            axes.set_xlabel("median width, octaves")
        for axes in grid[:, 0]:
            axes.set_ylabel("coverage, %")
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        grid.flat[0].legend(loc="lower right")
        add_note(
            figure, "A point is a cell: one design. Bars are binomial 95% intervals. Targets: 8x tokens."
        )
        drawn = ["scenario", "cell", "method", "sweeps", "refused", "near_coverage", "near_low", "near_high"]
        rows = [
            {str(k): v for k, v in row.items()} for row in cells[[*drawn, "near_width"]].to_dict("records")
        ]
        save_figure(figure, rows, folder, "coverage")


def print_failures(scores: pd.DataFrame, console: Console) -> None:
    """Name the sweeps that ended in an exception other than a refusal."""
    for text, some in scores[scores["failed"].notna()].groupby("failed"):
        first = some.iloc[0]
        which = f"{first['scenario']}: {first['cell']}, replicate {first['replicate']}, {first['method']}"
        console.print(f"{len(some)} fits failed, the first at {which}\n{text}", markup=False)


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="many times the sweeps, and a million rows")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="(default 2)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="(default: the default method and shared; with --full all)",
    )
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=[], help="some scenarios")
    parser.add_argument("--no-times", action="store_true", help="leave the timings out")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write table, cells and figure there")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    chosen = METHODS if options.full else (DEFAULT_METHOD, "shared")
    options.methods = list(dict.fromkeys(options.methods or chosen))
    return options


def main() -> None:
    """Simulate, score, time, print and write."""
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else 220)
    start = time.perf_counter()
    tasks = make_tasks(options.full, options.methods, options.only)
    if not tasks:
        sys.exit(f"no sweeps: {', '.join(options.only)} needs --full, or another of --methods")
    scores = simulate(tasks, options.processes, console)
    wall = time.perf_counter() - start
    rows = make_table(scores, options.methods)
    if not options.no_times:
        rows += time_fits(options.methods, options.full)
    print_table(rows, console)
    note = (
        f"{NOTE}\n\n{len(scores)} fits of {sum(len(task.replicates) for task in tasks)} sweeps in "
        f"{wall:.0f} s with {options.processes} processes on {platform.machine()}, Python "
        f"{platform.python_version()}: `python tests/benchmarks/bench_estimator.py {' '.join(sys.argv[1:])}`."
    )
    console.print(note, markup=False)
    print_failures(scores, console)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        cells = summarize_cells(scores)
        with replacing(options.out / "cells.csv") as file:
            cells.to_csv(file, index=False, float_format="%.5g", lineterminator="\n")
        with replacing(options.out / "table.md") as file:
            file.write(markdown(rows, note))
        draw_cells(cells, options.methods, options.out)
    if scores["failed"].notna().any():
        sys.exit(1)


if __name__ == "__main__":
    main()
