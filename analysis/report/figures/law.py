"""The law against one covariate: its optima, fit, prediction band and the published slope."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hyperp.analysis.law.schema import Law, SliceRecord
from hyperp.analysis.report.figures.style import COLOURS, STYLE, UNITS, Rows, rate_axis, size_text
from hyperp.analysis.vocabulary import CENSORED, PUBLISHED_EXPONENTS


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
        rate_axis(axes.yaxis)
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
