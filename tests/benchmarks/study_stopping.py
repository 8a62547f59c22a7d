"""Coverage of the interval at which `hyperp-sweep auto` stops: how often it holds one more slice's optimum.

    python tests/benchmarks/study_stopping.py --studies 60 --goal 0.3 --scatter 0.08 --rates few

Simulates the tiny token law (nine slices, three seeds, five rates, no skew); `--scatter` is the standard
deviation, in ln(lr), of the true optima between slices. Slices are added from cheap to dear until the
interval is as small as `--goal`, with at least three or at least six slices. With `--rates few`, the slices
from the fourth on have the rates that `auto` runs: those about the law's prediction that bracket, and the
others if the optimum turns out not bracketed. Prints how many studies stop, the share of these whose interval
at the largest size holds the optimum of a new slice there, and the runs that they took on average.
"""

import argparse
import math

import numpy as np
import pandas as pd

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.slice_rates import choose_rates
from hyperp.analysis.table.validate import Runs
from hyperp.sweeps.auto import bracketing_rates

TOKENS = (16384, 23040, 32768, 46080, 65536, 92160, 131072, 185344, 262144)
CONTEXT = {"status": "finished", "width": 32, "depth": 2, "batch_tokens": 512, "optimizer": "muonh"}
SEEDS, RATES, NOISE, BEND = 3, 5, 0.002, 0.03
LEAST = (3, 6)  # slices before an interval is believed


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


def slice_runs(frame: pd.DataFrame, law: Law, tokens: int) -> pd.DataFrame:
    """The runs of the slice of this size that `auto` would do, by the law of the smaller ones."""
    whole = frame[frame["tokens"] == tokens]
    found = choose_rates(law, {"tokens": tokens})
    if not found.basin_known:
        return whole
    rates = bracketing_rates(set(whole["lr"]), found.rates, found.low, found.high)
    return whole[whole["lr"].isin(rates)]


def fitted(frame: pd.DataFrame) -> Law | None:
    """The law of these runs; None if it is refused."""
    try:
        return fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"])
    except Refusal:
        return None


def intervals_at_stop(
    frame: pd.DataFrame, goal: float, few: bool
) -> dict[int, tuple[float, float, int] | None]:
    """For each least number of slices, the interval at the largest size at the stop, and the runs so far."""
    found: dict[int, tuple[float, float, int] | None] = dict.fromkeys(LEAST)
    some = frame[frame["tokens"].isin(TOKENS[: min(LEAST)])]
    for count in range(min(LEAST), len(TOKENS) + 1):
        law = fitted(some)
        if few and law is not None:
            last = [s for s in law.slices if s.covariates["tokens"] == TOKENS[count - 1]]
            if last and (not last[0].used or last[0].one_sided):
                some = pd.concat([some, frame[frame["tokens"] == TOKENS[count - 1]]]).drop_duplicates()
                law = fitted(some)
        if law is not None:
            _, low, high = law.interval_at({"tokens": TOKENS[-1]})
            for least in LEAST:
                if found[least] is None and count >= least and math.sqrt(high / low) - 1 <= goal:
                    found[least] = (low, high, len(some))
        if all(found.values()) or count == len(TOKENS):
            break
        more = frame[frame["tokens"] == TOKENS[count]]
        some = pd.concat([some, slice_runs(frame, law, TOKENS[count]) if few and law else more])
    return found


def main() -> None:
    """Print how many studies stop and their coverage, for at least three and at least six slices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--goal", type=float, default=0.3)
    parser.add_argument("--scatter", type=float, default=0.08)
    parser.add_argument("--rates", choices=("all", "few"), default="few")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    held: dict[int, list[tuple[bool, int]]] = {least: [] for least in LEAST}
    for _ in range(args.studies):
        frame = simulate_sweep(rng, args.scatter)
        new = 2.0 ** true_optimum(TOKENS[-1]) * math.exp(args.scatter * rng.normal())
        for least, stop in intervals_at_stop(frame, args.goal, args.rates == "few").items():
            if stop is not None:
                held[least].append((stop[0] <= new <= stop[1], stop[2]))
    for least, found in held.items():
        text = "none"
        if found:
            share, runs = np.mean(found, axis=0)
            text = f"{share:.3f} of them hold a new slice's optimum, {runs:.0f} runs"
        print(f"at least {least} slices: {len(found)} of {args.studies} studies stop, {text}")


if __name__ == "__main__":
    main()
