"""Tables that `hyperp-sweep` prints: a plan's cost, and the status of its runs."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hyperp.sweeps.plan.plan import Plan
from hyperp.sweeps.plan.run_config import facts_of, run_of, trainer_name
from hyperp.sweeps.runs.cost import DEFAULT_GPU, AssumedGpu
from hyperp.sweeps.runs.status import DONE, STATUSES, Run, count_statuses, counts_line

WIDE = 160  # columns if the output is not a terminal, so that no line is folded


def print_table(table: Table) -> None:
    """Print a table to standard output."""
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def new_table(*columns: str, text: int = 1, title: str | None = None) -> Table:
    """A table whose first `text` columns are left-aligned and the others right-aligned."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text else "right", overflow="fold")
    return table


def plan_summary(plan: Plan, done: set[str], assumed: AssumedGpu = DEFAULT_GPU) -> list[dict[str, Any]]:
    """Counts and costs of each block, in order; a run of two blocks counts in the first one."""
    blocks: dict[str, dict[str, Any]] = {}
    for point in plan.points:
        name = point.blocks[0] if point.blocks else "(one run)"
        row = blocks.setdefault(
            name, {"block": name, "runs": 0, "done": 0, "tokens": 0, "flops": 0.0, "rates": set()}
        )
        row["runs"] += 1
        row["done"] += point.run_id in done
        row["tokens"] += point.facts.tokens or 0
        row["flops"] += point.facts.flops or math.nan
        row["rates"].add(point.lr)
    for row in blocks.values():
        rates = row.pop("rates")
        if not math.isfinite(row["flops"]):  # a command that tells none
            row["flops"] = None
        hours = None if row["flops"] is None else assumed.hours(row["flops"])
        row |= {"gpu_hours": hours, "lowest_lr": min(rates), "highest_lr": max(rates)}
    return list(blocks.values())


def print_plan(summary: list[dict[str, Any]]) -> None:
    """Print runs, tokens, FLOPs and GPU-hours by block, and their sums."""
    table = new_table("block", "runs", "done", "learning rates", "tokens", "FLOPs", "GPU-hours")
    for row in summary:
        rates = f"{row['lowest_lr']:.3g} ... {row['highest_lr']:.3g}"
        table.add_row(row["block"], str(row["runs"]), str(row["done"]), rates, *_cost_cells(row))
    if len(summary) > 1:
        keys = ("runs", "done", "tokens", "flops", "gpu_hours")
        known = all(row["flops"] is not None for row in summary)
        total = {key: sum(row[key] for row in summary) for key in keys if known or key in keys[:3]}
        table.add_section()
        table.add_row("all", str(total["runs"]), str(total["done"]), "", *_cost_cells(total))
    print_table(table)


def _cost_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    flops, hours = row.get("flops"), row.get("gpu_hours")
    return (
        f"{row['tokens']:,}" if row["tokens"] else "-",
        "-" if flops is None else f"{flops:.3g}",
        "-" if hours is None else f"{hours:.2g}",
    )


def group_by_block(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each block, in order."""
    blocks: dict[str, list[Run]] = {}
    for run in runs:
        blocks.setdefault(run.block or "(no block)", []).append(run)
    return blocks


def notable_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs that are running, diverged, failed or lost, or that were stopped half-way."""
    return [run for run in runs if run.status not in ("planned", "queued", "finished") or _says_more(run)]


def _says_more(run: Run) -> bool:
    return run.reason is not None and run.status != "queued"


def describe_run(run: Run) -> dict[str, Any]:
    """One run as plain values, for JSON."""
    facts = _known_facts(run)
    return {
        "run_id": run.run_id,
        "block": run.block,
        "status": run.status,
        "reason": run.reason,
        "cause": run.cause,
        "base_lr": facts.get("base_lr"),
        "seed": facts.get("seed"),
        "scale": facts.get("scale"),
        "step": run.step,
        "steps": run.steps,
        "tokens_per_second": run.record.tokens_per_second if run.record else run.tokens_per_second,
        "loss": run.record.loss if run.record else None,
        "job": run.job,
        "time_left": run.time_left,
        "restarts": _recorded_restarts(run),
    }


def _known_facts(run: Run) -> dict[str, Any]:
    """Rate, seed and sizes of a run, from its plan or its record."""
    if run.planned and trainer_name(run.planned.config) == "command":
        facts = facts_of(run_of(run.planned.config))
        return {"base_lr": facts.base_lr, "seed": facts.seed, "scale": {**facts.sizes, **facts.others}}
    return run.planned.config if run.planned else asdict(run.record) if run.record else {}


def print_status(runs: Sequence[Run], listed: Sequence[Run]) -> None:
    """Print counts by block and status, the listed runs, and the totals in one line."""
    there = count_statuses(runs)
    shown = [status for status in STATUSES if status in there or status not in ("queued", "lost")]
    table = new_table("block", *shown)
    for name, members in group_by_block(runs).items():
        found = count_statuses(members)
        table.add_row(name, *(str(found.get(status, "")) for status in shown))
    print_table(table)
    if listed:
        table = new_table(
            "run", "block", "status", "base_lr", "seed", "step", "tokens/s", "loss", "reason", text=3
        )
        table.columns[-1].justify = "left"
        for run in listed:
            table.add_row(*_run_cells(describe_run(run)))
        print_table(table)
    print(counts_line(runs))


def _recorded_restarts(run: Run) -> int | None:
    count = run.record.environment.get("slurm_restart_count") if run.record else None
    return int(count) if count and count.isdecimal() else None


def print_undone(runs: Sequence[Run], root: Path) -> bool:
    """Print a line on standard error for each run that is not done; return whether there is any."""
    left = [run for run in runs if run.status not in DONE]
    for run in left:
        reason = f"{run.reason} " if run.reason else ""
        print(f"{run.status} {run.run_id}: {reason}(see {root / run.run_id})", file=sys.stderr)
    return bool(left)


def _run_cells(values: dict[str, Any]) -> list[str]:
    def cell(name: str, form: str) -> str:
        return "" if values[name] is None else format(values[name], form)

    step = "" if values["step"] is None else f"{values['step']}/{values['steps']}"
    numbers = [
        cell("base_lr", ".4g"),
        cell("seed", "d"),
        step,
        cell("tokens_per_second", ",.0f"),
        cell("loss", ".4f"),
    ]
    status = ": ".join(filter(None, (values["status"], (values["cause"] or "").replace("_", " "))))
    return [values["run_id"], values["block"] or "", status, *numbers, values["reason"] or ""]
