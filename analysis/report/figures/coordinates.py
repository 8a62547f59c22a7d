"""The picture of a coordinate check: one row of panels a series, one column a kind of activation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from hyperp.analysis.diagnostics.coordinates import (
    ACTIVATIONS,
    Activation,
    SizeAtWidth,
    WidthSeries,
    diverged_text,
)
from hyperp.analysis.report.figures.style import (
    GREY,
    STYLE,
    Picture,
    Rows,
    add_note,
    make_folder,
    new_figure,
    save_figure,
    series_style,
    write_rows,
)
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
    make_folder(folder)
    paths = save_figure(*coordinate_panels(found), folder, "coordinates")
    write_rows(slope_records(found), folder / "slopes.csv")
    return [*paths, folder / "slopes.csv"]


@mpl.rc_context(STYLE)
def coordinate_panels(found: Sequence[WidthSeries]) -> Picture:
    """Change since initialisation against width, a line for each step."""
    found = [one for one in found if one.kinds or one.diverged]
    steps = sorted({s.step for one in found for kind in one.kinds for s in kind.sizes if s.step > 0})
    widths = sorted({width for one in found for width in (*one.widths, *one.diverged)})
    size = (11.5, 0.8 + 2.1 * len(found))
    figure, grid = new_figure(size, len(found), len(ACTIVATIONS), sharex=True, sharey="col")
    rows: Rows = []
    for axes_of_series, one in zip(grid, found, strict=True):
        for axes, quantity in zip(axes_of_series, ACTIVATIONS, strict=True):
            rows += draw_activation(axes, one, quantity, steps)
            _width_axis(axes, widths)
        rate = f"\nbase_lr {one.held['base_lr']:.4g}" if "base_lr" in one.held else ""
        axes_of_series[0].set_ylabel(f"{one.name}{rate}", fontsize=9)
    for axes, title in zip(grid[0], ACTIVATIONS.values(), strict=True):
        axes.set_title(title, fontweight="bold", fontsize=10)
        low, high = axes.get_ylim()  # which the whole column shares
        axes.set_ylim(low, high * (high / low) ** ROOM)
    for axes in grid[-1]:
        axes.set_xlabel("width (d_model)")
    drawn = [axes.get_legend_handles_labels() for axes in grid.flat]
    handles = {label: line for both in drawn for line, label in zip(*both, strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9
    )
    add_note(figure, NOTE.format(step=last_step(found)), size=8)
    return figure, rows


def draw_activation(axes: Axes, one: WidthSeries, quantity: str, steps: Sequence[int]) -> Rows:
    """Draw one kind of activation of a series, at these steps, into axes; returns the numbers drawn."""
    kind = next((k for k in one.kinds if k.quantity == quantity), None)
    rows: Rows = []
    if kind is not None:
        rows = _draw_sizes(axes, one, kind, steps)
    elif one.diverged:
        _write_verdict(axes, diverged_text(one.diverged))
    for width in one.diverged:
        axes.axvline(width, color=RED, ls=":", lw=1.2)
    return rows


def _width_axis(axes: Axes, widths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_sizes(axes: Axes, one: WidthSeries, kind: Activation, steps: Sequence[int]) -> Rows:
    start = [s for s in kind.sizes if s.measure == "size" and s.step == 0]
    _draw_line(axes, start, "step 0, itself", {"color": GREY, "ls": "--", "lw": 1.0})
    for index, step in enumerate(steps):
        change = [s for s in kind.sizes if s.measure == "change" and s.step == step]
        _draw_line(axes, change, f"step {step}", {**series_style(index), "ms": 4, "lw": 1.4})
    slope = last_slope(kind, "change")
    if slope is not None:
        value = "" if slope.value is None else f"{slope.value:+.2f} "
        _write_verdict(axes, f"{value}{slope.text}\n{steepest_text(kind, 'change')}")
    names = {"parametrization": one.context["parametrization"], "optimizer": one.context["optimizer"]}
    base = {**names, "base_lr": one.held.get("base_lr"), "quantity": kind.quantity, "layer": kind.layer}
    return [{**base, **s.model_dump()} for s in kind.sizes]


def _write_verdict(axes: Axes, text: str) -> None:
    axes.text(0.03, 0.95, text.rstrip(), transform=axes.transAxes, va="top", fontsize=8.5)


def _draw_line(axes: Axes, sizes: Sequence[SizeAtWidth], label: str, look: Mapping[str, Any]) -> None:
    """Draw the means over seeds, on a band from the smallest to the largest seed."""
    widths = [s.width for s in sizes]
    axes.fill_between(
        widths, [s.low for s in sizes], [s.high for s in sizes], color=look["color"], alpha=0.15, lw=0
    )
    axes.plot(widths, [s.mean for s in sizes], label=label, **look)
