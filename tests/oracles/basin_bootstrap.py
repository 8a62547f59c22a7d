"""Bootstraps of the shared and of the two-stage estimate.

They draw two levels anew, runs and slices, and keep the design of the sweep.

Runs. The rates of a sweep are a design, so they stay. Each run gets new noise: a residual of any run, drawn
by weight, with a random sign, inflated to the noise of the fit. Runs drawn with replacement would lose the
one rate below an optimum in a third of the resamples. Random signs on a run's own residual (the wild
bootstrap) would make the error of a slice depend on the two or three residuals nearest its bottom. Far from
an optimum, a residual is mostly what a cubic cannot follow, which is not noise. There the curve stays as
observed, to the extent that the weight of the run is small.

Slices. They scatter about the law by more than their own errors. Five slices drawn with replacement are too
often collinear, or fewer than the coefficients, and five residuals are too few to draw from. So the scatter
is normal, with the tau of the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyperp.analysis.optima.basin.descent import BasinParameters, descend
from hyperp.analysis.optima.basin.fit import BasinFit
from hyperp.analysis.random_effects import meta_regression
from tests.oracles.baselines import Parabolas

# B: resamples   K: slices   m: runs in the longest slice   p: what is tuned   P: coefficients

STEPS = 4  # Gauss-Newton steps from the fit to the data; then the rest is 0.1% of the standard error
NEWTON = 40  # at most so many steps; a dozen is usual


@dataclass(frozen=True)
class Bootstrap:
    """Fits of B resamples.

    Attributes:
        optimum: (B, K, p) natural logs.
        beta: for each tuned quantity the coefficients (B, P_j) of its law.
        tau2: (B, p) between-slice variances.
    """

    optimum: np.ndarray
    beta: tuple[np.ndarray, ...]
    tau2: np.ndarray

    def predict(self, X: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Draws (B, p) of the optimum of a new slice; X has one row of the design for each tuned quantity."""
        centre = np.stack([b @ x for b, x in zip(self.beta, X, strict=True)], axis=1)
        return centre + np.sqrt(self.tau2) * rng.standard_normal(centre.shape)


def shared_bootstrap(
    basin: BasinFit,
    designs: Sequence[np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
    steps: int = STEPS,
) -> Bootstrap:
    """Fit shape, optima and law to resampled losses; scale and states stay those of the fit.

    Args:
        basin: the fit.
        designs: for each tuned quantity (K, P_j) over all slices, ones first; only bracketed slices are used.
        resamples: number of resamples.
        seed: of the random numbers.
        steps: Gauss-Newton steps of each fit.

    Raises:
        ValueError: `resamples` is below 1, or the designs have wrong shapes.
    """
    _check_designs(designs, basin.optimum.shape, resamples)
    rng = np.random.default_rng(seed)
    loss = basin.floor[:, None] * (1 + _resampled_losses(basin, resamples, rng))
    used, shaped, options = basin.bracketed, basin.shaped, {"iterations": steps, "damping": 0.0}
    start = BasinParameters(basin.shape.coef, basin.bend, basin.optimum[shaped], basin.floor[shaped])
    refits = []
    for row in loss:
        part = replace(basin.curves.select(shaped), loss=row[shaped])
        found = descend(part, basin.shape.powers, start, basin.scale, **options)[0]
        part = replace(basin.curves.select(used), loss=row[used])
        own = BasinParameters(found.coef, found.bend, basin.optimum[used], basin.floor[used])
        refits.append(descend(part, basin.shape.powers, own, basin.scale, held=True, **options)[0].optimum)
    optima = np.array(refits)
    # Relative to the curves without new noise, whose optima differ from the fit's, as they keep their misfit.
    moved = optima[1:] - optima[0]
    return _regress_resamples(basin.optimum[used], basin.cov[used], moved, [d[used] for d in designs], rng)


def two_stage_bootstrap(
    parabolas: Parabolas, designs: Sequence[np.ndarray], resamples: int = 1000, seed: int = 0
) -> Bootstrap:
    """The same for each slice's own parabola; the windows hold the same runs as in the fit.

    So the coefficients of a parabola are a fixed linear map of the losses.
    """
    _check_designs(designs, parabolas.optimum.shape, resamples)
    rng = np.random.default_rng(seed)
    used = parabolas.bowl
    inside = parabolas.inside[used]
    pool = parabolas.residual[parabolas.inside & used[:, None]]
    noise = pool[rng.integers(len(pool), size=(resamples, *inside.shape))] * inside
    noise *= _signs(rng, noise.shape)
    moved = np.einsum("bkm,kmc->bkc", noise, parabolas.solve[used])
    optimum = parabolas.vertex(parabolas.coef[used] + moved, used) - parabolas.optimum[used]
    # A resample without a bottom has no vertex; the vertex of the fit takes its place.
    moved = np.where(np.isfinite(optimum), optimum, 0.0)
    return _regress_resamples(
        parabolas.optimum[used], parabolas.cov[used], moved, [d[used] for d in designs], rng
    )


def _resampled_losses(basin: BasinFit, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Relative excess losses (1 + B, K, m) over the fitted floors; the first has no new noise."""
    assert basin.noise is not None
    count = np.maximum(basin.curves.count, 1e-300)
    admitted = np.sqrt(basin.weight / count)
    pool, odds = basin.residual * np.sqrt(count), (admitted**2 * basin.shaped[:, None]).ravel()
    odds = np.cumsum(odds) / odds.sum()
    mean_square = float(np.diff(odds, prepend=0.0) @ pool.ravel() ** 2)
    pool *= basin.noise / np.sqrt(max(mean_square, 1e-300))
    draws = np.minimum(np.searchsorted(odds, rng.random((resamples, *admitted.shape))), odds.size - 1)
    noise = pool.ravel()[draws] * _signs(rng, draws.shape) * admitted / np.sqrt(np.maximum(count, 1.0))
    curve = basin.curves.loss / basin.floor[:, None] - 1 - admitted * basin.residual
    return np.concatenate([curve[None], curve + noise])


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0


def _check_designs(designs: Sequence[np.ndarray], shape: tuple[int, ...], resamples: int) -> None:
    K, p = shape
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if len(designs) != p or any(d.ndim != 2 or len(d) != K for d in designs):
        raise ValueError(f"{p} designs of {K} rows are needed, got {[d.shape for d in designs]}")


def _regress_resamples(
    optimum: np.ndarray,
    cov: np.ndarray,
    moved: np.ndarray,
    designs: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> Bootstrap:
    """Fit the law to every resample: the fitted line, new scatter of the slices, and their moved optima."""
    betas, tau2s = [], []
    for j, X in enumerate(designs):
        v = np.maximum(cov[:, j, j], 1e-16)
        fit = meta_regression(optimum[:, j], np.sqrt(v), X)
        scatter = np.sqrt(fit.tau2) * rng.standard_normal(moved.shape[:2])
        beta, tau2 = paule_mandel_many(X @ fit.beta + scatter + moved[..., j], v, X)
        betas.append(beta)
        tau2s.append(tau2)
    return Bootstrap(optimum + moved, tuple(betas), np.stack(tau2s, axis=1))


def paule_mandel_many(y: np.ndarray, v: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (B, P) and tau^2 (B,) for y (B, K) with variances v (K,) and one design X (K, P).

    Newton's method from zero: sum r^2/(v + tau^2) - (K - P) is convex and falls, so the steps never pass the
    root (DerSimonian and Kacker, Contemp. Clin. Trials 28, 2007).
    """
    df = len(v) - X.shape[1]
    q = np.linalg.qr(X)[0]  # an orthonormal basis; the coefficients follow at the end
    pairs = q[:, :, None] * q[:, None, :]
    tau2 = np.zeros(len(y))
    beta = np.zeros((len(y), X.shape[1]))
    for _ in range(NEWTON):
        w = 1 / (v + tau2[:, None])
        normal = np.tensordot(w, pairs, axes=1)
        beta = np.linalg.solve(normal, ((w * y) @ q)[..., None])[..., 0]
        squares = (y - beta @ q.T) ** 2
        excess = (w * squares).sum(axis=1) - df
        step = np.where(excess > 0, excess / np.maximum((w**2 * squares).sum(axis=1), 1e-300), 0.0)
        tau2 = tau2 + step
        if (step <= 1e-6 * tau2).all():
            break
    return np.linalg.lstsq(X, q @ beta.T, rcond=None)[0].T, tau2
