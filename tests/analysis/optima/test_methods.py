"""Every method finds the optimum of each slice where the truth is known."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.optima.estimation import MethodOptions
from hyperp.analysis.optima.methods import POOL, estimate_optima
from hyperp.analysis.table.slices import Slice, cut_slices
from hyperp.analysis.table.validate import Runs, check_frame
from hyperp.analysis.vocabulary import METHODS
from tests.paths import PUBLIC_SWEEPS

TRUTH = -4.7 - 0.5 * np.arange(-1, 4)  # log2 of the ladder's optima


def _where(found) -> np.ndarray:
    assert all(o.state == "bracketed" for o in found.optima)
    return np.array([o.log2_lr for o in found.optima])


@pytest.mark.parametrize(
    ("name", "off"), [("shared", 0.05), ("two-stage", 0.15), ("pool", 0.6), ("argmin", 0.6)]
)
def test_optima_of_skewed_basins_are_found(make_ladder, name, off):
    slices = cut_slices(check_frame(make_ladder(noise=2e-4)))
    assert np.abs(_where(estimate_optima(name, slices, MethodOptions(by=("tokens",)))) - TRUTH).max() < off


@pytest.mark.parametrize("name", METHODS)
def test_an_optimum_does_not_depend_on_the_order_of_slices_or_on_other_contexts(make_ladder, name):
    options = MethodOptions(by=("tokens",))
    slices = cut_slices(check_frame(make_ladder()))
    context = {**slices[0].context, "optimizer": "adamw"}
    other = cut_slices(
        check_frame(make_ladder(log2_at_64k=-8.0, octaves=(-12, -4), depth=0.03, context=context))
    )
    alone, mixed = (
        estimate_optima(name, slices, options),
        estimate_optima(name, [*other, *slices[::-1]], options),
    )
    np.testing.assert_allclose(_where(mixed)[:4:-1], _where(alone), rtol=0, atol=1e-6)


def test_rate_and_batch_are_found_together(make_ladder):
    """The valley is tilted: the best rate at a batch grows with the batch."""
    rng = np.random.default_rng(0)
    frames = []
    for k, tokens in enumerate((2**15, 2**16, 2**17, 2**18)):
        x, b = (grid.ravel() for grid in np.meshgrid(np.arange(-9.0, -1.0), np.arange(7.0, 14.0)))
        u, v = x + 5 + 0.3 * k, b - 10.2 - 0.5 * k
        loss = (3 - 0.1 * k) * (1 + 0.01 * (u - 0.3 * v) ** 2 + 0.004 * v**2 + 2e-4 * rng.normal(size=len(x)))
        frames.append(pd.DataFrame({"tokens": tokens, "lr": 2.0**x, "batch_tokens": 2.0**b, "loss": loss}))
    over = ("lr", "batch_tokens")
    slices = cut_slices(check_frame(pd.concat(frames)), over=over)
    found = estimate_optima("shared", slices, MethodOptions(over=over, by=("tokens",)))
    np.testing.assert_allclose(_where(found), -5 - 0.3 * np.arange(4), rtol=0, atol=0.05)
    batch = [o.also["batch_tokens"] for o in found.optima]
    np.testing.assert_allclose(batch, 10.2 + 0.5 * np.arange(4), rtol=0, atol=0.08)
    assert all(0 < o.also_se["batch_tokens"] < 0.1 for o in found.optima)
    for name in ("pool", "argmin"):
        rough = estimate_optima(name, slices, MethodOptions(over=over))
        np.testing.assert_allclose([o.also["batch_tokens"] for o in rough.optima], batch, rtol=0, atol=0.8)
    with pytest.raises(ValueError, match=r"two-stage.*got over=.lr,batch_tokens"):
        estimate_optima("two-stage", slices, MethodOptions(over=over))


def test_a_pool_counts_every_run_near_the_best_once():
    lr = 2.0 ** np.arange(-8, 0)
    loss = 3 * (1 + np.array([0.05, 0.02, 0.9 * POOL, 0.0, 0.5 * POOL, 0.9 * POOL, 0.02, 0.05]))
    one = Slice({"optimizer": ""}, {"tokens": 1}, lr, np.zeros(8, dtype=int), loss, {}, (), None)
    (found,) = estimate_optima("pool", [one], MethodOptions()).optima
    assert (found.runs, found.rates) == (4, tuple(lr[2:6]))
    np.testing.assert_allclose(found.log2_lr, -4.5, rtol=0, atol=1e-12)  # pyright: ignore
    (best,) = estimate_optima("argmin", [one], MethodOptions()).optima
    assert best.log2_lr == -5


def test_a_flat_curve_has_no_optimum_by_any_method():
    lr = 2.0 ** np.arange(-8, 0)
    one = Slice({"optimizer": ""}, {"tokens": 1}, lr, np.zeros(8, dtype=int), np.full(8, 3.0), {}, (), None)
    assert all(
        estimate_optima(name, [one], MethodOptions()).optima[0].state != "bracketed" for name in METHODS
    )


@pytest.mark.parametrize("seed_shift", [0.0, 0.2])
def test_the_interval_of_a_slice_holds_though_seeds_move_the_optimum(make_ladder, seed_shift):
    held = []
    for rng_seed in range(60):
        noise = {"seed_shift": seed_shift, "noise": 1e-3, "rng_seed": rng_seed}
        found = estimate_optima(
            "shared", cut_slices(check_frame(make_ladder(**noise))), MethodOptions(by=("tokens",))
        )
        assert all(o.low is not None and o.high is not None for o in found.optima)
        held += [o.low <= 2.0**t <= o.high for o, t in zip(found.optima, TRUTH, strict=True)]  # pyright: ignore
    assert 0.88 <= np.mean(held) <= 0.995


def _sweep(rng: np.random.Generator, optima: np.ndarray, octaves: np.ndarray, seeds: int = 1) -> list[Slice]:
    """Widths with these optima, in octaves above 0.01: basins a little steeper above them, noise of 0.1%."""
    slices = []
    for k, best in enumerate(optima):
        u, seed = (grid.ravel() for grid in np.meshgrid(octaves, np.arange(seeds), indexing="ij"))
        level = 3 * (1 + 0.005 * rng.standard_normal(seeds))[seed]
        loss = level * (1 + 0.004 * (u - best) ** 2 + 0.0008 * (u - best) ** 3)
        loss *= 1 + 0.001 * rng.standard_normal(len(u))
        slices.append(Slice({"optimizer": ""}, {"width": 32 * 2**k}, 0.01 * 2**u, seed, loss, {}, (), None))
    return slices


@pytest.mark.parametrize(("widths", "seeds"), [(3, 1), (8, 1), (3, 3)])
def test_the_interval_of_a_slice_holds_the_error_of_the_shape_too(widths, seeds):
    """With the shape taken for known, it holds 82%, 79% and 81%."""
    held = []
    for sweep in range(80):
        rng = np.random.default_rng([sweep, widths, seeds])
        best = rng.uniform(-0.5, 0.5, widths)
        slices = _sweep(rng, best, np.arange(-3, 4) / 2, seeds)
        for o, b in zip(estimate_optima("shared", slices, MethodOptions()).optima, best, strict=True):
            assert o.low is not None
            assert o.high is not None
            held.append(o.low <= 0.01 * 2**b <= o.high)
    assert 0.915 <= np.mean(held) <= 0.985


@pytest.mark.parametrize("name", ["shared", "two-stage"])
def test_an_error_without_a_degree_of_freedom_is_unknown_unless_seeds_tell_it(name):
    octaves, best = np.array([-1.0, 0.0, 1.0]), np.array([0.1, -0.2])
    one = estimate_optima(name, _sweep(np.random.default_rng(0), best, octaves), MethodOptions())
    assert [o.state for o in one.optima] == ["bracketed"] * 2
    assert all((o.se, o.low, o.high, o.df) == (None, None, None, 0) for o in one.optima)
    assert "2 of 2 slices" in one.notes[-1]
    assert "degree of freedom" in one.notes[-1]
    two = estimate_optima(name, _sweep(np.random.default_rng(0), best, octaves, seeds=2), MethodOptions())
    assert all(o.se and o.low and o.high and o.df == 2 for o in two.optima)
    assert not two.notes


def test_seeds_that_tell_the_noise_alone_give_intervals_that_hold():
    held = []
    for sweep in range(150):
        rng = np.random.default_rng([3, sweep])
        best = rng.uniform(-0.3, 0.3, 2)
        found = estimate_optima(
            "shared", _sweep(rng, best, np.array([-1.0, 0.0, 1.0]), 3), MethodOptions()
        ).optima
        held += [o.low <= 0.01 * 2**b <= o.high for o, b in zip(found, best, strict=True) if o.low and o.high]
    assert 0.9 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("name", ["argmin", "pool"])
def test_an_optimum_read_off_a_grid_has_the_rounding_of_half_a_step(name):
    """The sweep is finer about the bottom: steps of half an octave below it and of one above."""
    octaves = np.array([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0])
    loss = 3 * (1 + 0.01 * octaves**2)
    seed = np.zeros(6, dtype=int)
    one = Slice({"optimizer": ""}, {"width": 64}, 0.01 * 2**octaves, seed, loss, {}, (), None)
    (found,) = estimate_optima(name, [one], MethodOptions()).optima
    middle = 0.0 if name == "argmin" else -0.25  # the mean of 0 and -0.5, nearest to -0.5
    assert found.log2_lr == pytest.approx(np.log2(0.01) + middle)
    assert found.rounding is not None
    assert found.se == pytest.approx(found.rounding / np.sqrt(3))
    assert found.rounding == pytest.approx(0.375 if name == "argmin" else 0.25)
    assert (found.low, found.high, found.df) == (None, None, 0)
    (curve,) = estimate_optima("two-stage", [one], MethodOptions()).optima
    assert curve.rounding is None


@pytest.mark.parametrize("name", ["argmin", "pool"])
def test_optima_on_one_rate_of_a_grid_do_not_make_a_certain_law(name):
    rates, slices = 2.0 ** np.arange(-2, 3), []
    for k in range(4):
        loss = 3 * (1 + 0.02 * np.log2(rates) ** 2)
        frame = pd.DataFrame({"lr": 0.001 * rates, "loss": loss, "width": 128 * 2**k})
        slices.append(frame)
    law = fit_law(_runs(check_frame(pd.concat(slices))), ("width",), method=name)
    e = law.exponents["width"]
    assert e.value == pytest.approx(0, abs=1e-9)
    # Each optimum is uniform within half an octave: in doublings of width, the slope's standard error is
    # 1/sqrt(12) / sqrt(5).
    assert e.se == pytest.approx(1 / np.sqrt(12) / np.sqrt(5), rel=1e-6)
    assert law.curvature_tests["width"].p_value == pytest.approx(1)
    assert not [line for line in law.warnings if "lies" in line]


def test_three_rates_a_slice_identify_no_skew_and_still_a_bottom():
    """Four widths, three rates an octave apart, every curve 2 to 4% up on both sides."""
    up = {128: (3.61, 3.50, 3.58), 256: (3.41, 3.30, 3.37), 512: (3.22, 3.11, 3.21), 1024: (3.01, 2.90, 2.97)}
    frame = pd.DataFrame(
        [(w, lr, x) for w, losses in up.items() for lr, x in zip((5e-4, 1e-3, 2e-3), losses, strict=True)],
        columns=["width", "lr", "loss"],
    )
    law = fit_law(_runs(check_frame(frame)), ("width",), method="shared")
    e = law.exponents["width"]
    assert e.value == pytest.approx(0, abs=0.02)
    assert e.low < 0 < e.high
    assert all(one.optimum is not None and 8e-4 < one.optimum.lr < 1.3e-3 for one in law.slices)
    assert law.basin is not None
    assert abs(law.basin.coef[1]) < 0.3 * law.basin.coef[0]


def test_curvature_that_grows_with_the_covariate_is_each_slices_own(make_ladder):
    frames = [
        make_ladder(tokens=(tokens,), depth=0.01 * 2.0 ** (0.5 * k), noise=2e-4, rng_seed=k)
        for k, tokens in enumerate((32768, 65536, 131072, 262144, 524288))
    ]
    found = estimate_optima(
        "shared", cut_slices(check_frame(pd.concat(frames))), MethodOptions(by=("tokens",))
    )
    np.testing.assert_allclose(_where(found), TRUTH, rtol=0, atol=0.05)
    bends = [o.curvature / o.loss for o in found.optima]  # pyright: ignore
    np.testing.assert_allclose(bends, 0.01 * 2.0 ** (0.5 * np.arange(5)), rtol=0.15, atol=0)
    basin = found.basins[0]
    assert basin is not None
    assert basin.bend["tokens"][0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_a_size_that_hardly_varies_does_not_stop_a_law_for_another(make_ladder, name):
    odd = make_ladder(tokens=(65536,), covariates={"batch_tokens": 520})
    frame = check_frame(pd.concat([make_ladder(covariates={"batch_tokens": 512}), odd]))
    assert (
        estimate_optima(name, cut_slices(frame), MethodOptions(by=("tokens",))).optima[0].state == "bracketed"
    )
    law = fit_law(_runs(frame), ("tokens",), method=name)
    assert law.exponents["tokens"].value == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "two-stage"])
def test_a_size_that_hardly_varies_is_refused_by_every_method(name):
    """StepLaw's mixtures of experts: total N moves by a quarter of a percent."""
    path = PUBLIC_SWEEPS / "steplaw_moe_lr_bs_loss.csv"
    if not path.is_file():
        pytest.skip("the folder shared/data does not lie beside the repository")
    table = pd.read_csv(path)
    table = table[np.isfinite(table["smooth loss"])]
    sizes = {"N": table["N"], "Na": table["Na"], "tokens": table["D"], "batch_tokens": table["bs"] * 2048}
    frame = check_frame(
        pd.DataFrame({"lr": table["lr"], "loss": table["smooth loss"], **sizes}), sizes=("N", "Na")
    )
    with pytest.raises(Refusal, match="N does not vary"):
        fit_law(_runs(frame), ("N", "Na", "tokens"), method=name, over=("lr", "batch_tokens"))


def _runs(frame: pd.DataFrame) -> Runs:
    return Runs(frame, "", "")
