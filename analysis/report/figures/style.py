"""How every figure looks, and how it is written: PNG, SVG, and its numbers as CSV."""

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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
    """Write name.png, name.svg and name.csv, each under a temporary name first."""
    paths = []
    for suffix in ("png", "svg"):
        path = folder / f"{name}.{suffix}"
        temporary = folder / f".{name}.{suffix}.tmp"
        with mpl.rc_context(STYLE):  # the salt makes the SVG's ids, and so the file, the same every time
            figure.savefig(temporary, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
        temporary.replace(path)
        paths.append(path)
    plt.close(figure)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    temporary = folder / f".{name}.csv.tmp"
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(folder / f"{name}.csv")
    return [*paths, folder / f"{name}.csv"]


def size_text(value: float) -> str:
    """131072 as 131k, 5.2e9 as 5.2B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:g}"


def named(name: str, value: float) -> str:
    """A size with its name, such as "131k tokens" or "width 64"."""
    return (
        f"{size_text(value)} tokens" if name == "tokens" else f"{name.replace('_', ' ')} {size_text(value)}"
    )
