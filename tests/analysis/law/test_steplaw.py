"""The estimators on other people's sweeps: StepLaw's public cells and a width sweep of three optimizers.

The held-out regret of a predicted (rate, batch) is read off the cell's own grid: its losses are interpolated
linearly on the Delaunay triangles of (log rate, log batch), unscaled, and compared with its lowest one. That
is the procedure that gives the reference values for argmin, pool, per-cell quadratics and the published law.
On a regular grid either diagonal of a square is a Delaunay edge; the reference values are for runs in the
order of the file, and another order moves a mean by up to 0.01%.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import LinearNDInterpolator

from hyperp.analysis.optima.basin.fit import fit_basin
from hyperp.analysis.optima.basin.shape import LossCurves, pack_curves
from hyperp.analysis.random_effects import meta_regression
from tests.oracles.baselines import argmin_fit, pool_fit
from tests.paths import PUBLIC_SWEEPS

RATE_AND_BATCH = ((0, 1), (1,))  # StepLaw's form: rate of N and D, batch of D alone


def table(name: str) -> pd.DataFrame:
    if not (PUBLIC_SWEEPS / name).exists():
        pytest.skip(f"{name} is not in the folder shared/data beside the repository")
    return pd.read_csv(PUBLIC_SWEEPS / name)


@pytest.fixture(scope="module")
def cells() -> tuple[LossCurves, np.ndarray]:
    """The 17 dense cells and their (ln N, ln D)."""
    frame = table("steplaw_dense_lr_bs_loss.csv")
    groups = frame.groupby(["N", "D"])
    U = np.log(np.column_stack([frame["lr"], frame["bs"] * 2048.0]))
    Z = np.log(np.array([key for key, _ in groups], dtype=float))
    return pack_curves(U, frame["smooth loss"].to_numpy(), groups.ngroup().to_numpy()), Z


def regret(curves: LossCurves, k: int, at: np.ndarray) -> float:
    """Relative excess loss of cell k at the log (rate, batch) `at`; the nearest run's outside the grid."""
    rows = np.argsort(np.where(curves.row[k] < 0, np.iinfo(int).max, curves.row[k]))
    rows = rows[: int((curves.count[k] > 0).sum())]
    u, loss = curves.u[k, rows], curves.loss[k, rows]
    value = LinearNDInterpolator(u, loss)(at).item()
    nearest = loss[np.square(u - at).sum(axis=1).argmin()]
    return (value if np.isfinite(value) else nearest) / loss.min() - 1


def leave_one_out(cells: tuple[LossCurves, np.ndarray], predict) -> np.ndarray:
    """Regrets in % of loss; `predict(curves, Z, z)` sees all cells but one and gives its log optimum."""
    curves, Z = cells
    found = []
    for k in range(len(Z)):
        rest = np.arange(len(Z)) != k
        found.append(100 * regret(curves, k, predict(curves.select(rest), Z[rest], Z[k])))
    return np.array(found)


def shared(curves: LossCurves, Z: np.ndarray, z: np.ndarray) -> np.ndarray:
    real = curves.count > 0
    owner = np.nonzero(real)[0]
    basin = fit_basin(curves.u[real], curves.loss[real], owner)
    used = basin.bracketed
    X = np.column_stack([np.ones(used.sum()), Z[used] - z])
    return np.array([meta_regression(basin.optimum[used, j], basin.se[used, j], X).beta[0] for j in range(2)])


def test_pool_gives_the_published_recipes_numbers(cells):
    curves, Z = cells
    rate, batch = pool_fit(curves, Z, RATE_AND_BATCH)
    assert np.exp(rate.beta[0]) == pytest.approx(77.7, abs=0.05)
    np.testing.assert_allclose(rate.beta[1:], [-0.766, 0.197], atol=5e-4, rtol=0)
    assert np.exp(batch.beta[0]) == pytest.approx(0.209, abs=5e-4)
    assert batch.beta[1] == pytest.approx(0.613, abs=5e-4)


@pytest.mark.parametrize(("method", "mean", "most"), [(argmin_fit, 0.131, 0.31), (pool_fit, 0.108, 0.24)])
def test_the_regret_of_the_baselines_is_the_reference(cells, method, mean, most):
    def predict(curves, Z, z):
        return np.array([line.predict(z) for line in method(curves, Z, RATE_AND_BATCH)])

    found = leave_one_out(cells, predict)
    assert found.mean() == pytest.approx(mean, abs=6e-4)
    assert found.max() == pytest.approx(most, abs=6e-3)


def test_shared_loses_less_on_held_out_cells(cells):
    found = leave_one_out(cells, shared)
    assert found.mean() <= 0.085
    assert found.max() <= 0.20


def test_the_middle_of_the_other_cells_is_worse_than_any_law(cells):
    found = leave_one_out(cells, lambda curves, Z, z: curves.best.mean(axis=0))
    assert found.mean() > 2 * 0.131


def test_width_exponents_of_three_optimizers():
    frame = table("sso_mup_lr_sweep.csv")
    found = {}
    for optimizer, rows in frame.groupby("optimizer"):
        u, loss = np.log(rows["lr"].to_numpy()), rows["loss"].to_numpy()
        found[optimizer] = fit_basin(u, loss, rows["hidden_size"].to_numpy())
    assert found["adamw"].states == ("bracketed", "not_convex", "not_convex", "bracketed")
    X = np.column_stack([np.ones(4), np.log([256, 512, 1024, 2048])])
    sphere, muon = (
        meta_regression(found[name].optimum[:, 0], found[name].se[:, 0], X) for name in ("spball", "muon")
    )
    assert sphere.beta[1] == pytest.approx(-0.07, abs=0.01)
    assert muon.beta[1] == pytest.approx(0.05, abs=0.03)
    np.testing.assert_allclose(
        np.exp(found["spball"].optimum[:, 0]), [0.0112, 0.0108, 0.0106, 0.0098], atol=0, rtol=0.05
    )
