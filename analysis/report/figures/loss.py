"""The pictures of a loss law: the law with its band, residuals, profile of the floor, leverage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hyperp.analysis.loss.allocation import lowest_loss
from hyperp.analysis.loss.bootstrap import Draws, floor_interval, loss_band, percentiles
from hyperp.analysis.loss.fit import FloorProfile, LossFit, predict_loss
from hyperp.analysis.loss.leverage import FittedSeries, Leverage
from hyperp.analysis.report.figures.style import (
    COLOURS,
    LINES,
    STYLE,
    Picture,
    Rows,
    add_note,
    bold_title,
    figure_for,
    make_folder,
    new_figure,
    save_figure,
    series_style,
    size_text,
)
from hyperp.analysis.wording import format_percent

DRAWN_REACH = 10.0  # a law is drawn up to this many times the measured range
LOSS_UNITS = {"flops": "training compute (FLOPs)", "parameters": "parameters", "tokens": "training tokens"}
BLUE, RED = COLOURS[0], COLOURS[1]


def write_loss_figures(
    fit: LossFit, draws: Draws | None, profiles: Sequence[FloorProfile], folder: Path
) -> list[Path]:
    """Write loss-law, loss-residuals and loss-profile to a folder, made if it is not there."""
    make_folder(folder)
    power = fit.points.form == "power"
    pictures = {
        "loss-law": law_against_compute(fit, draws) if power else compute_frontier(fit, draws),
        "loss-residuals": residual_panels(fit),
        "loss-profile": floor_profiles(fit, profiles, draws),
    }
    return [p for name, (figure, rows) in pictures.items() for p in save_figure(figure, rows, folder, name)]


def write_leverage_figure(answer: Leverage, series: list[FittedSeries], folder: Path) -> list[Path]:
    """Write leverage to a folder, made if it is not there."""
    make_folder(folder)
    return save_figure(*leverage_panels(answer, series), folder, "leverage")


def _title_prefix(fit: LossFit) -> str:
    return f"{fit.points.context['optimizer']}: " if "optimizer" in fit.points.context else ""


def _compute_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(LOSS_UNITS["flops"])


def _drawn_places(low: float, high: float) -> np.ndarray:
    """Where a law is drawn: over its range, whose ends are among the places, and beyond."""
    return np.unique([*np.geomspace(low / 1.5, high * DRAWN_REACH, 161), low, high])


def _gaps_at_jumps(values: np.ndarray) -> np.ndarray:
    """The values with a gap where they jump from one basin to another."""
    jump = np.abs(np.diff(np.log(values))) > np.log(1.5)
    return np.where(np.r_[jump, False], np.nan, values)


@mpl.rc_context(STYLE)
def law_against_compute(fit: LossFit, draws: Draws | None, ax: Axes | None = None) -> Picture:
    """L(C) with its points, its band, its floor, and a paler band beyond the range that was measured."""
    figure, axes = figure_for(ax, (7.0, 4.4))
    rows: Rows = []
    floors, (logs,) = fit.layout.floors(fit.z_P[None])[0], fit.layout.log_terms(fit.z_P[None])
    b = float(fit.z_P[-1])
    for index, own in _points_of_sets(fit):
        measured = fit.points.x_Kn[0, own]
        x = _drawn_places(measured.min(), measured.max())
        y = predict_loss(fit, fit.z_P[None], x[None], index)[0]
        low, high = (None, None) if draws is None else loss_band(fit, draws, x[None], index)
        a = float(np.exp(logs[0, index] + b * np.log(fit.centre_K[0])))
        label = f"{_set_label(fit, index)}L = {floors[index]:.3g} + {a:.3g} $C^{{-{b:.3g}}}$"
        ends = (measured.min(), measured.max())
        band = _band_name(draws) if index == 0 else None
        rows += _draw_curve(axes, (x, y, low, high), ends, index, label, band)
        label = "best rate of a compute" if index == 0 else None
        axes.plot(
            measured, fit.points.loss_n[own], _marker(fit, index), **_points_look(fit, index), label=label
        )
    rows += _finish_compute_axes(axes, fit, fit.points.x_Kn[0], "loss against compute")
    return figure, rows


def _points_of_sets(fit: LossFit) -> list[tuple[int, np.ndarray]]:
    """The index of every data set, and which points are of it (n,)."""
    return [(s, fit.points.set_n == s) for s in range(fit.layout.sets)]


def _set_label(fit: LossFit, index: int) -> str:
    return "" if fit.points.by_data is None else f"{fit.points.sets[index]}: "


def _marker(fit: LossFit, index: int) -> str:
    return "o" if fit.points.by_data is None else series_style(index)["marker"]


def _points_look(fit: LossFit, index: int) -> dict[str, Any]:
    colour = "black" if fit.points.by_data is None else series_style(index)["color"]
    return {"color": colour, "ms": 5, "zorder": 4}


def _band_name(draws: Draws | None) -> str | None:
    return None if draws is None else f"{format_percent(draws.level)} interval of the law"


def _finish_compute_axes(axes: Axes, fit: LossFit, flops_n: np.ndarray, title: str) -> Rows:
    """Set the axes, title and legend; returns the rows of the points."""
    _compute_axis(axes)
    axes.set_ylabel(fit.points.metric)
    bold_title(axes, f"{_title_prefix(fit)}{title}")
    axes.legend(loc="upper right", fontsize=9)
    return [
        {"kind": "point", **data, "flops": float(flops), "loss": float(loss)}
        for data, flops, loss in zip(_data_cells(fit), flops_n, fit.points.loss_n, strict=True)
    ]


def _data_cells(fit: LossFit) -> list[dict[str, object]]:
    """The data set of every point, for a row of a table; nothing where the law has one."""
    return [{} if fit.points.by_data is None else {"data": fit.points.sets[s]} for s in fit.points.set_n]


def _draw_curve(
    axes: Axes, curve, ends: tuple[float, float], index: int, label: str, band_name: str | None
) -> Rows:
    """A line over its band, dotted where extrapolated; curve is (x, y, low, high), the band None or not."""
    x, y, low, high = curve
    look = series_style(index)
    colour, line = look["color"], look["ls"]
    inside = (x >= ends[0]) & (x <= ends[1])
    if low is not None:
        axes.fill_between(
            x[inside], low[inside], high[inside], color=colour, alpha=0.25, lw=0, label=band_name
        )
        for part in (x <= ends[0], x >= ends[1]):
            axes.fill_between(x[part], low[part], high[part], color=colour, alpha=0.1, lw=0)
    axes.plot(x[inside], y[inside], ls=line, color=colour, lw=2, label=label)
    for part in (x <= ends[0], x >= ends[1]):
        axes.plot(x[part], y[part], ls=":", color=colour, lw=1.5)
    bands = (
        [{}] * len(x)
        if low is None
        else [{"low": float(a), "high": float(b)} for a, b in zip(low, high, strict=True)]
    )
    return [
        {"kind": "law", "series": label, "flops": float(c), "loss": float(v), **ends}
        for c, v, ends in zip(x, y, bands, strict=True)
    ]


@mpl.rc_context(STYLE)
def compute_frontier(fit: LossFit, draws: Draws | None, ax: Axes | None = None) -> Picture:
    """Every point at its compute 6 N D, and the lowest loss that the law allows there, with its band."""
    c = 6 * fit.points.x_Kn.prod(axis=0)
    figure, axes = figure_for(ax, (7.0, 4.4))
    rows: Rows = []
    for index, own in _points_of_sets(fit):
        x = _drawn_places(c[own].min(), c[own].max())
        y = lowest_loss(fit, fit.z_P[None], x, index)[0]
        low = high = None
        if draws is not None:
            low, high = percentiles(lowest_loss(fit, draws.z_RP, x, index), draws.level)
        look = {} if fit.points.by_data is None else {"color": series_style(index)["color"]}
        name = "runs" if index == 0 else None
        axes.plot(
            c[own],
            fit.points.loss_n[own],
            _marker(fit, index),
            **{"color": "#666666", "ms": 3.5, "alpha": 0.6, "mew": 0, **look},
            label=name,
        )
        band = _band_name(draws) if index == 0 else None
        ends, label = (c[own].min(), c[own].max()), f"{_set_label(fit, index)}law, best N and D"
        rows += _draw_curve(axes, (x, y, low, high), ends, index, label, band)
    rows += _finish_compute_axes(axes, fit, c, "lowest loss at each compute")
    axes.set_xlabel("training compute 6 N D (FLOPs)")
    return figure, rows


@mpl.rc_context(STYLE)
def residual_panels(fit: LossFit) -> Picture:
    """Residual of every point in % of the loss, against each covariate, with Huber's threshold."""
    names = ("flops",) if fit.points.form == "power" else ("parameters", "tokens")
    columns = dict(zip(names, fit.points.x_Kn, strict=True))
    percent = 100 * np.expm1(fit.residual_n)
    figure, grid = new_figure((7.0 if len(names) == 1 else 8.6, 3.9), 1, len(names), sharey=True)
    for axes, (name, x) in zip(grid[0], columns.items(), strict=True):
        draw_residuals(axes, fit, name, x)
    grid[0, 0].set_ylabel("loss above the law (%)")
    bold_title(grid[0, 0], f"{_title_prefix(fit)}residuals of the loss law")
    threshold = f"grey: within Huber's threshold of {100 * fit.delta:g}%"
    runs = "" if fit.points.runs is None else f"; {len(percent)} points of {fit.points.runs} runs"
    add_note(figure, f"{threshold}; standard deviation {100 * fit.scatter:.2g}%{runs}")
    cells = _data_cells(fit)
    return figure, [
        {
            **cells[i],
            **{name: float(x[i]) for name, x in columns.items()},
            "loss": float(fit.points.loss_n[i]),
            "residual_percent": float(percent[i]),
        }
        for i in range(len(percent))
    ]


def draw_residuals(axes: Axes, fit: LossFit, name: str, x_n: np.ndarray) -> None:
    """Draw the residuals in % of the loss against one covariate into axes."""
    axes.axhspan(-100 * fit.delta, 100 * fit.delta, color="#bbbbbb", alpha=0.6, lw=0)
    axes.axhline(0, color="black", lw=1)
    percent = 100 * np.expm1(fit.residual_n)
    for index, own in _points_of_sets(fit):
        look = {"color": series_style(index)["color"], "ms": 4.5, "alpha": 0.75, "mec": "white", "mew": 0.4}
        label = None if fit.points.by_data is None else fit.points.sets[index]
        axes.plot(x_n[own], percent[own], _marker(fit, index), **look, label=label)
    if fit.points.by_data is not None:
        axes.legend(loc="best", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel(LOSS_UNITS[name])
    if name != "flops":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))


@mpl.rc_context(STYLE)
def floor_profiles(fit: LossFit, profiles: Sequence[FloorProfile], draws: Draws | None) -> Picture:
    """Above, the objective with the floor held at each value; below, what that floor makes of the rest.

    A column for each data set.
    """
    size = (7.0 if len(profiles) == 1 else 5.6 * len(profiles), 6.0)
    figure, grid = new_figure(size, 2, len(profiles), sharex="col", height_ratios=(3, 2))
    notes, rows = ["star: the law"], []
    for (top, bottom), profile in zip(grid.T, profiles, strict=True):
        name = fit.names[profile.data_set]
        draw_floor_objective(top, fit, profile)
        draw_held_floor(bottom, fit, profile)
        if profile.data_set in fit.held:
            notes.append(f"{name} pinned")
        elif draws is not None:
            low, high = floor_interval(draws, profile.data_set)
            for axes in (top, bottom):
                axes.axvspan(low, high, color="#999999", alpha=0.3, lw=0)
            interval = f"{format_percent(draws.level)} bootstrap interval"
            notes.append(f"grey: {interval} of {name}, {low:.4g} to {high:.4g}")
        rows += _profile_rows(fit, profile)
    add_note(figure, "; ".join(notes))
    return figure, rows


def _profile_rows(fit: LossFit, profile: FloorProfile) -> Rows:
    exponents = _exponents(fit, profile)
    ratio = profile.objective_F / _least_objective(profile)
    data = {} if fit.points.by_data is None else {"data": fit.points.sets[profile.data_set]}
    return [
        {
            **data,
            "E": float(floor),
            "objective": float(profile.objective_F[i]),
            "ratio": float(ratio[i]),
            **{name: float(exponent[i]) for name, exponent in exponents.items()},
            "loss_at_10x": float(profile.extrapolated_F[i]),
        }
        for i, floor in enumerate(profile.floor_F)
    ]


def draw_floor_objective(axes: Axes, fit: LossFit, profile: FloorProfile) -> None:
    """Draw the objective over the least one, with the floor held at each value, into axes."""
    least = _least_objective(profile)
    ratio = profile.objective_F / least
    axes.plot(profile.floor_F, ratio, "-", color=BLUE, lw=2)
    axes.plot(
        [fit.z_P[profile.data_set]], [fit.objective / least], "*", color=RED, ms=14, mec="white", zorder=4
    )
    axes.set_ylim(1 - 0.04 * (min(ratio.max(), 4) - 1), min(ratio.max() * 1.02, 4))
    axes.set_ylabel("objective / least objective")
    bold_title(axes, f"{_title_prefix(fit)}profile of the floor {fit.names[profile.data_set]}")


def draw_held_floor(axes: Axes, fit: LossFit, profile: FloorProfile) -> None:
    """Draw the exponents and the extrapolated loss, with the floor held at each value, into axes."""
    exponents = _exponents(fit, profile)
    for k, (name, values) in enumerate(exponents.items()):
        look = {"ls": LINES[k], "color": COLOURS[k], "lw": 1.8}
        axes.plot(profile.floor_F, _gaps_at_jumps(values), label=f"exponent {name}", **look)
    other = axes.twinx()
    look = {"ls": LINES[3], "color": "black", "lw": 1.8, "label": "loss (right axis)"}
    other.plot(profile.floor_F, profile.extrapolated_F, **look)
    other.set_ylabel("loss at 10 times\nthe largest compute")
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    axes.set_ylabel("exponent")
    axes.set_ylim(0, 1.25 * min(max(float(values.max()) for values in exponents.values()), 1.2))
    axes.set_xlabel(f"floor E held ({fit.points.metric})")
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="upper left", fontsize=9)


def _least_objective(profile: FloorProfile) -> float:
    return max(float(profile.objective_F.min()), 1e-30)


def _exponents(fit: LossFit, profile: FloorProfile) -> dict[str, np.ndarray]:
    """The fitted exponents by name, each (F,), one value for each floor of the profile."""
    return dict(zip(fit.exponent_names, fit.layout.exponents(profile.z_FP).T, strict=True))


@mpl.rc_context(STYLE)
def leverage_panels(answer: Leverage, series: list[FittedSeries]) -> Picture:
    """Left, every curve with its points; right, the leverage over the baseline with its band."""
    figure, grid = new_figure((10.4, 4.4), 1, 2, gridspec_kw={"wspace": 0.06})
    left, right = grid[0]
    rows = draw_loss_curves(left, answer, series)
    rows += draw_leverage(right, answer)
    add_note(
        figure, f"bands: {100 * answer.level:g}% intervals; leverage only at losses that both curves reached"
    )
    return figure, rows


def draw_loss_curves(axes: Axes, answer: Leverage, series: list[FittedSeries]) -> Rows:
    """Draw every series' law and points into axes; returns the numbers drawn."""
    rows = [row for index, one in enumerate(series) for row in _leverage_curve(axes, one, index)]
    _compute_axis(axes)
    axes.set_ylabel(answer.metric)
    bold_title(axes, "loss against compute")
    axes.legend(loc="upper right", fontsize=9)
    return rows


def draw_leverage(axes: Axes, answer: Leverage) -> Rows:
    """Draw each series' leverage over the baseline into axes; returns the numbers drawn."""
    rows: Rows = []
    axes.axhline(1, color="black", lw=1.2)
    for index, found in enumerate(answer.comparisons, start=1):
        if found.rows:
            rows += _leverage_band(axes, found.other.name, found.rows, index)
    place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    axes.text(0.99, 1, f" {answer.baseline.name} ", fontsize=9, **place)
    _compute_axis(axes)
    axes.set_xlabel(f"training compute of {answer.baseline.name} (FLOPs)")
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_ylabel("compute-efficiency leverage")
    bold_title(axes, f"leverage over {answer.baseline.name}")
    axes.legend(loc="best", fontsize=9)
    return rows


def _leverage_curve(axes: Axes, one: FittedSeries, index: int) -> Rows:
    x = np.geomspace(one.flops[0], one.flops[1], 121)
    y = predict_loss(one.fit, one.fit.z_P[None], x[None])[0]
    rows = _draw_curve(
        axes, (x, y, *loss_band(one.fit, one.draws, x[None])), one.flops, index, one.name, None
    )
    measured, losses = one.fit.points.x_Kn[0], one.fit.points.loss_n
    axes.plot(measured, losses, **{**series_style(index), "ls": ""}, ms=6, mec="white", mew=0.6, zorder=4)
    return rows + [
        {"kind": "point", "series": one.name, "flops": float(c), "loss": float(v)}
        for c, v in zip(measured, losses, strict=True)
    ]


def _leverage_band(axes: Axes, name: str, found, index: int) -> Rows:
    look = series_style(index)
    bounded = [r for r in found if r.low is not None and r.high is not None]
    low, high = [r.low for r in bounded], [r.high for r in bounded]
    axes.fill_between([r.baseline_flops for r in bounded], low, high, color=look["color"], alpha=0.22, lw=0)
    x, y = [r.baseline_flops for r in found], [r.leverage for r in found]
    axes.plot(x, y, **look, markevery=6, lw=2, label=name)
    return [{"kind": "leverage", "series": name, **r.model_dump()} for r in found]
