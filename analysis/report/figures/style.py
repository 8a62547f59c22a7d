"""How every figure looks, and how it is written: PNG, SVG, and its numbers as CSV."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hyperp.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


UNITS = {
    "width": "width (d_model)",
    "depth": "depth (blocks)",
    "tokens": "training tokens",
    "batch_tokens": "batch (tokens a step)",
    "granularity": "granularity (experts a token)",
    "sparsity": "sparsity (total over active experts)",
}


STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "hyperp",
    "figure.constrained_layout.use": True,
}


Rows = list[dict[str, object]]


def save_figure(figure: Figure, rows: Rows, folder: Path, name: str) -> list[Path]:
    """Write name.png, name.svg and name.csv, each whole or not at all, and close the figure."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths[:2]:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        # The salt in STYLE makes the SVG's ids, and so the file, the same every time.
        with mpl.rc_context(STYLE), replacing(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
    plt.close(figure)
    with replacing(paths[2]) as file:
        # As objects, so that whole numbers stay whole in a column where some rows have none.
        pd.DataFrame(rows, dtype=object).to_csv(file, index=False, lineterminator="\n")
    return paths


def size_text(value: float) -> str:
    """131072 as 131k, 5.2e9 as 5.2B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:g}"


def size_label(name: str, value: float) -> str:
    """A size with its name, such as "131k tokens" or "width 64"."""
    return (
        f"{size_text(value)} tokens" if name == "tokens" else f"{name.replace('_', ' ')} {size_text(value)}"
    )


def rate_axis(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis of learning rates with two digits."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())
