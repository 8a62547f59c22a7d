"""Loss against learning rate: the basins of a law's slices, and transfer along an axis.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every series has its own marker and
line style as well, so that it can be told apart in grey print too.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperp.analysis.law.schema import BasinRecord, Law, OptimumRecord, SliceRecord
from hyperp.analysis.queries.transfer import Transfer
from hyperp.analysis.report.figures.style import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    STYLE,
    Rows,
    rate_axis,
    size_label,
)


def _log_rates(axes: Axes, label: str = "peak learning rate of hidden matrices") -> None:
    axes.set_xscale("log", base=2)
    rate_axis(axes.xaxis)
    axes.set_xlabel(label)


def _draw_curve(
    axes: Axes,
    one: SliceRecord,
    index: int,
    label: str,
    hollow: bool = False,
    basin: BasinRecord | None = None,
) -> Rows:
    """Points, parabola over its window, and the optimum with its interval; hollow ones are points alone."""
    colour = GREY if hollow else COLOURS[index % len(COLOURS)]
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]  # past seven series, another pairing
    lr, loss = [p.lr for p in one.points], [p.loss for p in one.points]
    base = {"slice": label, "used": one.used, "state": one.state}
    rows: Rows = [{"kind": "point", **base, "lr": p.lr, "loss": p.loss, "seeds": p.seeds} for p in one.points]
    face = "none" if hollow else colour
    axes.plot(lr, loss, ":" if hollow else "-", color=colour, lw=0.8, alpha=0.6 if hollow else 0.3, zorder=1)
    axes.plot(lr, loss, marker, color=colour, mfc=face, ms=5.5, mew=1.2, zorder=3, label=label)
    if hollow or one.optimum is None or one.optimum.loss is None:
        return rows
    here = None if basin is None else basin.at(one.covariates)
    rows += _draw_optimum(axes, one.optimum, colour, LINES[index % len(LINES)], base, here)
    return rows


def _draw_optimum(
    axes: Axes,
    best: OptimumRecord,
    colour: str,
    line: Any,
    base: dict[str, object],
    basin: BasinRecord | None,
) -> Rows:
    assert best.loss is not None
    near = [*best.window_rates, best.lr, *((best.lr / 2, best.lr * 2) if basin else ())]
    ends = min(near) / 2**0.4, max(near) * 2**0.4
    x = np.geomspace(*ends, 81)
    bend = best.curvature
    if basin is not None:
        y = best.loss * (1 + np.array([basin.penalty(float(v)) for v in np.log(x / best.lr)]))
    else:
        y = np.array([]) if bend is None else best.loss + bend * np.log2(x / best.lr) ** 2
    x = x[: len(y)]
    axes.plot(x, y, ls=line, color=colour, lw=1.6, zorder=2)
    if best.low is not None and best.high is not None:
        axes.plot([best.low, best.high], [best.loss] * 2, "-", color=colour, lw=3.5, alpha=0.35, zorder=2)
    axes.plot([best.lr], [best.loss], "*", color=colour, ms=13, mec="white", mew=0.8, zorder=4)
    optimum = {
        "kind": "optimum",
        **base,
        "lr": best.lr,
        "loss": best.loss,
        "low": best.low,
        "high": best.high,
    }
    fit = [{"kind": "fit", **base, "lr": float(a), "loss": float(b)} for a, b in zip(x, y, strict=True)]
    return [{**optimum, "seeds": best.seeds}, *fit]


def basin_curves(law: Law) -> tuple[Figure, Rows]:
    """Loss against learning rate, a curve for each slice of the law's context, the excluded ones hollow."""
    shown = [s for s in law.slices if s.context == law.context and s.points]
    sizes = list(shown[0].covariates) if shown else []
    basin = law.basin if law.method == "shared" else None
    shown.sort(key=lambda s: (not s.used, *(s.covariates[n] for n in (*law.covariates, *sizes))))
    names = [n for n in sizes if len({s.covariates[n] for s in shown}) > 1]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.6, 4.6))
        rows: Rows = []
        for index, one in enumerate(shown):
            keep = [n for n in names if n in law.ranges or one.covariates[n] != law.held[n]]
            label = ", ".join(size_label(n, one.covariates[n]) for n in keep) + (
                "" if one.used else " (excluded)"
            )
            rows += _draw_curve(axes, one, index, label, not one.used, basin)
        _log_rates(axes)
        axes.set_ylabel(law.context["metric"] or "loss")
        axes.set_title(
            f"{law.context['optimizer'] or 'all runs'}: basins and their optima",
            loc="left",
            fontweight="bold",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        fitted = "the shared basin" if law.method == "shared" else "the parabola over its window"
        note = f"star: optimum of {fitted}; bar: its {100 * law.level:g}% interval"
        figure.supxlabel(note, fontsize=8.5, color="#444444", x=0.01, ha="left")
    return figure, rows


def transfer_panels(slices: Sequence[SliceRecord], answers: Sequence[Transfer]) -> tuple[Figure, Rows]:
    """Loss against learning rate at each value of an axis, one panel a context, the drift under its title."""
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(answers), figsize=(4.1 * len(answers) + 0.6, 4.2), squeeze=False)
        rows: Rows = []
        for axes, answer in zip(grid[0], answers, strict=True):
            rows += _transfer_panel(axes, slices, answer)
        grid[0][0].set_ylabel(answers[0].context["metric"] or "loss")
    return figure, rows


def _transfer_panel(axes: Axes, slices: Sequence[SliceRecord], answer: Transfer) -> Rows:
    rows: Rows = []
    for index, point in enumerate(answer.points):
        scale = {**answer.held, answer.axis: point.value}
        one = next(s for s in slices if s.context == answer.context and s.covariates == scale)
        label = size_label(answer.axis, point.value)
        drawn = _draw_curve(axes, one, index, label, hollow=one.optimum is None)
        rows += [{"optimizer": answer.context["optimizer"], **row} for row in drawn]
        if point.lr is not None:
            axes.axvline(
                point.lr, color=COLOURS[index % len(COLOURS)], ls=LINES[index % len(LINES)], lw=0.8, alpha=0.5
            )
    _log_rates(axes, "peak learning rate")
    d = answer.drift
    drift = str(answer.problem)
    if d is not None:
        drift = f"{d.octaves_per_doubling:+.2f} octaves per doubling of {answer.axis.replace('_', ' ')}"
        drift += "" if d.low is None or d.high is None else f"\n95% interval {d.low:+.2f} to {d.high:+.2f}"
    axes.set_title(
        f"{answer.context['optimizer']}, {answer.context['parametrization']}",
        loc="left",
        fontweight="bold",
        pad=34,
    )
    axes.text(0.0, 1.02, drift, transform=axes.transAxes, fontsize=9, va="bottom")
    # Below the axes, where no line runs through it.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(len(answer.points), 3), fontsize=9)
    return rows
