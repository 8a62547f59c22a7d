"""Time the loss law against a plain loop of scipy.optimize.minimize, on one core, in one run.

    python tests/benchmarks/bench_loss.py [TABLE.csv]

TABLE has the columns N, D, loss and kept. Without it, 240 synthetic points replace the 240 that the authors
of arXiv 2404.10102 read off a figure. The plain loop is theirs: L-BFGS from every point of a grid of starts,
once for the fit and once for every resample. It is timed on a few starts and resamples, and extrapolated.
"""

# ruff: noqa: E402  the threads must be set first

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is loaded

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from hyperp.analysis.loss.bootstrap import bootstrap_loss, parameter_intervals
from hyperp.analysis.loss.fit import fit_loss_law, profile_floor, published_parameters
from hyperp.analysis.loss.leverage import compute_leverage
from hyperp.analysis.loss.points import LossPoints, loss_points
from hyperp.analysis.vocabulary import HUBER_DELTA

RESAMPLES = 1000
SIMULATIONS = 300
STARTS = list(
    itertools.product(
        range(0, 26, 5), range(0, 26, 5), np.arange(-1, 1.1, 0.5), *[np.arange(0, 2.1, 0.5)] * 2
    )
)


def read_points(path: str | None) -> LossPoints:
    """Read the table, or make 240 synthetic points of about the same law and scatter."""
    if path is not None:
        frame = pd.read_csv(Path(path))
        frame = frame.loc[frame["kept"].astype(bool)]
        return loss_points(frame.rename(columns={"N": "parameters", "D": "tokens"}), "chinchilla")
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(np.log([[6e7], [8e8]]), np.log([[1.6e10], [3e11]]), size=(2, 240)))
    law = 1.8172 + 477.83 * N**-0.3473 + 2143.42 * D**-0.3672
    loss = law * np.exp(0.005 * rng.standard_t(3, size=240))
    return loss_points(pd.DataFrame({"parameters": N, "tokens": D, "loss": loss}), "chinchilla")


def timed(action, repeats: int = 5):
    """The result of `action`, and its shortest wall time over some repeats, in seconds."""
    begin = time.perf_counter()
    found = action()
    least = time.perf_counter() - begin
    for _ in range(repeats - 1):
        begin = time.perf_counter()
        action()
        least = min(least, time.perf_counter() - begin)
    return found, least


def fit_from_start(points: LossPoints, weights: np.ndarray, start: tuple[float, ...]):
    """One start of the plain loop: fit ln A, ln B, ln E, alpha, beta by L-BFGS with numerical gradients."""
    log_N, log_D = np.log(points.x_Kn)
    target = np.log(points.loss_n)

    def objective(z):
        terms = [z[0] - z[3] * log_N, z[1] - z[4] * log_D, np.full_like(log_N, z[2])]
        return float((weights * huber(HUBER_DELTA, logsumexp(terms, axis=0) - target)).sum())

    return minimize(objective, np.array(start), method="L-BFGS-B")


def print_plain_loop(points: LossPoints, once: float, many: float) -> None:
    """Time a sample of the plain loop's starts and resamples."""
    rng = np.random.default_rng(1)
    chosen = rng.choice(len(STARTS), size=40, replace=False)
    n = len(points.loss_n)
    begin = time.perf_counter()
    best = min((fit_from_start(points, np.ones(n), STARTS[i]) for i in chosen), key=lambda r: r.fun)
    each = (time.perf_counter() - begin) / len(chosen)
    whole = each * len(STARTS)
    print(f"plain loop: {1e3 * each:.0f} ms a start, measured on {len(chosen)} of {len(STARTS)} starts")
    print(f"  fit: {whole:.0f} s extrapolated, {whole / once:.0f} times ours; best objective {best.fun:.7g}")
    begin = time.perf_counter()
    for _ in range(10):
        fit_from_start(points, rng.multinomial(n, np.full(n, 1 / n)), tuple(best.x))
    warm = (time.perf_counter() - begin) / 10 * RESAMPLES
    print(f"  {RESAMPLES} resamples, one warm start: {warm:.0f} s extrapolated, {warm / many:.0f} times")
    print(f"  {RESAMPLES} resamples from every start: {whole * RESAMPLES / 3600:.0f} h extrapolated")


def leverage_coverage(count: int, noise: float) -> tuple[float, float]:
    """Share of intervals at the largest common compute that hold the true ratio, and their median width."""
    inside, widths = [], []
    for seed in range(SIMULATIONS):
        rng = np.random.default_rng(seed)
        flops = np.geomspace(1e18, 1e21, count)
        frames = []
        for name, ratio in (("muon", 1.0), ("sso", 1.5)):
            law = 1.7 + 1.2 * (ratio * flops / 1e19) ** -0.12
            loss = law * np.exp(noise * rng.normal(size=count))
            frames.append(pd.DataFrame({"optimizer": name, "flops": flops, "loss": loss}))
        row = compute_leverage(pd.concat(frames), "muon", resamples=300)[0].comparisons[0].at_largest
        assert row is not None
        low, high = row.low or 0.0, row.high or np.inf
        inside.append(low <= 1.5 <= high)
        widths.append(high / max(low, 1e-12))
    return float(np.mean(inside)), float(np.median(widths))


def main() -> None:
    """Print all times and coverages."""
    points = read_points(sys.argv[1] if len(sys.argv) > 1 else None)
    fit, once = timed(lambda: fit_loss_law(points))
    draws, many = timed(lambda: bootstrap_loss(fit, RESAMPLES, seed=0), 3)
    _, floors = timed(lambda: profile_floor(fit), 3)
    values = zip(fit.names, published_parameters(fit, fit.z_P[None])[0], strict=True)
    print(f"{len(points.loss_n)} points: " + ", ".join(f"{n} {v:.6g}" for n, v in values))
    print(f"objective {fit.objective:.9g}, converged {fit.converged}")
    print(f"fit {1e3 * once:.1f} ms; {RESAMPLES} resamples {many:.2f} s; profile of E {floors:.2f} s")
    for name, (low, high) in parameter_intervals(fit, draws).items():
        print(f"  {name} 95% {low:.4g} to {high:.4g}")
    print_plain_loop(points, once, many)
    print(
        f"leverage of 1.5, {SIMULATIONS} simulations: coverage of the nominal 95% interval, median high / low"
    )
    for count, noise in itertools.product((5, 8, 12), (0.001, 0.003)):
        share, width = leverage_coverage(count, noise)
        print(f"  {count} computes, noise {noise:.1%}: {share:.1%}, {width:.3g}")


if __name__ == "__main__":
    main()
