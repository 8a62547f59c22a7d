"""The pictures of the stability monitors: against steps, and against a size."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperp.analysis.diagnostics.monitors import STEP_QUANTITIES, SUMMARY_NAMES, MonitorFindings
from hyperp.analysis.report.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    UNITS,
    Rows,
    size_label,
    size_text,
)

MOST = len(COLOURS)  # scales in one picture


def scales_to_draw(found: MonitorFindings) -> list[int]:
    """The scales whose runs are drawn against steps; of many an even choice, ends included."""
    scales = [int(scale) for scale in found.scales.sort_values(list(found.sizes)).index]
    if len(scales) <= MOST:
        return scales
    return [scales[round(i * (len(scales) - 1) / (MOST - 1))] for i in range(MOST)]


def monitors_against_steps(found: MonitorFindings) -> tuple[Figure, Rows]:
    """A panel a quantity, a line for the best run of each scale, a marker for each logged value."""
    there = set(found.steps["quantity"])
    quantities = [name for name in STEP_QUANTITIES if name in there]
    vary = [name for name in found.sizes if found.scales[name].nunique() > 1]
    rows: Rows = []
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(quantities))
        for axes, quantity in zip(panels, quantities, strict=True):
            spoiled = []
            for index, scale in enumerate(scales_to_draw(found)):
                sizes = {name: int(str(found.scales.at[scale, name])) for name in found.sizes}
                label = ", ".join(size_label(name, sizes[name]) for name in vary) or "the only scale"
                own = found.steps[(found.steps["scale"] == scale) & (found.steps["quantity"] == quantity)]
                finite = own[np.isfinite(own["value"])]
                look = {"color": COLOURS[index], "ls": LINES[index], "marker": MARKERS[index]}
                axes.plot(finite["step"], finite["value"], ms=3, lw=1.4, label=label, **look)
                spoiled.append((own.loc[~np.isfinite(own["value"]), "step"], COLOURS[index]))
                points = zip(own["step"].tolist(), own["value"].tolist(), strict=True)
                rows += [{"quantity": quantity, **sizes, "step": a, "value": b} for a, b in points]
            axes.set_xlabel("step")
            _finish(axes, STEP_QUANTITIES[quantity][0])
            for steps, colour in spoiled:
                _at_the_top(axes, steps, colour)
        _legend(figure, panels[0])
    return figure, rows


def monitors_against_size(found: MonitorFindings, axis: str) -> tuple[Figure, Rows]:
    """A panel a quantity: its largest value in a run at the best rate, against one size, others held.

    Points are means over seeds, bars reach from the smallest to the largest seed.
    """
    lines = found.scales_along(axis)
    rows: Rows = []
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(found.quantities))
        for axes, quantity in zip(panels, found.quantities, strict=True):
            for index, (held, line) in enumerate(lines):
                label = ", ".join(size_label(name, size) for name, size in held.items()) or "at the best rate"
                marker = MARKERS[(index + index // MOST) % len(MARKERS)]
                look = {"color": COLOURS[index % MOST], "marker": marker, "ls": LINES[0], "label": label}
                rows += _with_bars(axes, found, line, axis, quantity, look)
            axes.set_xscale("log")
            sizes = sorted({float(size) for _, line in lines for size in line[axis]})
            axes.set_xticks(sizes, [size_text(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel(UNITS.get(axis, axis))
            _finish(axes, f"largest {SUMMARY_NAMES[quantity]}")
        _legend(figure, panels[0])
    return figure, rows


def _with_bars(
    axes: Axes, found: MonitorFindings, line: pd.DataFrame, axis: str, quantity: str, look: dict[str, Any]
) -> Rows:
    rows: Rows = []
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
    across = min(3, count)
    down = math.ceil(count / across)
    figure, grid = plt.subplots(down, across, figsize=(3.5 * across + 0.4, 2.7 * down + 0.7), squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _finish(axes: Axes, title: str) -> None:
    """From zero, so that growth looks as large as it is, unless that flattens the curve; then say so."""
    low, high = axes.get_ylim()
    if low > 0 and high > 1.5 * low:
        axes.set_ylim(bottom=0.0)
    elif low > 0:
        axes.set_ylabel("axis not from 0", fontsize=8)
    axes.set_title(title, loc="left", fontsize=9.5)


def _at_the_top(axes: Axes, steps: pd.Series, colour: str) -> None:
    """A cross for each value that is nowhere on the axis."""
    if len(steps):
        look = {"color": colour, "ms": 6, "mew": 1.6, "clip_on": False}
        axes.plot(steps, np.ones(len(steps)), "x", transform=axes.get_xaxis_transform(), **look)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8.5)
