"""The pictures that test a law: leave-one-out bars, all basins on one curve, and fewer rates per slice."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hyperp.analysis.errors import Refusal
from hyperp.analysis.law.fit import other_coefficients
from hyperp.analysis.law.hierarchy.estimate import BEND_SD, TAU_SD
from hyperp.analysis.law.identify import assess_stratum
from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.request import FitRequest
from hyperp.analysis.law.schema import Law
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.report.figures.style import (
    COLOURS,
    GREY,
    LINES,
    STYLE,
    Picture,
    add_note,
    bold_title,
    figure_for,
    new_figure,
    series_style,
    size_label,
)
from hyperp.analysis.report.text.law import curvature_growth
from hyperp.analysis.table.slices import Slice

FEWEST_RATES = 3  # of a slice, with which it can have an optimum
REFITS = 7  # at most, spread evenly


@mpl.rc_context(STYLE)
def leave_one_out_bars(law: Law, ax: Axes | None = None) -> Picture:
    """How far off each slice's rate is when the other slices predict it, in percent."""
    left = law.leave_one_out
    names = [n for n in law.ranges if len({o.covariates[n] for o in left}) > 1]
    labels = [", ".join(size_label(n, o.covariates[n]) for n in names) for o in left]
    errors = [100 * math.expm1(o.error) for o in left]
    figure, axes = figure_for(ax, (7.0, 1.2 + 0.32 * len(left)))
    colours = [COLOURS[1] if e > 0 else COLOURS[0] for e in errors]
    bars = axes.barh(range(len(left)), errors, color=colours, height=0.7)
    for bar, e in zip(bars, errors, strict=True):
        bar.set_hatch("//" if e > 0 else "")
        bar.set_edgecolor("white")
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(left)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("rate predicted by the other slices, % off the slice's own (hatched: too high)")
    bold_title(axes, "Leave one slice out")
    sizes: list[dict[str, Any]] = [{n: o.covariates[n] for n in law.ranges} for o in left]
    rows = [
        {**size, "lr": o.lr, "predicted": o.predicted, "percent": e, "loss_penalty": o.loss_penalty}
        for size, o, e in zip(sizes, left, errors, strict=True)
    ]
    return figure, rows


@mpl.rc_context(STYLE)
def basin_collapse(law: Law, ax: Axes | None = None) -> Picture:
    """Every run of the slices used: excess over its slice's floor against distance from its optimum."""
    assert law.basin is not None
    used = [s for s in law.slices if s.used]
    runs: list[dict[str, Any]] = []
    figure, axes = figure_for(ax, (7.6, 4.6))
    for index, one in enumerate(used):
        assert one.optimum is not None
        assert one.optimum.loss is not None
        label = ", ".join(size_label(n, one.covariates[n]) for n in law.ranges)
        label += " (one-sided)" if one.one_sided else ""
        u = [math.log2(p.lr / one.optimum.lr) for p in one.points]
        # Divided by the curvature law's value here, so that every slice lies on the basin of the middle.
        scale = law.basin.at(one.covariates).coef[0] / law.basin.coef[0]
        r = [100 * (p.loss / one.optimum.loss - 1) / scale for p in one.points]
        axes.plot(u, r, **{**series_style(index), "ls": ""}, ms=5, mfc="none", mew=1.2, label=label)
        runs += [
            {"kind": "run", "slice": label, "octaves": a, "percent": b} for a, b in zip(u, r, strict=True)
        ]
    reach = max(abs(run["octaves"]) for run in runs)
    x = np.linspace(-reach, reach, 121)
    y = [100 * law.basin.penalty(v * math.log(2)) for v in x]
    axes.plot(x, y, "-", color="black", lw=1.6, zorder=1, label="basin of the law")
    excess = [run["percent"] for run in runs]
    top = float(np.quantile(excess, 0.9))  # a few runs that nearly diverged must not flatten the rest
    axes.set_ylim(min(min(excess), 0) - 0.05 * top, 1.3 * top)
    axes.set_xlabel("log2 of the rate over the slice's optimum (octaves)")
    axes.set_ylabel("loss above the slice's floor, %")
    bold_title(axes, "All slices on one basin")
    if len(used) <= 20:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    if ax is None and law.basin.bend:
        add_note(figure, f"losses are divided by the curvature's growth, {curvature_growth(law.basin)}")
    basin = [{"kind": "basin", "octaves": float(a), "percent": b} for a, b in zip(x, y, strict=True)]
    return figure, [*runs, *basin]


@mpl.rc_context(STYLE)
def fewer_rates_panels(law: Law) -> Picture:
    """The exponents from only the n rates of each slice that lie nearest its best one, n from three up."""
    used = [s for s in law.slices if s.used]
    most = max(len(s.points) for s in used)
    counts = (
        np.unique(np.linspace(FEWEST_RATES, most, REFITS).round().astype(int)).tolist() if most > 2 else []
    )
    rows = [row for count in counts for row in _refit_with_fewer_rates(law, used, count)]
    figure, grid = new_figure((3.6 * len(law.covariates) + 1.2, 3.4), 1, len(law.covariates))
    for axes, name in zip(grid[0], law.covariates, strict=True):
        own = [row for row in rows if row["covariate"] == name]
        x, y, low, high = (np.array([row[k] for row in own]) for k in ("rates", "value", "low", "high"))
        axes.errorbar(x, y, [y - low, high - y], fmt="o", color=COLOURS[0], capsize=3, lw=1.2)
        e = law.exponents[name]
        axes.axhline(e.value, color=GREY, ls=LINES[1], lw=1, label="all rates and seeds")
        axes.axhspan(e.low, e.high, color=GREY, alpha=0.12, lw=0)
        axes.set_xlabel("rates per slice, the nearest to its best")
        axes.set_ylabel(f"exponent of {name.replace('_', ' ')}")
        axes.set_xticks(counts)
    grid[0, 0].legend(loc="best", fontsize=9)
    figure.suptitle("Fewer rates per slice", x=0.02, ha="left", fontweight="bold", fontsize=11)
    return figure, rows


def _nearest_rates(one: SliceRecord, count: int) -> Slice:
    """The slice with only the `count` rates nearest its best one."""
    lr, loss = (np.array([getattr(p, k) for p in one.points]) for k in ("lr", "loss"))
    distance = np.abs(np.log(lr / lr[np.argmin(loss)]))
    keep = np.sort(np.argsort(distance, kind="stable")[:count])
    seed = np.zeros(len(keep), dtype=int)
    return Slice(one.context, one.covariates, lr[keep], seed, loss[keep], {}, (), None)


def _refit_with_fewer_rates(law: Law, used: list[SliceRecord], count: int) -> list[dict[str, Any]]:
    """One row an exponent, by the law's own model; no rows where too few slices are left."""
    slices = [_nearest_rates(one, count) for one in used]
    request = request_of(law)
    try:
        found = estimate_optima(request.method, slices, request.options)
        whole = list(range(len(slices)))
        group = assess_stratum(whole, slices, found.optima, request.by, request.hierarchical)
        if group.problem is not None:
            return []
        own = other_coefficients(request, slices, found, group.usable)["lr"]
    except (ValueError, Refusal):
        return []
    return [
        {
            "rates": count,
            "slices": len(group.usable),
            "covariate": name,
            "value": e.value,
            "low": e.low,
            "high": e.high,
        }
        for name, e in own.exponents.items()
    ]


def request_of(law: Law) -> FitRequest:
    """The request that fits a law of the same kind, with the same priors, to other runs."""
    return FitRequest(
        by=tuple(law.covariates),
        fix=law.fixed,
        where={},
        method=law.method,  # pyright: ignore
        space=law.space,
        window=law.window,
        level=law.level,
        prior={name: (p.mean, p.sd) for name, p in law.priors.items()},
        tau_sd=TAU_SD if law.tau_sd is None else law.tau_sd,
        bend_sd=BEND_SD if law.bend_sd is None else law.bend_sd,
    )
