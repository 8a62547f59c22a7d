"""Simulated learning-rate sweeps with a known law, written without a look at the estimator that they judge.

A sweep is a few sizes (slices), a grid of rates at each and a few seeds. Its optima follow a power law with a
scatter, and perhaps a bend or an interaction; its basins are no shape that the estimator fits. Rates too far
above the optimum diverge, a few runs have a spike, and the runs of one seed share a part of their noise.
Octaves are factors of two in the rate; e-folds are natural logs of a size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

# K: slices   R: rates in a slice   S: seeds

MIDDLE_RATE = 0.01  # the law's rate where every size is at its geometric mean
SMALLEST_TOKENS, SMALLEST_WIDTH = 2**24, 128
FLOOR, REDUCIBLE, LOSS_EXPONENT = 2.0, 1.5, 0.15  # loss at the optimum: FLOOR + REDUCIBLE tokens_ratio^-0.15

Array = np.ndarray
Sizes = Mapping[str, float | Array]


@dataclass(frozen=True)
class SkewedBasin:
    """A (e^(a x) - 1) + B (e^(-b x) - 1) with A a = B b, so that the bottom is at x = 0 octaves.

    Args:
        above: a, an octave: how fast the loss climbs above the optimum.
        below: b, an octave: how fast it flattens below.
        depth: relative excess loss one octave above the optimum.
    """

    above: float = 0.9
    below: float = 0.25
    depth: float = 0.005

    def excess(self, octaves: Array) -> Array:
        """Relative excess loss that many octaves above the optimum."""
        ratio = self.above / self.below

        def shape(x: Array) -> Array:
            return np.expm1(self.above * x) + ratio * np.expm1(-self.below * x)

        return self.depth * shape(np.asarray(octaves, dtype=float)) / shape(np.array(1.0))


@dataclass(frozen=True)
class CubicBasin:
    """square x^2 + cube x^3; a straight line takes over where a cubic would turn concave.

    The line starts at the inflection with the slope there, so the loss rises outwards on both sides.
    """

    square: float = 0.004
    cube: float = 0.0008

    def excess(self, octaves: Array) -> Array:
        """Relative excess loss that many octaves above the optimum."""
        x = np.asarray(octaves, dtype=float)
        if self.cube == 0:
            return self.square * x**2
        turn = -self.square / (3 * self.cube)
        slope = 2 * self.square * turn + 3 * self.cube * turn**2
        near = np.maximum(x, turn) if self.cube > 0 else np.minimum(x, turn)
        return self.square * near**2 + self.cube * near**3 + slope * (x - near)


PARABOLA = CubicBasin(0.005, 0.0)
Basin = SkewedBasin | CubicBasin


@dataclass(frozen=True)
class SweepDesign:
    """All that defines a family of sweeps; `simulate_sweep` draws one of them.

    Args:
        slices: how many numbers of tokens.
        token_range: the largest over the smallest of them; they are evenly spaced in log.
        widths: how many widths, each with every number of tokens; 1 leaves the width out of the table.
        width_range: the largest over the smallest width.
        rates: how many rates a slice has.
        spacing: octaves between two of them.
        tracking: every slice has its own grid, moved by whole spacings to follow the law.
        centre_off: the middle of the grid is off the law by up to so many octaves, drawn evenly.
        exponent, width_exponent: of the law, at the geometric mean of the sizes.
        bend: the law's ln rate has this times the square of the centred ln tokens added.
        interaction: the same, times the product of the centred ln tokens and ln width.
        tau: standard deviation of the slices' optima about the law, in octaves.
        basin: the shape of the excess loss about an optimum.
        growth: the excess is multiplied by (tokens/geometric mean)^growth.
        noise: standard deviation of one run's loss relative to the loss.
        seed_share: the part of the noise's variance that all rates of one slice and seed have in common.
        seeds: how many runs at each rate of a slice.
        spike_share: the part of the runs whose loss has a spike.
        spikes: smallest and largest spike, relative to the loss.
        wall: runs more than so many octaves above their slice's optimum diverge.
        blown_up_share: the part of the diverged runs that are marked as finished all the same.
        blown_up: smallest and largest loss of these, relative to the loss at the optimum.
        edge_slices: how many slices have a grid that is moved by whole spacings until it ends less than one
            spacing short of the optimum.
        edge_place: which slices these are.
        edge_side: "high" if their optima lie above the last rate, "low" if below the first.
    """

    slices: int = 7
    token_range: float = 32.0
    widths: int = 1
    width_range: float = 4.0
    rates: int = 7
    spacing: float = 1.0
    tracking: bool = False
    centre_off: float = 0.5
    exponent: float = -0.4
    width_exponent: float = -0.2
    bend: float = 0.0
    interaction: float = 0.0
    tau: float = 0.1
    basin: Basin = SkewedBasin()
    growth: float = 0.0
    noise: float = 0.002
    seed_share: float = 0.5
    seeds: int = 2
    spike_share: float = 0.02
    spikes: tuple[float, float] = (0.01, 0.03)
    wall: float = 2.2
    blown_up_share: float = 0.25
    blown_up: tuple[float, float] = (1.3, 3.0)
    edge_slices: int = 0
    edge_place: Literal["largest", "smallest", "any"] = "largest"
    edge_side: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        for name in ("slices", "widths", "rates", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.edge_slices <= self.slices * self.widths:
            raise ValueError(f"edge_slices must be among the slices, got {self.edge_slices}")

    @property
    def by(self) -> str:
        """The covariates of the law, as `fit_law` takes them."""
        return "tokens" if self.widths == 1 else "width,tokens"

    def sizes(self) -> dict[str, Array]:
        """The sizes of every slice, arrays (K,) of whole numbers."""
        tokens = np.rint(np.geomspace(SMALLEST_TOKENS, SMALLEST_TOKENS * self.token_range, self.slices))
        if self.widths == 1:
            return {"tokens": tokens.astype(int)}
        width = np.rint(np.geomspace(SMALLEST_WIDTH, SMALLEST_WIDTH * self.width_range, self.widths))
        pairs = np.array([(w, t) for w in width for t in tokens]).astype(int)
        return {"width": pairs[:, 0], "tokens": pairs[:, 1]}

    def target(self, tokens: float, width: float = 1.0) -> dict[str, float]:
        """A target so many times beyond the largest tokens, and beyond the largest width where it varies."""
        factors = {"tokens": tokens, "width": width}
        return {name: factors[name] * float(values.max()) for name, values in self.sizes().items()}


@dataclass(frozen=True)
class SweepTruth:
    """What one simulated sweep was drawn from.

    Attributes:
        design: its family.
        sizes: of every slice, arrays (K,).
        optima: rates (K,), each slice's own with its scatter.
        fresh: the scatter of a slice that was not run, in octaves, at every target alike.
    """

    design: SweepDesign
    sizes: dict[str, Array]
    optima: Array
    fresh: float

    @property
    def exponents(self) -> dict[str, float]:
        """The law's exponents, at the geometric mean of the sizes where it bends."""
        both = {"tokens": self.design.exponent, "width": self.design.width_exponent}
        return {name: both[name] for name in self.sizes}

    def law_rate(self, sizes: Sizes) -> Array:
        """The best rate at these sizes by the true law, without scatter."""
        return MIDDLE_RATE * 2.0 ** _law_octaves(self.design, sizes)

    def target_rate(self, sizes: Sizes) -> Array:
        """The best rate of one more slice at these sizes: the law and this sweep's fresh draw."""
        return self.law_rate(sizes) * 2.0**self.fresh

    def slice_rate(self, sizes: Mapping[str, float]) -> float:
        """The best rate of the slice of the sweep that has these sizes."""
        same = np.all([self.sizes[name] == sizes[name] for name in self.sizes], axis=0)
        return float(self.optima[same].item())

    def excess(self, lr: float | Array, optimum: float | Array, sizes: Sizes) -> Array:
        """Relative excess loss of a rate where `optimum` is the best one; the wall is not in it."""
        octaves = np.log2(np.asarray(lr) / optimum)
        return self.design.basin.excess(octaves) * _depth_factor(self.design, sizes)


def simulate_sweep(design: SweepDesign, seed: int | Sequence[int]) -> tuple[pd.DataFrame, SweepTruth]:
    """One sweep of a family, the same for the same seed.

    Returns:
        The table of its runs with the columns tokens (and width, where it varies), lr, seed, loss and status,
        and what it was drawn from.
    """
    rng = np.random.default_rng(seed)
    sizes = design.sizes()
    law = _law_octaves(design, sizes)
    K, R, S = len(law), design.rates, design.seeds
    optima = law + design.tau * rng.standard_normal(K)
    fresh = design.tau * float(rng.standard_normal())
    grid = _grid(design, law, optima, rng)  # (K, R) octaves about MIDDLE_RATE

    above = grid - optima[:, None]
    excess = design.basin.excess(above) * _depth_factor(design, sizes)[:, None]
    lowest = FLOOR + REDUCIBLE * (sizes["tokens"] / SMALLEST_TOKENS) ** -LOSS_EXPONENT
    common = design.noise * math.sqrt(design.seed_share) * rng.standard_normal((K, 1, S))
    own = design.noise * math.sqrt(1 - design.seed_share) * rng.standard_normal((K, R, S))
    spike = rng.uniform(*design.spikes, (K, R, S)) * (rng.random((K, R, S)) < design.spike_share)
    loss = lowest[:, None, None] * (1 + excess[:, :, None]) * (1 + common + own + spike)

    gone = np.broadcast_to((above > design.wall)[:, :, None], (K, R, S))
    marked = gone & (rng.random((K, R, S)) < design.blown_up_share)
    blown = lowest[:, None, None] * rng.uniform(*design.blown_up, (K, R, S))
    loss = np.where(marked, blown, np.where(gone, np.nan, loss))
    columns = {name: np.repeat(values, R * S) for name, values in sizes.items()}
    columns |= {
        "lr": np.repeat((MIDDLE_RATE * 2.0**grid).ravel(), S),
        "seed": np.tile(np.arange(S), K * R),
        "loss": loss.ravel(),
        "status": np.where(gone & ~marked, "diverged", "finished").ravel(),
    }
    return pd.DataFrame(columns), SweepTruth(design, sizes, MIDDLE_RATE * 2.0**optima, fresh)


def _law_octaves(design: SweepDesign, sizes: Sizes) -> Array:
    """The law's rate in octaves above MIDDLE_RATE."""
    z = _centred(design, sizes)
    log_rate = design.exponent * z["tokens"] + design.bend * z["tokens"] ** 2
    if "width" in z:
        log_rate = log_rate + design.width_exponent * z["width"]
        log_rate = log_rate + design.interaction * z["width"] * z["tokens"]
    return log_rate / math.log(2)


def _depth_factor(design: SweepDesign, sizes: Sizes) -> Array:
    """How many times deeper a basin is than at the geometric mean of the tokens."""
    return np.exp(design.growth * _centred(design, sizes)["tokens"])


def _centred(design: SweepDesign, sizes: Sizes) -> dict[str, Array]:
    """ln of the sizes, centred on the mean over the slices of the design."""
    return {
        name: np.log(np.asarray(sizes[name], dtype=float)) - np.log(values).mean()
        for name, values in design.sizes().items()
    }


def _grid(design: SweepDesign, law: Array, optima: Array, rng: np.random.Generator) -> Array:
    """The rates (K, R) of every slice, in octaves above MIDDLE_RATE."""
    off = rng.uniform(-design.centre_off, design.centre_off)
    steps = np.rint(law / design.spacing) if design.tracking else np.zeros(len(law))
    places = np.arange(design.rates) - (design.rates - 1) / 2
    grid = off + design.spacing * (steps[:, None] + places)
    chosen = _edge_slices(design, rng)
    if design.edge_side == "high":  # the last rate is to lie below the optimum
        end, wanted = grid[chosen, -1], optima[chosen] - (optima - grid[:, -1])[chosen] % design.spacing
    else:
        end, wanted = grid[chosen, 0], optima[chosen] + (grid[:, 0] - optima)[chosen] % design.spacing
    grid[chosen] += (wanted - end)[:, None]
    return grid


def _edge_slices(design: SweepDesign, rng: np.random.Generator) -> Array:
    """Indices of the slices whose grid is to miss the optimum."""
    tokens = design.sizes()["tokens"]
    order = np.argsort(tokens, kind="stable")
    if design.edge_place == "any":
        order = rng.permutation(len(tokens))
    elif design.edge_place == "largest":
        order = order[::-1]
    return order[: design.edge_slices]
