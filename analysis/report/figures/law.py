"""The law against one covariate: its optima, fit, prediction band and the published slope."""

import math
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hyperp.analysis.law.records import SliceRecord
from hyperp.analysis.law.schema import Law
from hyperp.analysis.report.figures.style import (
    COLOURS,
    STYLE,
    UNITS,
    Picture,
    Rows,
    bold_title,
    figure_for,
    rate_axis,
    size_text,
)
from hyperp.analysis.vocabulary import CENSORED, PUBLISHED_EXPONENTS


def plot_optimum(
    law: Law, covariate: str, target: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw `optimum_against` for a notebook, into `ax` or into new axes of pyplot's; returns the axes.

    Raises:
        ValueError: the law has no such covariate.
    """
    if ax is None:
        import matplotlib.pyplot as plt  # chooses the backend if nothing has yet, so only on request

        ax = plt.subplots(figsize=(7.0, 4.4), layout="constrained")[1]
    optimum_against(law, covariate, target, ax)
    return ax


@mpl.rc_context(STYLE)
def optimum_against(
    law: Law, covariate: str, target: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Picture:
    """The slices' optima against one covariate, the fit with its prediction band, and the published slope.

    Other covariates of the law are moved to their geometric mean, along the fitted exponents.

    Args:
        law: a fitted law.
        covariate: the horizontal axis, one of `law.ranges`.
        target: sizes whose predicted rate is marked; the curve reaches beyond them.
        ax: axes to draw into; a new figure if None.

    Raises:
        ValueError: the law has no such covariate.
    """
    if covariate not in law.ranges:
        raise ValueError(f"covariate must be one of {', '.join(law.ranges)}, got {covariate}")
    used = [s for s in law.slices if s.used]
    middle = {n: math.exp(np.mean([math.log(s.covariates[n]) for s in used])) for n in law.ranges}
    low, high = law.ranges[covariate]
    ends = low / 1.5, high * 4.0 if target is None else max(high * 2.0, target[covariate] * 1.4)
    figure, axes = figure_for(ax, (7.0, 4.4))
    rows = _draw_optima(axes, law, covariate, middle)
    rows += _draw_censored(axes, law, covariate, middle)
    rows += _draw_law(axes, law, covariate, middle, ends)
    rows += _draw_published(axes, law, covariate, middle, ends)
    if target is not None:
        rows += _draw_target(axes, law, covariate, {**middle, covariate: target[covariate]})
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    rate_axis(axes.yaxis)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(UNITS.get(covariate, covariate))
    axes.set_ylabel("optimal learning rate of hidden matrices")
    bold_title(axes, f"{law.context['optimizer']}: optimum against {covariate.replace('_', ' ')}")
    axes.legend(loc="best", fontsize=9)
    return figure, rows


def _move_factor(law: Law, one: SliceRecord, covariate: str, middle: Mapping[str, float]) -> float:
    """What a slice's rate is multiplied by to move its other covariates to the middle, along the law."""
    own = {name: one.covariates[name] for name in law.ranges}
    if len(own) == 1:
        return 1.0
    return law.interval_at({**middle, covariate: own[covariate]})[0] / law.interval_at(own)[0]


def _draw_optima(axes: Axes, law: Law, covariate: str, middle: Mapping[str, float]) -> Rows:
    """The slices used: points with their intervals, and an arrow where only one end is known."""
    rows: Rows = []
    said: set[str] = set()
    for one in law.slices:
        if not one.used:
            continue
        assert one.optimum is not None
        factor = _move_factor(law, one, covariate, middle)
        x, y = one.covariates[covariate], one.optimum.lr * factor
        low, high = (None if end is None else end * factor for end in (one.optimum.low, one.optimum.high))
        if one.one_sided and (low is None) != (high is None):
            label = "one-sided slice, from the end of its interval that is known"
            _draw_arrow(axes, x, low, high, None if label in said else label)
        else:
            label = "optimum of a slice, with its interval"
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], "-", color="black", lw=1.2, zorder=3)
            axes.plot([x], [y], "o", color="black", ms=6, zorder=4, label=None if label in said else label)
        said.add(label)
        kind = "one-sided" if one.one_sided else "slice"
        rows.append({"kind": kind, covariate: x, "lr": y, "low": low, "high": high, "state": one.state})
    return rows


def _draw_arrow(axes: Axes, x: float, low: float | None, high: float | None, label: str | None) -> None:
    """A bar at the known end of a one-sided interval, and an arrow half an octave long into it."""
    assert low is not None or high is not None
    end, tip = (high, high / 2**0.5) if high is not None else (float(low or 0), float(low or 0) * 2**0.5)
    look = {"arrowstyle": "-|>", "color": "black", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x, tip), (x, end), arrowprops=look, zorder=4)
    axes.plot([x], [end], "_", color="black", ms=9, mew=1.6, zorder=4, label=label)
    axes.update_datalim([(x, tip)])


def _draw_censored(axes: Axes, law: Law, covariate: str, middle: Mapping[str, float]) -> Rows:
    """Excluded slices with the optimum beyond their rates: hollow arrowheads at the last rate."""
    rows: Rows = []
    for one in law.slices:
        same = all(one.covariates.get(n) == v for n, v in law.held.items()) and one.context == law.context
        if one.used or not same or one.state not in CENSORED or not one.points:
            continue
        if any(one.covariates[name] == 0 for name in law.ranges):
            continue
        low = one.state == "edge_low"
        x = one.covariates[covariate]
        rate = (min if low else max)(p.lr for p in one.points) * _move_factor(law, one, covariate, middle)
        label = None if rows else "excluded: optimum beyond the slice's rates"
        axes.plot([x], [rate], "v" if low else "^", color="black", mfc="none", ms=7, mew=1.2, label=label)
        rows.append({"kind": one.state, covariate: x, "lr": rate})
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
