"""How every figure looks, and how it is written: PNG, SVG, and its numbers as CSV.

Figures are made without pyplot, so that drawing leaves the user's matplotlib backend as it is. Colours are
Okabe and Ito's, which colour-blind readers can tell apart; every series has its own marker and line style as
well, so that it can be told apart in grey print too.
"""

from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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
Picture = tuple[Figure, Rows]  # a figure and the numbers that it shows


def new_figure(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, an array (rows, columns); `options` are `Figure.subplots`'s."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def figure_for(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """`ax` and the figure it is in; if None, the axes of a new figure of `size` inches."""
    if ax is not None:
        return cast(Figure, ax.figure), ax
    figure, grid = new_figure(size)
    return figure, grid[0, 0]


def make_folder(folder: Path) -> None:
    """Make a folder for figures, if it is not there.

    Raises:
        ValueError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} must be a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)


def save_figure(figure: Figure, rows: Rows, folder: Path, name: str) -> list[Path]:
    """Write name.png, name.svg and name.csv, each whole or not at all; returns their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths[:2]:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        # The salt in STYLE makes the SVG's ids, and so the file, the same every time.
        with mpl.rc_context(STYLE), replacing(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)
    write_rows(rows, paths[2])
    return paths


def write_rows(rows: Rows, path: Path) -> None:
    """Write rows as CSV; whole numbers stay whole in a column where some rows have none."""
    with replacing(path) as file:
        pd.DataFrame(rows, dtype=object).to_csv(file, index=False, lineterminator="\n")


def series_style(index: int) -> dict[str, Any]:
    """Colour, line style and marker of a series; past seven series they pair up anew."""
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "ls": LINES[index % len(LINES)], "marker": marker}


def bold_title(axes: Axes, text: str, **options: Any) -> None:
    """Set a bold title, left-aligned."""
    axes.set_title(text, loc="left", fontweight="bold", **options)


def add_note(figure: Figure, text: str, size: float = 8.5) -> None:
    """Write a grey note below a figure."""
    figure.supxlabel(text, fontsize=size, color="#444444", x=0.01, ha="left")


def rate_axis(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis of learning rates with two digits."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())


def size_text(value: float) -> str:
    """Shorten a size: 131072 is 131k, 5.2e9 is 5.2B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:g}"


def size_label(name: str, value: float) -> str:
    """A size with its name, such as "131k tokens" or "width 64"."""
    return (
        f"{size_text(value)} tokens" if name == "tokens" else f"{name.replace('_', ' ')} {size_text(value)}"
    )
