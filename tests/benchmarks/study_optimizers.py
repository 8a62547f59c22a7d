"""Five optimizers at their best rates: loss, cost, stability, and how far the best rate moves with width.

    hyperp-sweep run +experiment=optimizers
    hyperp-sweep collect runs/optimizers
    python tests/benchmarks/study_optimizers.py runs/optimizers/runs.parquet reports/optimizers

The sweep gives losses and optima. It keeps neither step times nor the sizes of activations and weights, which
this script measures in further runs at the tuned rates. Run it on an idle machine.
"""

import argparse
import math
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import nn

from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.queries.check import describe_table, find_optima
from hyperp.analysis.queries.transfer import Transfer, measure_transfer
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.report.figures.basins import transfer_panels
from hyperp.analysis.report.figures.style import save_figure
from hyperp.analysis.table.validate import Runs, read_runs
from hyperp.config import Config, compose, resolve
from hyperp.training.trainer import Trainer

TIMED = 100  # steps to time, after as many that warm up
COMMON = ("+experiment=optimizers", "sweep=none", "runtime.device=cpu")


@dataclass
class Stability:
    """Times and sizes of one run at the tuned rate, over its steps and at its end."""

    milliseconds: float  # median of a step
    optimizer_share: float  # part of that in the optimizer
    largest_activation: float  # largest absolute output of any block in the last quarter of the run
    sigma: tuple[float, float]  # smallest and largest over hidden matrices: sigma_max / sqrt(d_out / d_in)
    gap: float  # median over hidden matrices of 1 - sigma_2 / sigma_1


def main() -> None:
    """Read the runs, train again at the optima, and write report.md with its figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="the table of the sweep")
    parser.add_argument("out", type=Path, help="folder of the report")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = read_runs(arguments.runs)
    table = find_optima(runs)
    slices, answers = describe_table(table).slices, measure_transfer(table, "width")
    figure, rows = transfer_panels(slices, answers)
    save_figure(figure, rows, arguments.out, "transfer")
    measured = {}
    for one in track([s for s in slices if s.optimum], "stability"):
        measured[slice_key(one)] = measure_stability(config_at_optimum(one))
    moved = seed_drifts(runs)
    lines = [
        *header_lines(runs.frame),
        *loss_section(runs.frame, slices),
        *drift_section(answers, moved),
        *cost_section(slices, measured),
    ]
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")
    print(f"wrote {arguments.out / 'report.md'}")


def slice_key(one: SliceRecord) -> tuple:
    """Optimizer, width and tokens of a slice."""
    return (one.context["optimizer"], one.covariates["width"], one.covariates["tokens"])


def config_at_optimum(one: SliceRecord) -> Config:
    """Configuration of the run of a slice at its fitted optimum."""
    assert one.optimum is not None
    sizes = [f"scale.{name}={value}" for name, value in one.covariates.items()]
    made_with = [f"optim={one.context['optimizer']}", f"parametrization={one.context['parametrization']}"]
    return resolve(compose([*COMMON, *made_with, *sizes, f"base_lr={one.optimum.lr}"]))


def measure_stability(config: Config) -> Stability:
    """Train once, and measure its times and sizes."""
    trainer = Trainer(config)
    largest = torch.zeros(())
    watching = False

    def watch(module: nn.Module, inputs: tuple, output: tuple) -> None:
        nonlocal largest
        if watching:
            largest = torch.maximum(largest, output[0].detach().abs().max())

    for block in trainer.model.blocks:
        block.register_forward_hook(watch)
    step_seconds, optimizer_seconds = [], []
    inner = trainer.optimizer.step

    def timed(closure: None = None) -> None:
        start = time.perf_counter()
        inner(closure)
        optimizer_seconds.append(time.perf_counter() - start)

    trainer.optimizer.step = timed  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(config.scale.steps):
        watching = step >= config.scale.steps * 3 // 4
        start = time.perf_counter()
        trainer.train_step()
        step_seconds.append(time.perf_counter() - start)
    shares, gaps = [], []
    for group in trainer.optimizer.param_groups:
        for weight in group["params"] if group["role"] == "hidden" else ():
            values = torch.linalg.svdvals(weight.detach())
            shares.append(float(values[0]) / math.sqrt(weight.shape[0] / weight.shape[1]))
            gaps.append(1 - float(values[1] / values[0]))
    window = slice(TIMED, 2 * TIMED)
    median = float(np.median(step_seconds[window]))
    return Stability(
        milliseconds=1e3 * median,
        optimizer_share=float(np.median(optimizer_seconds[window])) / median,
        largest_activation=float(largest),
        sigma=(min(shares), max(shares)),
        gap=float(np.median(gaps)),
    )


def markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return [f"| {line} |" for line in lines] + [""]


def header_lines(frame: pd.DataFrame) -> list[str]:
    """Title, and what was run on which machine."""
    counts = frame["status"].value_counts()
    made = ", ".join(f"{n} {status}" for status, n in counts.items())
    text = f"""# Five optimizers at their best rates

{len(frame)} runs ({made}) of a byte-level decoder of depth 2 on the source text of Python's standard library,
batches of 512 tokens, linear decay to 0.1 without warm-up, clip 1. Hidden matrices follow the optimizer;
embeddings and vectors AdamW; the unembedding AdamH beside MuonH, and AdamW else. AdamW runs under `standard`
(every factor 1), the others under `raw` (HyperP's model, every factor 1).

Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread a run.
"""
    return [*text.splitlines(), ""]


def loss_section(frame: pd.DataFrame, slices: list[SliceRecord]) -> list[str]:
    """Best loss of every slice, with the spread of its seeds at the best rate of the grid."""
    rows = []
    for one in slices:
        name, width, tokens = slice_key(one)
        own = (frame["optimizer"] == name) & (frame["width"] == width) & (frame["tokens"] == tokens)
        points = frame[own & (frame["status"] == "finished")]
        if points.empty:
            continue
        by_rate = points.groupby("lr")["loss"].agg(["mean", "std", "count"])
        complete = by_rate[by_rate["count"] == by_rate["count"].max()]
        best = complete.loc[complete["mean"].idxmin()]
        fitted = "-" if one.optimum is None else f"2^{math.log2(one.optimum.lr):.2f}"
        error = "-" if one.optimum is None or one.optimum.se is None else f"{one.optimum.se:.2f}"
        rate = math.log2(float(complete["mean"].idxmin()))  # pyright: ignore[reportArgumentType]
        sizes = [name, f"{width}", f"{tokens:,}", fitted, error, f"2^{rate:.0f}"]
        spread = [f"{best['mean']:.4f}", f"{best['std']:.4f}", f"{int(best['count'])}"]
        rows.append([*sizes, *spread, str(len(one.diverged))])
    columns = [
        "optimizer",
        "width",
        "tokens",
        "optimum",
        "SE, octaves",
        "best rate of the grid",
        "its mean loss",
    ]
    columns += ["SD over seeds", "seeds", "rates that diverged"]
    return ["## Loss", "", *markdown_table(columns, rows)]


def seed_drifts(runs: Runs) -> dict[str, list[float]]:
    """Octaves per doubling by optimizer, for each seed by itself.

    A seed sees the same text in the same order at every width.
    """
    found: dict[str, list[float]] = {}
    for seed in sorted(runs.frame["seed"].unique()):
        one = replace(runs, frame=runs.frame[runs.frame["seed"] == seed])
        for answer in measure_transfer(find_optima(one), "width"):
            if answer.drift is not None and not answer.excluded:
                found.setdefault(answer.context["optimizer"], []).append(answer.drift.octaves_per_doubling)
    return found


def drift_section(answers: list[Transfer], of_seeds: dict[str, list[float]]) -> list[str]:
    """How far the optimum moves with width."""
    rows = []
    for one in answers:
        name, drift = one.context["optimizer"], one.drift
        optima = ", ".join("-" if p.lr is None else f"{p.value}: 2^{math.log2(p.lr):.2f}" for p in one.points)
        if drift is None:
            rows.append([name, optima, one.problem or "-", "-", "-", "-"])
            continue
        interval = "-" if drift.low is None else f"{drift.low:+.2f} to {drift.high:+.2f}"
        penalty = "-" if one.penalty is None else f"{one.penalty.nats:.4f} ({one.penalty.percent:.2f}%)"
        moved = f"{drift.octaves_per_doubling:+.2f}"
        rows.append([name, optima, moved, interval, seed_interval(of_seeds.get(name, [])), penalty])
    columns = [
        "optimizer",
        "optima by width",
        "octaves per doubling",
        "95% interval of `hyperp-law transfer`",
    ]
    columns += ["each seed by itself: mean and 95% interval"]
    columns += ["nats more at the largest width with the smallest one's rate"]
    title = ["## Drift of the best rate with width", "", "![transfer](transfer.png)", ""]
    return [*title, *markdown_table(columns, rows)]


def seed_interval(values: list[float]) -> str:
    """Mean over seeds, and its 95% interval by Student's t."""
    if len(values) < 2:
        return "-"
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = t_quantile(len(values) - 1, 0.95) * error
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}; {len(values)} seeds)"


def cost_section(slices: list[SliceRecord], measured: dict[tuple, Stability]) -> list[str]:
    """Step times, and the sizes of activations and weights."""
    rows = []
    for one in slices:
        name, width, tokens = slice_key(one)
        found = measured.get(slice_key(one))
        if found:
            low, high = found.sigma
            times = [f"{found.milliseconds:.2f}", f"{found.optimizer_share:.0%}"]
            norms = [f"{found.largest_activation:.1f}", f"{low:.3f} to {high:.3f}", f"{found.gap:.1e}"]
            rows.append([name, f"{width}", f"{tokens:,}", *times, *norms])
    columns = ["optimizer", "width", "tokens", "ms a step", "the optimizer's share", "largest activation"]
    columns += ["sigma_max / sqrt(d_out/d_in) at the end", "median gap 1 - sigma_2/sigma_1"]
    text = (
        "At the fitted optimum, seed 0; the largest absolute output of a block is of the run's last quarter."
    )
    return ["## Cost and stability", "", text, "", *markdown_table(columns, rows)]


if __name__ == "__main__":
    main()
