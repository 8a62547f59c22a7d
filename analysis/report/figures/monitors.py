"""The pictures of the stability monitors: against steps, and against a size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperp.analysis.diagnostics.monitors import STEP_QUANTITIES, SUMMARY_NAMES, MonitorFindings
from hyperp.analysis.report.figures.style import (
    COLOURS,
    LINES,
    STYLE,
    UNITS,
    Picture,
    Rows,
    new_figure,
    series_style,
    size_label,
    size_text,
)

MOST_SCALES = len(COLOURS)  # in one picture against steps


def scales_to_draw(found: MonitorFindings) -> list[int]:
    """The scales whose runs are drawn against steps; of many an even choice, ends included."""
    scales = [int(scale) for scale in found.scales.sort_values(list(found.sizes)).index]
    if len(scales) <= MOST_SCALES:
        return scales
    return [scales[round(i * (len(scales) - 1) / (MOST_SCALES - 1))] for i in range(MOST_SCALES)]


@mpl.rc_context(STYLE)
def monitors_against_steps(found: MonitorFindings) -> Picture:
    """A panel a quantity, a line for the best run of each scale, a marker for each logged value."""
    there = set(found.steps["quantity"])
    quantities = [name for name in STEP_QUANTITIES if name in there]
    figure, panels = _panels(len(quantities))
    rows: Rows = []
    for axes, quantity in zip(panels, quantities, strict=True):
        rows += draw_against_steps(axes, found, quantity)
    _legend_below(figure, panels[0])
    return figure, rows


def draw_against_steps(axes: Axes, found: MonitorFindings, quantity: str) -> Rows:
    """Draw one quantity against steps into axes; returns the numbers drawn."""
    vary = [name for name in found.sizes if found.scales[name].nunique() > 1]
    rows: Rows = []
    not_finite = []
    for index, scale in enumerate(scales_to_draw(found)):
        sizes = {name: int(str(found.scales.at[scale, name])) for name in found.sizes}
        label = ", ".join(size_label(name, sizes[name]) for name in vary) or "the only scale"
        own = found.steps[(found.steps["scale"] == scale) & (found.steps["quantity"] == quantity)]
        finite = own[np.isfinite(own["value"])]
        axes.plot(finite["step"], finite["value"], ms=3, lw=1.4, label=label, **series_style(index))
        not_finite.append((own.loc[~np.isfinite(own["value"]), "step"], COLOURS[index]))
        points = zip(own["step"].tolist(), own["value"].tolist(), strict=True)
        rows += [{"quantity": quantity, **sizes, "step": a, "value": b} for a, b in points]
    axes.set_xlabel("step")
    _finish_panel(axes, STEP_QUANTITIES[quantity][0])
    for steps, colour in not_finite:
        _cross_at_top(axes, steps, colour)
    return rows


@mpl.rc_context(STYLE)
def monitors_against_size(found: MonitorFindings, axis: str) -> Picture:
    """A panel a quantity: its largest value in a run at the best rate, against one size, others held.

    Points are means over seeds, bars reach from the smallest to the largest seed.
    """
    figure, panels = _panels(len(found.quantities))
    rows: Rows = []
    for axes, quantity in zip(panels, found.quantities, strict=True):
        rows += draw_against_size(axes, found, axis, quantity)
    _legend_below(figure, panels[0])
    return figure, rows


def draw_against_size(axes: Axes, found: MonitorFindings, axis: str, quantity: str) -> Rows:
    """Draw one quantity against a size into axes; returns the numbers drawn."""
    lines = found.scales_along(axis)
    rows: Rows = []
    for index, (held, line) in enumerate(lines):
        label = ", ".join(size_label(name, size) for name, size in held.items()) or "at the best rate"
        look = {**series_style(index), "ls": LINES[0], "label": label}
        rows += _draw_with_bars(axes, found, line, axis, quantity, look)
    axes.set_xscale("log")
    sizes = sorted({float(size) for _, line in lines for size in line[axis]})
    axes.set_xticks(sizes, [size_text(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(UNITS.get(axis, axis))
    _finish_panel(axes, f"largest {SUMMARY_NAMES[quantity]}")
    return rows


def _draw_with_bars(
    axes: Axes, found: MonitorFindings, line: pd.DataFrame, axis: str, quantity: str, look: Mapping[str, Any]
) -> Rows:
    rows: list[dict[str, Any]] = []
    for scale, row in line.iterrows():
        end = found.at_scale(int(str(scale)), axis, quantity)
        sizes = {name: int(row[name]) for name in found.sizes}
        value = {"quantity": quantity, "value": end.mean, "low": end.low, "high": end.high}
        few, many = end.looks or ("", "")
        looks = {"fewest_looks": few, "most_looks": many}
        rows.append({**value, **sizes, "lr": end.lr, "seeds": end.seeds, **looks})
    mean, low, high = (line[axis].map({r[axis]: r[name] for r in rows}) for name in ("value", "low", "high"))
    axes.errorbar(line[axis], mean, [mean - low, high - mean], ms=5, lw=1.2, capsize=2, **look)
    return rows


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` panels, at most three in a row."""
    across = min(3, count)
    down = math.ceil(count / across)
    figure, grid = new_figure((3.5 * across + 0.4, 2.7 * down + 0.7), down, across)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _finish_panel(axes: Axes, title: str) -> None:
    """Set the title; let the axis start at 0 unless that flattens the curve, and say so where it does not."""
    low, high = axes.get_ylim()
    if low > 0 and high > 1.5 * low:
        axes.set_ylim(bottom=0.0)
    elif low > 0:
        axes.set_ylabel("axis not from 0", fontsize=8)
    axes.set_title(title, loc="left", fontsize=9.5)


def _cross_at_top(axes: Axes, steps: pd.Series, colour: str) -> None:
    """Draw a cross at the top edge for each value that is not finite."""
    if len(steps):
        look = {"color": colour, "ms": 6, "mew": 1.6, "clip_on": False}
        axes.plot(steps, np.ones(len(steps)), "x", transform=axes.get_xaxis_transform(), **look)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8.5)
