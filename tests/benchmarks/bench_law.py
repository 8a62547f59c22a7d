"""Time the estimators against plain loops of curve_fit, and simulate what their intervals cover.

    python -m tests.benchmarks.bench_law [--replicates 400] [--resamples 1000]

It uses one core. Times are the best of five; those of the loops are scaled up from fewer resamples.
"""

# ruff: noqa: E402
import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import curve_fit

from hyperp.analysis.optima.basin.fit import fit_basin
from hyperp.analysis.random_effects import meta_regression, t_quantile
from tests.oracles.baselines import WINDOW, fit_parabolas
from tests.oracles.basin_bootstrap import shared_bootstrap, two_stage_bootstrap

LN2 = np.log(2.0)
EXPONENT, SKEW, DEPTH = -0.4, 0.15, 0.01  # of the law; of the basin, per octave; excess loss at one octave


def sweep(
    rng: np.random.Generator, slices: int, noise: float, scatter: float, rates: int, growth: float = 0.0
) -> dict:
    """Skewed basins over a covariate's range of 16; logs are natural, `scatter` in octaves.

    The curvature is the covariate to the power `growth`. Fewer than eight rates lie octaves apart, about the
    law.
    """
    z = np.linspace(0.0, 4.0, slices) * LN2
    true = (-6 * LN2 + EXPONENT * (z - z.mean())) + scatter * LN2 * rng.standard_normal(slices)
    u = np.tile(np.linspace(-9.0, -3.0, rates), (slices, 1)) * LN2
    if rates < 8:
        middle = np.round(-6 + EXPONENT * (z - z.mean()) / LN2)
        u = (middle[:, None] + np.arange(rates) - rates // 2) * LN2
    k, octaves = 3 * SKEW, (u - true[:, None]) / LN2
    depth = DEPTH * np.exp(growth * (z - z.mean()))[:, None]
    loss = 3 * (1 + depth * 2 * (np.exp(k * octaves) - 1 - k * octaves) / k**2)
    loss *= 1 + noise * rng.standard_normal(loss.shape)
    labels = np.repeat(np.arange(slices), rates)
    return {"z": z, "true": true, "U": u.ravel(), "loss": loss.ravel(), "slices": labels}


def predict(y: np.ndarray, se: np.ndarray | None, z: np.ndarray, at: float, new: bool) -> tuple[float, float]:
    """Centre and half width of the 95% interval for the optimum of a new slice (`new`), or for the line."""
    fit = meta_regression(y, se, np.column_stack([np.ones(len(z)), z]))
    x = np.array([1.0, at])
    variance = float(x @ fit.cov @ x) + (fit.tau2 + fit.unit_variance if new else 0.0)
    return float(x @ fit.beta), t_quantile(fit.df, 0.95) * float(np.sqrt(variance))


def print_coverage(replicates: int) -> None:
    """Predict optima at 8 times the range: how often the interval holds the truth, and how wide it is."""
    print(f"coverage of nominal 95% intervals at 8 times the range, {replicates} sweeps each, 12 rates,")
    print(
        "scatter 0.15 octave; width in octaves. two-stage: a parabola over 3 octaves, then the regression and"
    )
    print("prediction interval of shared; line: its OLS t interval; plain: that for parabolas over all rates")
    heads = "   ".join(f"{name:>14}" for name in ("shared", "two-stage", "line", "plain"))
    print(f"{'slices':>6} {'noise':>6}   {heads}")
    for slices in (5, 12):
        for noise in (0.001, 0.002, 0.003):
            rows: list[list[tuple[float, float]]] = [[], [], [], []]
            for seed in range(replicates):
                rng = np.random.default_rng([seed, slices, int(noise * 1e4)])
                data = sweep(rng, slices, noise, scatter=0.15, rates=12)
                z, at = data["z"], data["z"][-1] + 3 * LN2
                truth = -6 * LN2 + EXPONENT * (at - z.mean()) + 0.15 * LN2 * rng.standard_normal()
                basin = fit_basin(data["U"], data["loss"], data["slices"], covariates=z)
                used = basin.bracketed
                intervals = [predict(basin.optimum[used, 0], basin.se[used, 0], z[used], at, new=True)]
                for window, new in ((WINDOW, True), (WINDOW, False), (np.inf, False)):
                    bowls = fit_parabolas(basin.curves, window)
                    own, y = bowls.bowl, bowls.optimum[bowls.bowl, 0]
                    se = np.sqrt(bowls.cov[own, 0, 0]) if new else None
                    intervals.append(predict(y, se, z[own], at, new))
                for row, (centre, half) in zip(rows, intervals, strict=True):
                    row.append((float(abs(centre - truth) <= half), 2 * half / LN2))
            cells = "   ".join(
                f"{100 * np.mean(row, axis=0)[0]:6.1f}% {np.median(row, axis=0)[1]:6.2f}" for row in rows
            )
            print(f"{slices:6} {noise:6.1%}   {cells}")


def print_growth_coverage(replicates: int) -> None:
    """The same where the curvature grows with the covariate, with the coverage of the exponent's interval."""
    print(f"\ncurvature as covariate^growth, noise 0.2%, scatter 0.05 octave, {replicates} sweeps each:")
    print(
        "coverage of the exponent's interval, and its bias; coverage of the prediction at 8 times the range,"
    )
    print("and its width in octaves; the mean exponent of the curvature")
    heads = f"{'exponent':>8} {'bias':>8}   {'ahead':>7} {'width':>6}   {'bend':>6}"
    print(f"{'slices':>6} {'rates':>6} {'growth':>7}   {heads}")
    for slices in (5, 7, 12):
        for rates in (5, 12):
            for power in (0.0, 0.5, 1.0):
                row = np.array(
                    [_predict_with_growth(seed, slices, rates, power) for seed in range(replicates)]
                )
                held, bias, ahead, _, bend = row.mean(axis=0)
                width = np.median(row[:, 3])
                cells = f"{held:8.1%} {bias:+8.4f}   {ahead:7.1%} {width:6.2f}   {bend:+6.2f}"
                print(f"{slices:6} {rates:6} {power:7.1f}   {cells}")


def _predict_with_growth(seed: int, slices: int, rates: int, power: float) -> tuple[float, ...]:
    rng = np.random.default_rng([seed, slices, rates, 3])
    data = sweep(rng, slices, 0.002, scatter=0.05, rates=rates, growth=power)
    z, at = data["z"], data["z"][-1] + 3 * LN2
    truth = -6 * LN2 + EXPONENT * (at - z.mean()) + 0.05 * LN2 * rng.standard_normal()
    basin = fit_basin(data["U"], data["loss"], data["slices"], covariates=z)
    used = basin.bracketed
    y, se = basin.optimum[used, 0], basin.se[used, 0]
    centre, half = predict(y, se, z[used], at, new=True)
    line = meta_regression(y, se, np.column_stack([np.ones(len(y)), z[used]]))
    low, high = line.interval()
    held = low[1] <= EXPONENT <= high[1]
    return (
        float(held),
        line.beta[1] - EXPONENT,
        float(abs(centre - truth) <= half),
        2 * half / LN2,
        float(basin.bend[0]),
    )


def shortest_time(work: Callable[[], object], times: int = 5) -> float:
    """Shortest wall time of `work`, in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def loop_two_stage(data: dict, resamples: int, rng: np.random.Generator) -> None:
    """A parabola for each slice and a line through the vertices, with one curve_fit at a time."""
    groups = [np.flatnonzero(data["slices"] == k) for k in range(len(data["z"]))]
    for _ in range(resamples):
        loss = data["loss"] * (1 + 0.002 * rng.standard_normal(len(data["loss"])))
        vertices = []
        for rows in groups:
            x = data["U"][rows]
            near = rows[np.abs(x - x[np.argmin(data["loss"][rows])]) <= WINDOW * 1.001]
            start = (loss[near].min(), data["U"][near].mean(), 0.02)
            fit = curve_fit(lambda x, f, m, a: f + a * (x - m) ** 2, data["U"][near], loss[near], p0=start)[0]
            vertices.append(fit[1])
        curve_fit(lambda x, a, b: a + b * x, data["z"], np.array(vertices))


def loop_shared(data: dict, resamples: int, rng: np.random.Generator) -> None:
    """Floors, locations and one cubic shape together, one curve_fit for each resample, from the truth."""
    K = len(data["z"])

    def model(_: np.ndarray, *q: float) -> np.ndarray:
        parameters = np.array(q)
        v = data["U"] - parameters[K : 2 * K][data["slices"]]
        return parameters[:K][data["slices"]] * (1 + parameters[-2] * v**2 + parameters[-1] * v**3)

    sigma = 1 / np.sqrt(1 / (1 + ((data["loss"] / 3 - 1) / 0.02) ** 2) ** 2)
    for _ in range(resamples):
        loss = data["loss"] * (1 + 0.002 * rng.standard_normal(len(data["loss"])))
        start = [*np.full(K, 3.0), *data["true"], 0.02, 0.005]
        curve_fit(model, data["U"], loss, p0=start, sigma=sigma, maxfev=20000)


def print_speed(resamples: int) -> None:
    """Time the bootstraps against the loops, on 17 slices of 12 rates."""
    data = sweep(np.random.default_rng(0), 17, 0.002, scatter=0.1, rates=12)
    z = data["z"]
    basin = fit_basin(data["U"], data["loss"], data["slices"], covariates=z)
    bowls = fit_parabolas(basin.curves)
    X = [np.column_stack([np.ones(len(z)), z])]
    rng = np.random.default_rng(1)
    print(f"{resamples} resamples of 17 slices x 12 rates, one core")
    print(f"{'':>10} {'seconds':>9} {'aim':>5} {'curve_fit loop':>15} {'ratio':>7}")
    ours = shortest_time(lambda: two_stage_bootstrap(bowls, X, resamples))
    loop = shortest_time(lambda: loop_two_stage(data, 10, rng), 1) * resamples / 10
    print(f"{'two-stage':>10} {ours:9.4f} {0.1:5} {loop:15.1f} {loop / ours:7.0f}")
    ours = shortest_time(lambda: shared_bootstrap(basin, X, resamples))
    loop = shortest_time(lambda: loop_shared(data, 10, rng), 1) * resamples / 10
    print(f"{'shared':>10} {ours:9.4f} {1.0:5} {loop:15.1f} {loop / ours:7.0f}")
    once = shortest_time(lambda: fit_basin(data["U"], data["loss"], data["slices"], covariates=z))
    print(f"one shared fit from scratch: {once:.4f} s")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=400, help="sweeps simulated per row (default 400)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the timed bootstraps (default 1000)")
    options = parser.parse_args()
    print_speed(options.resamples)
    if options.replicates:
        print_coverage(options.replicates)
        print_growth_coverage(options.replicates)


if __name__ == "__main__":
    main()
