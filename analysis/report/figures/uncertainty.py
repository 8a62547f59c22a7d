"""Where the width of a prediction interval comes from, against the distance from the fitted range."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from hyperp.analysis.law.schema import Law
from hyperp.analysis.report.figures.style import (
    COLOURS,
    GREY,
    LINES,
    STYLE,
    Picture,
    Rows,
    add_note,
    bold_title,
    new_figure,
)
from hyperp.analysis.report.text.recommendation import SHARE_NAMES
from hyperp.analysis.wording import format_percent

FARTHEST = 100.0  # times the fitted range
FACTORS = 41
PARTS = ("coefficients", "scatter", "shape", "bend")
HATCHES = ("", "..", "xx", "//")


@mpl.rc_context(STYLE)
def interval_sources(law: Law, target: Mapping[str, float] | None = None) -> Picture:
    """The interval's width and the parts of its variance beyond the largest size, a column per covariate.

    Args:
        law: a law with a posterior.
        target: sizes of the other covariates; their geometric means where there is none.

    Returns:
        The figure, and rows of `factor`, the size in units of the largest fitted one, `size`, the parts of
        `Law.variance_shares`, `width`, the ratio of the interval's ends, and `form_decides_beyond`.
    """
    names = law.covariates
    figure, grid = new_figure((4.4 * len(names) + 2.4, 5.0), 2, len(names), sharex="col")
    rows: Rows = []
    for index, name in enumerate(names):
        own = _rows(law, name, {**law.middle, **(target or {})})
        rows += own
        x = np.array([row["factor"] for row in own], dtype=float)
        above, below = grid[0, index], grid[1, index]
        above.plot(x, [row["width"] for row in own], color=COLOURS[0], lw=2)
        above.set_yscale("log")
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        above.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        base = np.zeros(len(x))
        for place, part in enumerate(PARTS):
            share = np.array([row[part] for row in own], dtype=float)
            look = {"facecolor": COLOURS[place], "hatch": HATCHES[place], "edgecolor": "white"}
            below.fill_between(x, base, base + share, lw=0, alpha=0.75, label=SHARE_NAMES[part], **look)
            base = base + share
        limit = own[0]["form_decides_beyond"]
        if isinstance(limit, float) and limit <= FARTHEST:
            for axes in (above, below):
                axes.axvline(limit, color="black", ls=LINES[1], lw=1.4)
            label = f"beyond {limit:.3g} times\nthe form decides"
            above.annotate(
                label,
                (limit, 0.97),
                (-4, 0),
                above.get_xaxis_transform(),
                "offset points",
                ha="right",
                va="top",
                fontsize=9,
            )
        else:
            above.set_title("the form decides nowhere here", loc="right", fontsize=9, color=GREY)
        below.set_ylim(0, 1)
        below.set_xscale("log")
        below.set_xlim(1, FARTHEST)
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        below.xaxis.set_minor_formatter(NullFormatter())
        below.set_xlabel(f"{name.replace('_', ' ')} over the largest fitted one")
    grid[0, 0].set_ylabel("high over low end")
    grid[1, 0].set_ylabel("part of the variance")
    bold_title(grid[0, 0], f"The {format_percent(law.level)} interval beyond the range")
    grid[1, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    others = "" if len(names) == 1 else "; other covariates at " + ("the target" if target else "the middle")
    add_note(figure, f"the form decides where the bend is more than half of the variance{others}")
    return figure, rows


def _rows(law: Law, name: str, sizes: Mapping[str, float]) -> Rows:
    high = law.ranges[name][1]
    limit = law.form_decides_beyond(name, {**sizes, name: high})
    rows: Rows = []
    for factor in np.geomspace(1.0, FARTHEST, FACTORS).tolist():
        at = {**sizes, name: high * factor}
        _, low, top = law.interval_at(at)
        shares = law.variance_shares(at) or {}
        rows.append(
            {
                "covariate": name,
                "factor": factor,
                "size": at[name],
                **{part: shares[part] for part in PARTS},
                "width": top / low,
                "form_decides_beyond": limit,
            }
        )
    return rows
