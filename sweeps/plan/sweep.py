"""The `sweep` section: blocks with grids, points and learning rates."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from hyperp.validation import Strict


class LearningRates(Strict):
    """base_lr on a log2 grid: 2^(center + i step), or rate 2^(i step), for |i step| <= octaves.

    `per_octave` moves the centre by this many octaves for each doubling of its key from the value in `at`.
    The centre is rounded to a multiple of `step`, so that slices share rates exactly; `rate` is not rounded.
    """

    center: float | None = None
    rate: float | None = Field(default=None, gt=0)
    octaves: float = Field(gt=0)
    step: float = Field(default=1.0, gt=0)
    per_octave: dict[str, float] = Field(default_factory=dict)
    at: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "LearningRates":
        if (self.center is None) == (self.rate is None):
            raise ValueError(f"give either center or rate, got center={self.center} and rate={self.rate}")
        if self.octaves < self.step:
            raise ValueError(
                f"octaves must be at least step={self.step:g}, or each slice has one learning rate, "
                f"got {self.octaves:g}"
            )
        if self.per_octave.keys() != self.at.keys():
            raise ValueError(
                f"at must have the keys of per_octave ({', '.join(self.per_octave) or 'none'}), "
                f"got {', '.join(self.at) or 'none'}"
            )
        for key, value in self.at.items():
            if value <= 0:
                raise ValueError(f"at.{key} must be positive, got {value:g}")
        return self

    def values(self, lookup: Mapping[str, float]) -> list[float]:
        """The rates of one slice, smallest first; `lookup` has the slice's values of `per_octave`'s keys."""
        shift = sum(slope * math.log2(lookup[key] / self.at[key]) for key, slope in self.per_octave.items())
        count = math.floor(self.octaves / self.step + 1e-9)
        steps = range(-count, count + 1)
        if self.rate is not None:
            return [self.rate * 2.0 ** (shift + i * self.step) for i in steps]
        assert self.center is not None
        middle = math.floor((self.center + shift) / self.step + 0.5)
        return [2.0 ** ((middle + i) * self.step) for i in steps]


class Block(Strict):
    """A named part of a plan: the product of `grid`, `points` and `lr`, on top of `overrides`."""

    overrides: list[str] = Field(default_factory=list)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    points: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    lr: LearningRates | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Block":
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key} must have at least one value, got []")
        for i, point in enumerate(self.points or []):
            if not point:
                raise ValueError(f"points.{i} must set at least one key, got {{}}")
            for key in point.keys() & self.grid.keys():
                raise ValueError(f"points.{i}.{key} is in grid too; a key may be in one of them")
        rates = {"base_lr", "values.lr", "trainer.values.lr"} & self.keys()
        if self.lr and rates:
            raise ValueError(f"{rates.pop()} must not be in grid or points of a block that has lr")
        return self

    def with_keys(self, rename: Callable[[str], str]) -> "Block":
        """The same block with its keys renamed, also those that its rates depend on."""

        def renamed(section: Mapping[str, Any]) -> dict[str, Any]:
            return {rename(key): value for key, value in section.items()}

        lr = self.lr and self.lr.model_copy(
            update={"per_octave": renamed(self.lr.per_octave), "at": renamed(self.lr.at)}
        )
        points = self.points and [renamed(point) for point in self.points]
        return self.model_copy(update={"grid": renamed(self.grid), "points": points, "lr": lr})

    def keys(self) -> set[str]:
        """The keys that grid and points set."""
        return set(self.grid).union(*(self.points or []))

    def slices(self) -> Iterator[dict[str, Any]]:
        """Every combination of grid and points in written order; the last key varies fastest."""
        for values in itertools.product(*self.grid.values()):
            for point in self.points or [{}]:
                yield dict(zip(self.grid, values, strict=True)) | point


class Sweep(Strict):
    """The `sweep` section of the configuration."""

    blocks: dict[str, Block] = Field(default_factory=dict)
