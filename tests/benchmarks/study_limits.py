"""Where the law's intervals stop holding what they say, and what the prior of the scatter does to them.

    python tests/benchmarks/study_limits.py --out reports/estimator     # minutes on one core

Sweeps of the simulator (tests/oracles/sweep_simulator.py) with one thing wrong that the model does not know:
a skew that changes with size, a slice that is far off, more scatter than its prior expects, seeds that move
the optimum. And the sweeps of two scenarios of `bench_estimator.py` with other scales of that prior. Every
sweep has its own seed. Prints a table, and writes it as limits.md and limits.csv.
"""

# ruff: noqa: E402
import os
import sys
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from hyperp.files import replacing
from tests.benchmarks.estimator_designs import GRIDS, SCENARIOS
from tests.benchmarks.estimator_scores import binomial_interval, coverage, score_fit
from tests.oracles.sweep_simulator import SkewedBasin, SweepDesign, SweepTruth, simulate_sweep

Sweep = tuple[pd.DataFrame, SweepTruth, dict[str, Any]]
CLEAN = {"noise": 0.001, "tau": 0.05}
MEASURES = {"near": "8x", "far": "32x", "exponent": "exponent", "slice": "a slice's own interval"}


def drifting_skew(design: SweepDesign, first: float, last: float, seed: list[int]) -> Sweep:
    """A sweep whose basins rise above the optimum by a power that runs from `first` to `last` with size."""
    powers = np.linspace(first, last, design.slices)
    parts, truths = zip(
        *(simulate_sweep(replace(design, basin=SkewedBasin(above=p)), seed) for p in powers), strict=True
    )
    tokens = truths[0].sizes["tokens"]
    rows = [part[part["tokens"] == size] for part, size in zip(parts, tokens, strict=True)]
    return pd.concat(rows, ignore_index=True), truths[-1], {}


def slice_far_off(design: SweepDesign, octaves: float, seed: list[int]) -> Sweep:
    """A sweep in which the rates of one slice, drawn at random, are those of another trainer."""
    frame, truth = simulate_sweep(design, seed)
    size = np.random.default_rng([*seed, 1]).choice(truth.sizes["tokens"])
    moved = frame.assign(lr=frame["lr"].where(frame["tokens"] != size, frame["lr"] * 2**octaves))
    optima = np.where(truth.sizes["tokens"] == size, truth.optima * 2**octaves, truth.optima)
    return moved, replace(truth, optima=optima), {}


def moving_seeds(design: SweepDesign, octaves: float, seed: list[int]) -> Sweep:
    """A sweep in which the optimum of a slice is another for every seed; its truth is their law."""
    one = replace(design, seeds=1, tau=octaves, centre_off=0.0, tracking=False)
    frames = [simulate_sweep(one, [*seed, s])[0].assign(seed=s) for s in range(design.seeds)]
    _, truth = simulate_sweep(replace(one, tau=0.0), seed)
    return pd.concat(frames, ignore_index=True), truth, {}


def sweeps(count: int) -> Iterator[tuple[str, Sweep]]:
    """Every sweep of the study with what it is an example of; `count` for each design."""
    for first, last in ((0.9, 0.9), (0.7, 1.1), (0.4, 1.4)):
        for k, tracking in enumerate((False, True)):
            design = replace(GRIDS["seven"], tracking=tracking, **CLEAN)
            for r in range(2 * count):
                label = f"power above the optimum from {first:g} to {last:g} over 32 times the tokens"
                yield label, drifting_skew(design, first, last, [1, k, r])
    for slices in (5, 7, 12):
        for octaves in (0.1, 0.3, 0.5):
            for k, grid in enumerate(("seven", "halves", "cubic")):
                design = replace(GRIDS[grid], slices=slices, tau=octaves)
                for r in range(count):
                    yield (
                        f"scatter {octaves:g} octave, {slices} slices",
                        (
                            *simulate_sweep(design, [2, k, r, slices]),
                            {},
                        ),
                    )
        for k, grid in enumerate(("seven", "halves")):
            design = replace(GRIDS[grid], slices=slices, **CLEAN)
            for r in range(2 * count):
                label = f"one slice 1.5 octaves off, {slices} slices"
                yield label, slice_far_off(design, 1.5, [3, k, r, slices])
    for octaves in (0.1, 0.3):
        design = replace(GRIDS["seven"], seeds=3, noise=0.001)
        for r in range(3 * count):
            label = f"seeds move the optimum by {octaves:g} octave, three seeds"
            yield label, moving_seeds(design, octaves, [4, r])
    for scale in (0.06, 0.12, 0.24):
        for name in ("exact", "four"):
            for j, design in enumerate(SCENARIOS[name].cells.values()):
                for r in range(max(count // 5, 1)):
                    yield (
                        f"prior scale {scale:g}, scenario {name}",
                        (
                            *simulate_sweep(design, [5, j, r]),
                            {"tau_sd": scale},
                        ),
                    )


def score(label: str, sweep: Sweep) -> dict[str, Any]:
    """The scores of one sweep, and whether the law warns of a slice."""
    frame, truth, options = sweep
    targets = {"near": truth.design.target(8.0), "far": truth.design.target(32.0)}
    return {"case": label, **score_fit(frame, truth, "hierarchical", targets, **options)}


def table_of(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each case: sweeps, refusals, failures, and every coverage with interval, count and width."""
    rows = []
    for label, group in scores.groupby("case", sort=False):
        row: dict[str, Any] = {"case": label, "sweeps": len(group)}
        for kind in ("refused", "failed"):
            row[kind] = int(group[kind].notna().sum()) if kind in group else 0
        for measure, name in MEASURES.items():
            held, of, width = coverage(group, measure)
            low, high = binomial_interval(held, of)
            unit = "" if measure == "exponent" else " octaves"
            row[name] = f"{held / of:.0%} ({low:.0%} to {high:.0%}) of {of}, width {width:.2f}{unit}"
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the study, print its table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--count", type=int, default=20, metavar="N", help="sweeps of each design (default 20)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write limits.md and limits.csv there")
    options = parser.parse_args()
    every = list(sweeps(options.count))
    table = table_of(pd.DataFrame([score(*one) for one in track(every, "sweeps")]))
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [table.columns, ["---"] * table.shape[1]]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.to_numpy()]
    print("\n".join(lines))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        with replacing(options.out / "limits.csv") as file:
            table.to_csv(file, index=False)
        head = f"`python tests/benchmarks/study_limits.py --count {options.count} --out {options.out}`: "
        head += "coverage of nominal 95% intervals, Wilson's interval, its count, and the median width.\n\n"
        with replacing(options.out / "limits.md") as file:
            file.write(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
