"""Loss against learning rate: the basins of a law's slices, and transfer along an axis."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hyperp.analysis.law.records import BasinRecord, OptimumRecord, SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.transfer import Transfer
from hyperp.analysis.report.figures.style import (
    GREY,
    STYLE,
    Picture,
    Rows,
    add_note,
    bold_title,
    figure_for,
    new_figure,
    rate_axis,
    series_style,
    size_label,
)
from hyperp.analysis.wording import format_percent

ONE_BASIN = ("hierarchical", "shared")  # the methods that fit one basin to all slices of a context


@mpl.rc_context(STYLE)
def basin_curves(law: Law, ax: Axes | None = None) -> Picture:
    """Loss against learning rate, a curve for each slice of the law's context, the excluded ones hollow.

    Drawn into `ax`, or into a new figure, with a note below it, if that is None.
    """
    shown = [s for s in law.slices if s.context == law.context and s.points]
    sizes = list(shown[0].covariates) if shown else []
    basin = law.basin if law.method in ONE_BASIN else None
    shown.sort(key=lambda s: (not s.used, *(s.covariates[n] for n in (*law.covariates, *sizes))))
    names = [n for n in sizes if len({s.covariates[n] for s in shown}) > 1]
    figure, axes = figure_for(ax, (7.6, 4.6))
    rows: Rows = []
    for index, one in enumerate(shown):
        keep = [n for n in names if n in law.ranges or one.covariates[n] != law.held[n]]
        label = ", ".join(size_label(n, one.covariates[n]) for n in keep)
        if not one.used or one.one_sided:
            label += " (one-sided)" if one.used else " (excluded)"
        rows += _draw_slice(axes, one, index, label, not one.used, basin)
    _log_rates(axes)
    axes.set_ylabel(law.context["metric"] or "loss")
    bold_title(axes, f"{law.context['optimizer'] or 'all runs'}: basins and their optima")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    if ax is None:
        fitted = (
            "the parabola over its window" if basin is None else "the slice under the basin that all share"
        )
        others = " and ".join(name.replace("_", " ") for name in law.over[1:])
        note = f"star: optimum of {fitted}; bar: its {format_percent(law.level)} interval"
        if others and basin is not None:
            note += f"; curve: along the rate, with {others} at the optimum"
        if any(one.one_sided for one in shown):
            note += "\none-sided: the rates end at the best one, so the interval has one end and no bar"
        add_note(figure, note)
    return figure, rows


@mpl.rc_context(STYLE)
def transfer_panels(slices: Sequence[SliceRecord], answers: Sequence[Transfer]) -> Picture:
    """Loss against learning rate at each value of an axis, one panel a context, the drift under its title."""
    figure, grid = new_figure((4.1 * len(answers) + 0.6, 4.2), 1, len(answers))
    rows: Rows = []
    for axes, answer in zip(grid[0], answers, strict=True):
        rows += draw_transfer(axes, slices, answer)
    grid[0, 0].set_ylabel(answers[0].context["metric"] or "loss")
    return figure, rows


def draw_transfer(axes: Axes, slices: Sequence[SliceRecord], answer: Transfer) -> Rows:
    """Draw one context's transfer into axes; returns the numbers drawn."""
    rows: Rows = []
    for index, point in enumerate(answer.points):
        scale = {**answer.held, answer.axis: point.value}
        one = next(s for s in slices if s.context == answer.context and s.covariates == scale)
        label = size_label(answer.axis, point.value)
        basin = answer.basin if answer.basin is None else answer.basin.at(scale)
        drawn = _draw_slice(axes, one, index, label, hollow=point.lr is None, basin=basin)
        rows += [{"optimizer": answer.context["optimizer"], **row} for row in drawn]
        if point.lr is not None:
            look = series_style(index)
            axes.axvline(point.lr, color=look["color"], ls=look["ls"], lw=0.8, alpha=0.5)
    _log_rates(axes, "peak learning rate")
    d = answer.drift
    drift = str(answer.problem)
    if d is not None:
        drift = f"{d.octaves_per_doubling:+.2f} octaves per doubling of {answer.axis.replace('_', ' ')}"
        if d.low is not None and d.high is not None:
            drift += f"\n{format_percent(answer.level)} interval {d.low:+.2f} to {d.high:+.2f}"
    bold_title(axes, f"{answer.context['optimizer']}, {answer.context['parametrization']}", pad=34)
    axes.text(0.0, 1.02, drift, transform=axes.transAxes, fontsize=9, va="bottom")
    # Below the axes, where no line runs through it.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(len(answer.points), 3), fontsize=9)
    return rows


def _log_rates(axes: Axes, label: str = "peak learning rate of hidden matrices") -> None:
    axes.set_xscale("log", base=2)
    rate_axis(axes.xaxis)
    axes.set_xlabel(label)


def _draw_slice(
    axes: Axes,
    one: SliceRecord,
    index: int,
    label: str,
    hollow: bool = False,
    basin: BasinRecord | None = None,
) -> Rows:
    """Draw points, and unless `hollow` the fitted curve with the optimum and its interval."""
    look = series_style(index)
    colour = GREY if hollow else look["color"]
    lr, loss = [p.lr for p in one.points], [p.loss for p in one.points]
    base = {"slice": label, "used": one.used, "state": one.state}
    rows: Rows = [{"kind": "point", **base, "lr": p.lr, "loss": p.loss, "seeds": p.seeds} for p in one.points]
    face = "none" if hollow else colour
    if not any(p.also for p in one.points):  # runs that differ in more than the rate are on no one line
        axes.plot(
            lr, loss, ":" if hollow else "-", color=colour, lw=0.8, alpha=0.6 if hollow else 0.3, zorder=1
        )
    axes.plot(lr, loss, look["marker"], color=colour, mfc=face, ms=5.5, mew=1.2, zorder=3, label=label)
    if hollow or one.optimum is None or one.optimum.loss is None:
        return rows
    here = None if basin is None else basin.at(one.covariates)
    return rows + _draw_optimum(axes, one.optimum, colour, look["ls"], base, here)


def _draw_optimum(
    axes: Axes,
    best: OptimumRecord,
    colour: str,
    line: Any,
    base: dict[str, object],
    basin: BasinRecord | None,
) -> Rows:
    """Draw the fitted curve, the basin's or else a parabola, and the optimum as a star on its interval."""
    assert best.loss is not None
    near = [*best.window_rates, best.lr, *((best.lr / 2, best.lr * 2) if basin else ())]
    x = np.geomspace(min(near) / 2**0.4, max(near) * 2**0.4, 81)
    if basin is not None:
        y = best.loss * (1 + np.array([basin.penalty(float(v)) for v in np.log(x / best.lr)]))
    elif best.curvature is not None:
        y = best.loss + best.curvature * np.log2(x / best.lr) ** 2
    else:
        x = y = np.array([])
    axes.plot(x, y, ls=line, color=colour, lw=1.6, zorder=2)
    if best.low is not None and best.high is not None:
        axes.plot([best.low, best.high], [best.loss] * 2, "-", color=colour, lw=3.5, alpha=0.35, zorder=2)
    axes.plot([best.lr], [best.loss], "*", color=colour, ms=13, mec="white", mew=0.8, zorder=4)
    ends = {"low": best.low, "high": best.high, "seeds": best.seeds}
    optimum: Rows = [{"kind": "optimum", **base, "lr": best.lr, "loss": best.loss, **ends}]
    return optimum + [
        {"kind": "fit", **base, "lr": float(a), "loss": float(b)} for a, b in zip(x, y, strict=True)
    ]
