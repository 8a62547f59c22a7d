"""The pictures of a law: basins, optimum against a covariate, transfer; each as PNG, SVG and CSV.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every series has its own marker and
line style as well, so that grey print tells them apart too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from hyperp.analysis.law.schema import BasinRecord, Law, OptimumRecord, SliceRecord
from hyperp.analysis.queries.transfer import Transfer
from hyperp.analysis.report.figures.style import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    STYLE,
    UNITS,
    Rows,
    named,
    size_text,
)
from hyperp.analysis.vocabulary import CENSORED, PUBLISHED_EXPONENTS

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


def _rate_axis(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())


def _log_rates(axes: Axes, label: str = "peak learning rate of hidden matrices") -> None:
    axes.set_xscale("log", base=2)
    _rate_axis(axes.xaxis)
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


def basins(law: Law) -> tuple[Figure, Rows]:
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
            label = ", ".join(named(n, one.covariates[n]) for n in keep) + ("" if one.used else " (excluded)")
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


def optimum_against(
    law: Law, covariate: str, target: Mapping[str, float] | None = None
) -> tuple[Figure, Rows]:
    """The slices' optima against one covariate, the fit with its prediction band, and the published slope.

    Other covariates of the law are moved to their geometric mean, along the fitted exponents.
    """
    used = [s for s in law.slices if s.used]
    middle = {n: math.exp(np.mean([math.log(s.covariates[n]) for s in used])) for n in law.ranges}
    exponents = {**{n: e.value for n, e in law.exponents.items()}, **law.fixed}
    low, high = law.ranges[covariate]
    reach = high * 4.0 if target is None else max(high * 2.0, target[covariate] * 1.4)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.0, 4.4))
        rows = _draw_optima(axes, used, covariate, middle, exponents)
        rows += _draw_censored(axes, law, covariate, middle, exponents)
        rows += _draw_law(axes, law, covariate, middle, (low / 1.5, reach))
        rows += _draw_published(axes, law, covariate, middle, (low / 1.5, reach))
        if target is not None:
            rows += _draw_target(axes, law, covariate, {**middle, covariate: target[covariate]})
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        _rate_axis(axes.yaxis)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(UNITS.get(covariate, covariate))
        axes.set_ylabel("optimal learning rate of hidden matrices")
        axes.set_title(
            f"{law.context['optimizer']}: optimum against {covariate.replace('_', ' ')}",
            loc="left",
            fontweight="bold",
        )
        axes.legend(loc="best", fontsize=9)
    return figure, rows


def _draw_optima(
    axes: Axes,
    used: Sequence[SliceRecord],
    covariate: str,
    middle: Mapping[str, float],
    exponents: Mapping[str, float],
) -> Rows:
    rows: Rows = []
    for index, one in enumerate(used):
        assert one.optimum is not None
        others = [(n, b) for n, b in exponents.items() if n != covariate]
        shift = math.prod((middle[n] / one.covariates[n]) ** b for n, b in others)
        x, y = one.covariates[covariate], one.optimum.lr * shift
        low, high = (None if end is None else end * shift for end in (one.optimum.low, one.optimum.high))
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], "-", color="black", lw=1.2, zorder=3)
        label = "optimum of a slice, with its interval" if index == 0 else None
        axes.plot([x], [y], "o", color="black", ms=6, zorder=4, label=label)
        rows.append({"kind": "slice", covariate: x, "lr": y, "low": low, "high": high})
    return rows


def _draw_censored(
    axes: Axes, law: Law, covariate: str, middle: Mapping[str, float], exponents: Mapping[str, float]
) -> Rows:
    """Slices of the law whose best rate is their last: hollow arrowheads at that rate, where it continues."""
    rows: Rows = []
    for one in law.slices:
        same = all(one.covariates.get(n) == v for n, v in law.held.items()) and one.context == law.context
        if not same or one.state not in CENSORED or not one.points:
            continue
        low = one.state == "edge_low"
        others = [(n, b) for n, b in exponents.items() if n != covariate]
        shift = math.prod((middle[n] / one.covariates[n]) ** b for n, b in others)
        rate = (min if low else max)(p.lr for p in one.points) * shift
        label = "optimum beyond the slice's rates" if not rows else None
        marker = "v" if low else "^"
        axes.plot(
            [one.covariates[covariate]], [rate], marker, color="black", mfc="none", ms=7, mew=1.2, label=label
        )
        rows.append({"kind": one.state, covariate: one.covariates[covariate], "lr": rate})
    return rows


def _draw_law(
    axes: Axes, law: Law, covariate: str, middle: Mapping[str, float], ends: tuple[float, float]
) -> Rows:
    low, high = law.ranges[covariate]
    x = np.unique(np.concatenate([np.geomspace(*ends, 121), [low, high]]))
    curve = np.array([law.interval_at({**middle, covariate: float(value)}) for value in x])
    inside = (x >= low) & (x <= high)
    band = f"{100 * law.level:g}% prediction interval"
    blue = COLOURS[0]
    for part, alpha in ((inside, 0.2), (x <= low, 0.1), (x >= high, 0.1)):
        name = band if alpha == 0.2 else None
        axes.fill_between(x[part], curve[part, 1], curve[part, 2], color=blue, alpha=alpha, lw=0, label=name)
    for edge in (1, 2):
        axes.plot(x, curve[:, edge], color=blue, lw=0.7, alpha=0.6)
    e = law.exponents.get(covariate)
    exponent = (
        f"{law.fixed[covariate]:.2f}, fixed" if e is None else f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})"
    )
    axes.plot(x[inside], curve[inside, 0], "-", color=blue, lw=2, label=f"fit, exponent {exponent}")
    for part in (x <= low, x >= high):
        axes.plot(x[part], curve[part, 0], "--", color=blue, lw=1.6)
    axes.plot([], [], "--", color=blue, lw=1.6, label="extrapolated (paler band)")
    return [
        {"kind": "fit", covariate: float(v), "lr": float(c[0]), "low": float(c[1]), "high": float(c[2])}
        for v, c in zip(x, curve, strict=True)
    ]


def _draw_published(
    axes: Axes, law: Law, covariate: str, middle: Mapping[str, float], ends: tuple[float, float]
) -> Rows:
    rows: Rows = []
    rate = law.interval_at(middle)[0]
    for published in PUBLISHED_EXPONENTS.get(covariate, ())[:1]:
        x = np.array(ends)
        y = rate * (x / middle[covariate]) ** published.exponent
        label = f"published slope {published.exponent:g} ({published.source})"
        axes.plot(x, y, ":", color=COLOURS[1], lw=1.8, label=label)
        rows += [
            {"kind": "published", covariate: float(a), "lr": float(b)} for a, b in zip(x, y, strict=True)
        ]
    return rows


def _draw_target(axes: Axes, law: Law, covariate: str, where: Mapping[str, float]) -> Rows:
    rate, low, high = law.interval_at(where)
    x = where[covariate]
    axes.errorbar(
        [x], [rate], [[rate - low], [high - rate]], fmt="none", ecolor=COLOURS[0], capsize=4, lw=1.6
    )
    label = f"recommended: {rate:.3g} ({low:.3g} to {high:.3g})"
    axes.plot([x], [rate], "*", color=COLOURS[0], ms=15, mec="white", zorder=5, label=label)
    return [{"kind": "recommended", covariate: x, "lr": rate, "low": low, "high": high}]


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
        label = named(answer.axis, point.value)
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
