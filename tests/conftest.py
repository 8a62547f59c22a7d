"""Synthetic sweeps with a known law, shared by the tests of the analysis."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.law_command import run

CONTEXT = {
    "optimizer": "muonh",
    "parametrization": "hyperp",
    "schedule": "linear",
    "data": "stdlib",
    "metric": "loss, nats per token",
}


def basin(octaves: np.ndarray, skew: float) -> np.ndarray:
    """Excess loss of curvature one: u^2 + skew u^3 + ..., steeper on the side of high rates for skew > 0."""
    if skew == 0:
        return octaves**2
    k = 3 * skew
    return 2 * (np.exp(k * octaves) - 1 - k * octaves) / k**2


def curve(
    optimum: float,
    rates: np.ndarray,
    seeds: int,
    rng: np.random.Generator,
    floor: float = 3.0,
    depth: float = 0.01,
    skew: float = 0.15,
    noise: float = 0.002,
    seed_shift: float = 0.0,
) -> pd.DataFrame:
    """One learning-rate curve: `optimum` in log2, `depth` the relative excess loss at one octave."""
    rows = []
    for seed in range(seeds):
        centre = optimum + seed_shift * rng.normal()
        level = floor * (1 + 0.01 * rng.normal())
        excess = depth * basin(np.log2(rates) - centre, skew)
        loss = level * (1 + excess) + floor * noise * rng.normal(size=len(rates))
        rows.append(pd.DataFrame({"lr": rates, "seed": seed, "loss": loss}))
    return pd.concat(rows, ignore_index=True)


def ladder(
    exponent: float = -0.5,
    log2_at_64k: float = -4.7,
    tokens: tuple[int, ...] = (32768, 65536, 131072, 262144, 524288),
    octaves: tuple[int, int] = (-9, -1),
    seeds: int = 2,
    scatter: float = 0.0,
    rng_seed: int = 0,
    context: dict | None = None,
    covariates: dict | None = None,
    **shape,
) -> pd.DataFrame:
    """A token ladder on whole-octave rates whose optimum is 2^log2_at_64k (tokens/65536)^exponent."""
    rng = np.random.default_rng(rng_seed)
    rates = 2.0 ** np.arange(octaves[0], octaves[1] + 1)
    frames = []
    for count in tokens:
        optimum = log2_at_64k + exponent * np.log2(count / 65536) + scatter * rng.normal()
        floor = 2.0 + 3.0 * (count / 32768) ** -0.3
        points = curve(optimum, rates, seeds, rng, floor=floor, **shape)
        scale = {
            "width": 32,
            "depth": 2,
            "batch_tokens": 512,
            "granularity": 1,
            "sparsity": 1,
            "tokens": count,
        }
        frames.append(points.assign(**(context or CONTEXT), **{**scale, **(covariates or {})}))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(status="finished", base_lr=frame["lr"])


@pytest.fixture(scope="session")
def make_ladder() -> Callable[..., pd.DataFrame]:
    """The builder of token ladders."""
    return ladder


@pytest.fixture(scope="session")
def make_curve() -> Callable[..., pd.DataFrame]:
    """The builder of single curves."""
    return curve


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs.parquet: a ladder, two widths under MuonH and two under AdamW, whose highest rate diverged."""
    adamw = {
        "optimizer": "adamw",
        "parametrization": "standard",
        "schedule": "linear",
        "data": "stdlib",
        "metric": "loss, nats per token",
    }
    wide, one = {"width": 64}, {"tokens": (131072,), "seed_shift": 0.05, "noise": 0.001}
    frames = [
        ladder(tokens=(32768, 65536, 131072, 262144), seed_shift=0.05, noise=0.001),
        ladder(log2_at_64k=-4.9, covariates=wide, rng_seed=1, **one),
        ladder(log2_at_64k=-6.0, context=adamw, octaves=(-10, -3), rng_seed=2, **one),
        ladder(log2_at_64k=-7.0, context=adamw, octaves=(-10, -3), covariates=wide, rng_seed=3, **one),
    ]
    frame = pd.concat(frames, ignore_index=True)
    hot = (frame["optimizer"] == "adamw") & (frame["lr"] == 2.0**-3)
    frame.loc[hot, "status"], frame.loc[hot, "loss"] = "diverged", np.nan
    folder = tmp_path_factory.mktemp("demo")
    frame.to_parquet(folder / "runs.parquet")
    assert run("fit", folder, "--by", "tokens", "-o", folder / "law.json").exit_code == 0
    return folder
