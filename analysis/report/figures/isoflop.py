"""The picture of compute-optimal sizes: every profile with its best size, and the law through them."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.loss.allocation import best_parameters
from hyperp.analysis.loss.bootstrap import Draws, percentiles
from hyperp.analysis.loss.fit import LossFit
from hyperp.analysis.loss.profiles import BUDGET
from hyperp.analysis.queries.isoflop import ComputeOptimal
from hyperp.analysis.report.figures.style import (
    COLOURS,
    GREY,
    STYLE,
    Picture,
    Rows,
    add_note,
    bold_title,
    make_folder,
    new_figure,
    save_figure,
    size_text,
)
from hyperp.analysis.wording import format_percent

BUDGET_COLOURS = mpl.colormaps["cividis"]  # dark to light also in grey print


def write_isoflop_figure(
    found: ComputeOptimal, law: Law, surface: LossFit | None, draws: Draws | None, folder: Path
) -> list[Path]:
    """Write isoflop to a folder, made if it is not there."""
    make_folder(folder)
    return save_figure(*isoflop_panels(found, law, surface, draws), folder, "isoflop")


@mpl.rc_context(STYLE)
def isoflop_panels(found: ComputeOptimal, law: Law, surface: LossFit | None, draws: Draws | None) -> Picture:
    """Left, loss against size at every budget; right, the best size against the budget with its law."""
    figure, grid = new_figure((11.0, 4.6), 1, 2)
    left, right = grid[0]
    budgets = [one.budget for one in found.profiles]
    norm = LogNorm(min(budgets), max(budgets) * 1.3)  # the lightest colours vanish on white
    rows = draw_profiles(left, law, norm)
    figure.colorbar(ScalarMappable(norm, BUDGET_COLOURS), ax=left, label="budget (FLOPs)", pad=0.01)
    left.set_ylabel(found.context.get("metric", "loss"))
    rows += draw_best_sizes(right, found, law, norm)
    rows += draw_surface(right, found, surface, draws)
    right.legend(loc="upper left", fontsize=9)
    level = format_percent(found.level)
    add_note(
        figure,
        f"star: best size of a profile; bars: its {level} interval; bands: {level} prediction interval of "
        f"one more profile, and {level} interval of the surface; hollow: profile without a best size",
    )
    return figure, rows


def draw_profiles(axes: Axes, law: Law, norm: LogNorm) -> Rows:
    """Draw the loss against the number of parameters at every budget into axes; returns the numbers drawn."""
    rows = [row for one in law.slices for row in _draw_profile(axes, one, law, norm)]
    _size_axis(axes.set_xscale, axes.xaxis)
    axes.set_xlabel("parameters N")
    bold_title(axes, "loss at equal compute")
    return rows


def _draw_profile(axes: Axes, one: SliceRecord, law: Law, norm: LogNorm) -> Rows:
    budget = float(one.covariates[BUDGET])
    colour = GREY if one.optimum is None else BUDGET_COLOURS(norm(budget))
    sizes, losses = [p.lr for p in one.points], [p.loss for p in one.points]
    face = "none" if one.optimum is None else colour
    axes.plot(sizes, losses, "o", color=colour, mfc=face, ms=4, mew=1)
    rows: Rows = [
        {"kind": "point", BUDGET: budget, "parameters": n, "loss": loss}
        for n, loss in zip(sizes, losses, strict=True)
    ]
    best = one.optimum
    if best is None or best.loss is None:
        return rows
    if law.basin is not None:
        near = [n for n in sizes if best.lr / 8 <= n <= best.lr * 8] or [best.lr]
        x = np.geomspace(min(near), max(near), 61)
        basin = law.basin.at(one.covariates)
        y = best.loss * (1 + np.array([basin.penalty(float(v)) for v in np.log(x / best.lr)]))
        axes.plot(x, y, "-", color=colour, lw=1.3)
        rows += [
            {"kind": "fit", BUDGET: budget, "parameters": float(n), "loss": float(v)}
            for n, v in zip(x, y, strict=True)
        ]
    axes.plot([best.lr], [best.loss], "*", color=colour, ms=12, mec="black", mew=0.6, zorder=4)
    ends = {"low": best.low, "high": best.high}
    return [*rows, {"kind": "optimum", BUDGET: budget, "parameters": best.lr, **ends, "loss": best.loss}]


def draw_best_sizes(axes: Axes, found: ComputeOptimal, law: Law, norm: LogNorm) -> Rows:
    """Draw the best size of every profile, the law and its prediction band into axes."""
    x = _drawn_budgets(found)
    centre, low, high = np.array([law.interval_at({BUDGET: c}) for c in x]).T
    b = found.by_profiles.exponent.value
    inside = (x >= found.budgets[0]) & (x <= found.budgets[1])
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    axes.plot(x, centre, ":", color=COLOURS[0], lw=1.5)
    axes.plot(x[inside], centre[inside], "-", color=COLOURS[0], lw=2, label=f"profiles, $C^{{{b:.3g}}}$")
    for one in found.profiles:
        if one.parameters is None:
            continue
        colour = BUDGET_COLOURS(norm(one.budget))
        if one.low is not None and one.high is not None:
            axes.plot([one.budget] * 2, [one.low, one.high], "-", color=colour, lw=2)
        face = colour if one.used else "none"
        axes.plot([one.budget], [one.parameters], "*", color=colour, mfc=face, ms=11, mec="black", mew=0.6)
    target = found.by_profiles.parameters
    if target.low is not None and target.high is not None:
        axes.plot([found.budget] * 2, [target.low, target.high], "-", color="black", lw=2)
    name = f"N* = {size_text(target.value)}"
    axes.plot([found.budget], [target.value], "D", color="black", ms=7, zorder=5, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("compute budget C (FLOPs)")
    _size_axis(axes.set_yscale, axes.yaxis)
    axes.set_ylabel("best size N*")
    bold_title(axes, "best size against compute")
    rows: Rows = [
        {"kind": "law", BUDGET: float(c), "parameters": float(n), "low": float(a), "high": float(z)}
        for c, n, a, z in zip(x, centre, low, high, strict=True)
    ]
    return [*rows, {"kind": "target", BUDGET: found.budget, "parameters": target.value, **_ends(target)}]


def draw_surface(axes: Axes, found: ComputeOptimal, surface: LossFit | None, draws: Draws | None) -> Rows:
    """Draw N* by the loss surface, with its band, into axes."""
    if surface is None or found.by_surface is None:
        return []
    x = _drawn_budgets(found)
    centre = best_parameters(surface, surface.z_P[None], x)[0]
    label = f"loss surface, $C^{{{found.by_surface.exponent.value:.3g}}}$"
    axes.plot(x, centre, "--", color=COLOURS[1], lw=1.8, label=label)
    rows: Rows = [
        {"kind": "surface", BUDGET: float(c), "parameters": float(n)} for c, n in zip(x, centre, strict=True)
    ]
    if draws is None:
        return rows
    low, high = percentiles(best_parameters(surface, draws.z_RP, x), draws.level)
    axes.fill_between(x, low, high, color=COLOURS[1], alpha=0.2, lw=0)
    return [{**row, "low": float(a), "high": float(b)} for row, a, b in zip(rows, low, high, strict=True)]


def _ends(one) -> dict[str, float | None]:
    return {"low": one.low, "high": one.high}


def _drawn_budgets(found: ComputeOptimal) -> np.ndarray:
    ends = (*found.budgets, found.budget)
    return np.unique([*np.geomspace(min(ends) / 1.5, max(ends) * 1.5, 81), *found.budgets])


def _size_axis(set_scale, axis) -> None:
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    axis.set_minor_formatter(NullFormatter())
