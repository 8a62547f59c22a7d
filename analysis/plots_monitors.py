"""The pictures of the stability monitors: against steps, and against a size."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperp.analysis.monitors import STEPPED, SUMMARIES, Monitors
from hyperp.analysis.plots import COLOURS, LINES, MARKERS, STYLE, UNITS, Rows, named, size_text

MOST = len(COLOURS)  # scales in one picture


def against_steps(found: Monitors) -> tuple[Figure, Rows]:
    """A panel a quantity, a line for the best run of each scale; of many scales an even choice."""
    there = set(found.steps["quantity"])
    quantities = [name for name in STEPPED if name in there]
    scales = list(found.scales.sort_values(list(found.sizes)).index)
    if len(scales) > MOST:
        scales = [scales[round(i * (len(scales) - 1) / (MOST - 1))] for i in range(MOST)]
    vary = [name for name in found.sizes if found.scales[name].nunique() > 1]
    rows: Rows = []
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(quantities))
        for axes, quantity in zip(panels, quantities, strict=True):
            for index, scale in enumerate(scales):
                size = found.scales.loc[scale]
                label = ", ".join(named(name, size[name]) for name in vary) or "the only scale"
                own = found.steps[(found.steps["scale"] == scale) & (found.steps["quantity"] == quantity)]
                axes.plot(
                    own["step"], own["value"], ls=LINES[index], color=COLOURS[index], lw=1.4, label=label
                )
                points = zip(own["step"].tolist(), own["value"].tolist(), strict=True)
                sizes = {name: int(size[name]) for name in found.sizes}
                rows += [{"quantity": quantity, **sizes, "step": a, "value": b} for a, b in points]
            axes.set_title(STEPPED[quantity][0], loc="left", fontsize=9.5)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=_floor(axes))
        _legend(figure, panels[0])
    return figure, rows


def against_size(found: Monitors, axis: str) -> tuple[Figure, Rows]:
    """A panel a quantity: its largest value in a run at the best rate, against one size, others held."""
    lines = found.lines(axis)
    rows: Rows = []
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(found.quantities))
        for axes, quantity in zip(panels, found.quantities, strict=True):
            for index, (held, line) in enumerate(lines):
                label = ", ".join(named(name, size) for name, size in held.items()) or "at the best rate"
                colour, marker = COLOURS[index % MOST], MARKERS[(index + index // MOST) % len(MARKERS)]
                axes.plot(
                    line[axis], line[quantity], marker + LINES[0], color=colour, ms=5, lw=1.2, label=label
                )
                for _, row in line.iterrows():
                    own = {name: int(row[name]) for name in found.sizes}
                    value = {"quantity": quantity, "value": row[quantity]}
                    rows.append({**value, **own, "lr": row["lr"], "seeds": int(row["seeds"])})
            axes.set_xscale("log")
            sizes = sorted({float(size) for _, line in lines for size in line[axis]})
            axes.set_xticks(sizes, [size_text(size) for size in sizes])
            axes.minorticks_off()
            axes.set_title(f"largest {SUMMARIES[quantity]}", loc="left", fontsize=9.5)
            axes.set_xlabel(UNITS.get(axis, axis))
            axes.set_ylim(bottom=_floor(axes))
        _legend(figure, panels[0])
    return figure, rows


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    across = min(3, count)
    down = math.ceil(count / across)
    figure, grid = plt.subplots(down, across, figsize=(3.5 * across + 0.4, 2.7 * down + 0.7), squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _floor(axes: Axes) -> float | None:
    """Zero, so that growth looks as large as it is, unless that flattens the curve to a line."""
    low, high = axes.get_ylim()
    return 0.0 if low > 0 and high > 1.5 * low else None


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8.5)
