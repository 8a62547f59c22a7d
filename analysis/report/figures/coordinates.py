"""The picture of a coordinate check: one row of panels a series, one column a kind of activation."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from hyperp.analysis.diagnostics.coordinates import (
    ACTIVATIONS,
    Activation,
    SizeAtWidth,
    WidthSeries,
    diverged_text,
)
from hyperp.analysis.files import write_text
from hyperp.analysis.report.figures.style import COLOURS, GREY, LINES, MARKERS, STYLE, Rows, save_figure
from hyperp.analysis.report.text.coordinates import last_slope, last_step, slope_records, steepest_text

RED = "#C00000"
ROOM = 0.3  # of the panel's height, above the data, for the verdict
NOTE = (
    "lines: RMS of the change since initialisation, after each step; dashed grey: RMS of the activation "
    "itself at initialisation.\nGeometric mean over seeds, band: smallest to largest seed. Attention, MLP: "
    "of the last block, before the residual multiplier.\n"
    "In each panel: slope of the change at step {step}, and its verdict; below it the step of the largest "
    "slope, if its verdict is another.\n"
    "Dotted red: a width at which a run diverged; lines are of runs that finished."
)


def write_coordinate_check(found: Sequence[WidthSeries], folder: Path) -> list[Path]:
    """Write coordinates.png, .svg and .csv, and slopes.csv, to a folder, made if it is not there."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {folder} must be a folder, it is a file")
    folder.mkdir(parents=True, exist_ok=True)
    paths = save_figure(*coordinate_panels(found), folder, "coordinates")
    rows = slope_records(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), folder / "slopes.csv")
    return [*paths, folder / "slopes.csv"]


def coordinate_panels(found: Sequence[WidthSeries]) -> tuple[Figure, Rows]:
    """Change since initialisation against width, a line for each step."""
    rows: Rows = []
    found = [one for one in found if one.kinds or one.diverged]
    steps = sorted({s.step for one in found for kind in one.kinds for s in kind.sizes if s.step > 0})
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(found),
            len(ACTIVATIONS),
            figsize=(11.5, 0.8 + 2.1 * len(found)),
            sharex=True,
            sharey="col",
            squeeze=False,
        )
        for axes_of_series, one in zip(grid, found, strict=True):
            for axes, (quantity, title) in zip(axes_of_series, ACTIVATIONS.items(), strict=True):
                kind = next((k for k in one.kinds if k.quantity == quantity), None)
                if kind is not None:
                    rows += _draw(axes, one, kind, steps)
                elif one.diverged:
                    _say(axes, diverged_text(one.diverged))
                for width in one.diverged:
                    axes.axvline(width, color=RED, ls=":", lw=1.2)
                if one is found[0]:
                    axes.set_title(title, fontweight="bold", fontsize=10)
                _width_axis(axes, found)
                if one is found[-1]:
                    axes.set_xlabel("width (d_model)")
            rate = f"\nbase_lr {one.held['base_lr']:.4g}" if "base_lr" in one.held else ""
            axes_of_series[0].set_ylabel(f"{one.name}{rate}", fontsize=9)
        for axes in grid[0]:  # whose range the column shares
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** ROOM)
        drawn = [axes.get_legend_handles_labels() for axes in grid.flat]
        handles = {label: line for both in drawn for line, label in zip(*both, strict=True)}
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9
        )
        note = NOTE.format(step=last_step(found))
        figure.supxlabel(note, fontsize=8, color="#444444", x=0.01, ha="left")
    return figure, rows


def _width_axis(axes: Axes, found: Sequence[WidthSeries]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    widths = sorted({width for one in found for width in (*one.widths, *one.diverged)})
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, one: WidthSeries, kind: Activation, steps: Sequence[int]) -> Rows:
    start = [s for s in kind.sizes if s.measure == "size" and s.step == 0]
    _line(axes, start, "step 0, itself", {"color": GREY, "ls": "--", "lw": 1.0})
    for index, step in enumerate(steps):
        look = {"color": COLOURS[index % len(COLOURS)], "ls": LINES[index % len(LINES)]}
        look |= {"marker": MARKERS[index % len(MARKERS)], "ms": 4, "lw": 1.4}
        change = [s for s in kind.sizes if s.measure == "change" and s.step == step]
        _line(axes, change, f"step {step}", look)
    slope = last_slope(kind, "change")
    if slope is not None:
        value = "" if slope.value is None else f"{slope.value:+.2f} "
        _say(axes, f"{value}{slope.text}\n{steepest_text(kind, 'change')}")
    names = {"parametrization": one.context["parametrization"], "optimizer": one.context["optimizer"]}
    base = {**names, "base_lr": one.held.get("base_lr"), "quantity": kind.quantity, "layer": kind.layer}
    return [{**base, **s.model_dump()} for s in kind.sizes]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.03, 0.95, text.rstrip(), transform=axes.transAxes, va="top", fontsize=8.5)


def _line(axes: Axes, sizes: Sequence[SizeAtWidth], label: str, look: dict[str, Any]) -> None:
    widths = [s.width for s in sizes]
    axes.fill_between(
        widths, [s.low for s in sizes], [s.high for s in sizes], color=look["color"], alpha=0.15, lw=0
    )
    axes.plot(widths, [s.mean for s in sizes], label=label, **look)
