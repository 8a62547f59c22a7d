"""Coverage of the interval at which `hyperp-sweep auto` stops: how often it holds one more slice's optimum.

    python tests/benchmarks/study_stopping.py --studies 120 --goal 0.3 --scatter 0.08

Simulates the tiny token law (nine slices, three seeds, five rates, no skew); `--scatter` is the standard
deviation, in ln(lr), of the true optima between slices. Slices are added from cheap to dear until the
interval is as small as `--goal`, with at least three or at least six slices. Prints how many studies stop,
and the share of these whose interval at the largest size holds the optimum of a new slice there.
"""

import argparse
import math

import numpy as np
import pandas as pd

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.table.validate import Runs

TOKENS = (16384, 23040, 32768, 46080, 65536, 92160, 131072, 185344, 262144)
CONTEXT = {"status": "finished", "width": 32, "depth": 2, "batch_tokens": 512, "optimizer": "muonh"}
SEEDS, RATES, NOISE, BEND = 3, 5, 0.002, 0.03


def true_optimum(tokens: int) -> float:
    """log2 of the true optimal rate; it lies a fifth of an octave off the grid."""
    return -4.4 - 0.5 * math.log2(tokens / 131072)


def simulate_sweep(rng: np.random.Generator, scatter: float) -> pd.DataFrame:
    """The table of one sweep's runs; `scatter` of the true optima is in ln(lr)."""
    rows = []
    for tokens in TOKENS:
        grid = true_optimum(tokens) - 0.2 + np.arange(RATES) - RATES // 2
        best = true_optimum(tokens) + scatter / math.log(2) * rng.normal()
        for seed in range(SEEDS):
            loss = 2 + 0.02 * rng.normal() + BEND * (grid - best) ** 2 + NOISE * rng.normal(size=RATES)
            rows.append(pd.DataFrame({"tokens": tokens, "seed": seed, "lr": 2.0**grid, "loss": loss}))
    return pd.concat(rows).assign(**CONTEXT)


def interval_at_stop(frame: pd.DataFrame, goal: float, least: int) -> tuple[float, float] | None:
    """The interval at the largest size when the search stops; None if it never does."""
    for count in range(least, len(TOKENS) + 1):
        some = frame[frame["tokens"].isin(TOKENS[:count])]
        try:
            law = fit_law(Runs(some, "runs.parquet", "0" * 64), ["tokens"])
        except Refusal:
            continue
        _, low, high = law.interval_at({"tokens": TOKENS[-1]})
        if math.sqrt(high / low) - 1 <= goal:
            return low, high
    return None


def main() -> None:
    """Print how many studies stop and their coverage, for at least three and at least six slices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--goal", type=float, default=0.3)
    parser.add_argument("--scatter", type=float, default=0.08)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    held: dict[int, list[bool]] = {3: [], 6: []}
    for _ in range(args.studies):
        frame = simulate_sweep(rng, args.scatter)
        new = 2.0 ** true_optimum(TOKENS[-1]) * math.exp(args.scatter * rng.normal())
        for least, found in held.items():
            ends = interval_at_stop(frame, args.goal, least)
            if ends is not None:
                found.append(ends[0] <= new <= ends[1])
    for least, found in held.items():
        share = f"{np.mean(found):.3f} of them hold a new slice's optimum" if found else "none"
        print(f"at least {least} slices: {len(found)} of {args.studies} studies stop, {share}")


if __name__ == "__main__":
    main()
