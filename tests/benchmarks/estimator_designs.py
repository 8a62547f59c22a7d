"""Which sweeps `bench_estimator.py` simulates, and which of their scores make a row of its table.

The seven GRIDS are what people run, each with a noise, a scatter and a number of seeds of its own, so that
a mixture of them covers: 3 to 9 rates, half and whole octaves, grids that all slices share or that follow
the law, a middle that is off by a quarter to one octave, a factor of 16 to 64 in tokens, noise of 0.1 to
0.5%, 1 to 3 seeds, a scatter of 0.05 to 0.2 octave, and three shapes of basin. What no line here sets is the
default of `SweepDesign`: 2% of the runs have spikes of 1 to 3%, and rates 2.2 octaves above the optimum
diverge.

A departure from the law is only seen where the law is known well. So the scenarios with a bend, a growing
curvature or an interaction have little noise and scatter, and a factor of 64 in tokens.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.oracles.sweep_simulator import PARABOLA, CubicBasin, SweepDesign

# fmt: off
GRIDS = {
    "three": SweepDesign(rates=3, spacing=1.0, tracking=True, centre_off=0.25, token_range=32,
                         noise=0.001, seeds=3, tau=0.1),
    "five": SweepDesign(rates=5, spacing=1.0, tracking=True, centre_off=0.5, token_range=16,
                        noise=0.003, seeds=1, tau=0.05),
    "seven": SweepDesign(rates=7, spacing=1.0, tracking=False, centre_off=0.5, token_range=32,
                         noise=0.003, seeds=2, tau=0.1),
    "halves": SweepDesign(rates=9, spacing=0.5, tracking=True, centre_off=1.0, token_range=64,
                          noise=0.003, seeds=3, tau=0.2),
    "noisy": SweepDesign(rates=7, spacing=1.0, tracking=False, centre_off=1.0, token_range=16,
                         noise=0.005, seeds=1, tau=0.2),
    "cubic": SweepDesign(rates=7, spacing=0.5, tracking=True, centre_off=0.5, token_range=32,
                         noise=0.002, seeds=2, tau=0.2, basin=CubicBasin()),
    "bowl": SweepDesign(rates=5, spacing=1.0, tracking=True, centre_off=0.5, token_range=16,
                        noise=0.005, seeds=2, tau=0.1, basin=PARABOLA),
}
CLEAR: dict[str, Any] = {"token_range": (64,), "noise": (0.001,), "tau": (0.05,)}
SCATTERED: dict[str, Any] = {**CLEAR, "tau": (0.1,)}
# fmt: on


@dataclass(frozen=True)
class Scenario:
    """A mixture of designs, each a cell with equally many sweeps, and how many of these a run has.

    Args:
        cells: the designs by name.
        full, quick: sweeps of each cell.
        near, far: targets, as factors beyond the largest tokens and the largest width.
        older: the methods two-stage, pool and argmin are of interest too.
    """

    cells: dict[str, SweepDesign]
    full: int
    quick: int
    near: tuple[float, float] = (8.0, 1.0)
    far: tuple[float, float] = (32.0, 1.0)
    older: bool = False


def cross(grids: Iterable[str], **choices: Iterable[Any]) -> dict[str, SweepDesign]:
    """Every grid with every combination of the values of the fields; the name of a cell says which."""
    cells = {}
    for grid, *values in itertools.product(grids, *choices.values()):
        changes = dict(zip(choices, values, strict=True))
        label = ", ".join([grid, *(f"{name} {value}" for name, value in changes.items())])
        cells[label] = replace(GRIDS[grid], **changes)
    return cells


def edge_scenario(count: int) -> Scenario:
    """Sweeps in which `count` slices end below their optimum, or, with halves of octaves, start above it.

    Among them are five slices with three edges, which leaves two optima.
    """
    edges: dict[str, Any] = {"edge_slices": (count,), "edge_place": ("largest", "any")}
    edges |= {"slices": (5, 7, 12), "noise": (0.001,), "tau": (0.1,)}
    high = cross(("five", "seven", "cubic"), **edges)
    low = cross(("halves",), edge_side=("low",), **edges)
    return Scenario({**high, **low}, full=12, quick=2)


# fmt: off
SHAPES = ("five", "seven", "halves", "cubic")
SCENARIOS = {
    "exact": Scenario(cross(GRIDS, slices=(5, 7, 12)), full=32, quick=6, older=True),
    "bend-7": Scenario(cross(SHAPES, slices=(7,), bend=(0.01, -0.01), **CLEAR), full=38, quick=8),
    "bend-12": Scenario(cross(SHAPES, slices=(12,), bend=(0.01, -0.01), **SCATTERED), full=38, quick=8),
    "strong-bend": Scenario(cross(SHAPES, slices=(7, 12), bend=(0.02, -0.02), **CLEAR), full=9, quick=0),
    "growth-0.15": Scenario(cross(SHAPES, slices=(5, 7, 12), growth=(0.15,), **CLEAR), full=12, quick=0),
    "growth-0.3": Scenario(cross(SHAPES, slices=(5, 7, 12), growth=(0.3,), **CLEAR), full=32, quick=6),
    "edges-1": edge_scenario(1),
    "edges-2": edge_scenario(2),
    "edges-3": edge_scenario(3),
    "slices": Scenario(
        cross(("five", "seven", "cubic"), slices=(3, 7, 12), seeds=(1, 3), noise=(0.001,)), full=12, quick=3
    ),
    "four": Scenario(cross(("five", "seven", "cubic"), slices=(4,), tau=(0.05, 0.1)), full=64, quick=10),
    "interaction": Scenario(
        cross(("seven", "halves", "cubic"), slices=(4,), widths=(3,), interaction=(0.02, -0.02), **CLEAR),
        full=48, quick=8, near=(8.0, 4.0), far=(32.0, 16.0),
    ),
}
# fmt: on

Measure = Literal["near", "far", "exponent", "slice", "regret", "answered"]


@dataclass(frozen=True)
class Row:
    """One row of the table: a score of a scenario, what was published for `shared`, and the goal."""

    text: str
    scenario: str
    measure: Measure
    published: str = ""
    goal: str = ""


# fmt: off
ROWS = (
    Row("8x, exact law", "exact", "near", "96%", "93 to 99%, width up to 1.35"),
    Row("32x, exact law", "exact", "far", "96%", "93 to 99%"),
    Row("8x, bend 0.01, 7 slices", "bend-7", "near", "67 to 72%", "at least 92%"),
    Row("32x, bend 0.01, 7 slices", "bend-7", "far", "46 to 58%", "at least 90%"),
    Row("8x, bend 0.01, 12 slices", "bend-12", "near", "67 to 72%", "at least 92%"),
    Row("32x, bend 0.01, 12 slices", "bend-12", "far", "46 to 58%", "at least 90%"),
    Row("8x, bend 0.02", "strong-bend", "near"),
    Row("32x, bend 0.02", "strong-bend", "far"),
    Row("exponent, exact law", "exact", "exponent"),
    Row("exponent, curvature growth 0.15", "growth-0.15", "exponent"),
    Row("exponent, curvature growth 0.3", "growth-0.3", "exponent", "83%", "at least 93%"),
    Row("8x, one edge slice", "edges-1", "near", "97 to 99%, width 1.21", "at least 93%, width up to 0.95"),
    Row("8x, two edge slices", "edges-2", "near", "97 to 99%, width 2.01", "at least 93%, width up to 0.95"),
    Row("8x, three edge slices", "edges-3", "near", "97 to 99%, width 1.57", "at least 93%, width up to 1.0"),
    Row("answered of those that shared refuses, one edge", "edges-1", "answered", "0%", "at least 90%"),
    Row("answered of those that shared refuses, two edges", "edges-2", "answered", "0%", "at least 90%"),
    Row("answered of those that shared refuses, three edges", "edges-3", "answered", "0%", "at least 90%"),
    Row("a slice's own interval", "slices", "slice", "64 to 84%", "92 to 98%"),
    Row("a slice's own interval, exact law", "exact", "slice", "", "92 to 98%"),
    Row("8x, four slices", "four", "near", "width 1.9", "at least 93%, width up to 1.3"),
    Row("regret at 8x, exact law", "exact", "regret",
        "shared 0.063, two-stage 0.089, pool 0.130, argmin 0.244%", "at most 0.060%"),
    Row("4x width and 8x tokens, interaction 0.02", "interaction", "near", "63%", "at least 92%"),
)
# fmt: on


@dataclass(frozen=True)
class Timed:
    """A table whose fit is timed, what `shared` took and the goal, in seconds."""

    text: str
    design: SweepDesign
    published: str
    goal: str
    full_only: bool = False


TIMED = (
    Timed("12 slices x 7 rates", replace(GRIDS["seven"], slices=12, seeds=1), "-", "0.1 s"),
    Timed(
        "200 slices x 30 rates",
        replace(GRIDS["seven"], slices=200, rates=30, spacing=0.25, seeds=1),
        "2.6 s",
        "1 s",
    ),
    Timed(
        "2000 slices x 25 rates x 20 seeds, a million rows",
        replace(GRIDS["seven"], slices=2000, token_range=1024, rates=25, spacing=0.5, seeds=20),
        "48 s",
        "10 s",
        full_only=True,
    ),
)
