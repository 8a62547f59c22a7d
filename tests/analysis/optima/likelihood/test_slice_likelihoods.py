"""The likelihood of a slice's optimum: exact given the basin, robust to spikes, refused without one."""

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import Refusal, fit_law
from hyperp.analysis.optima.estimation import MethodOptions
from hyperp.analysis.optima.likelihood.basin import skewed_excess
from hyperp.analysis.optima.likelihood.curves import pack_rate_curves
from hyperp.analysis.optima.likelihood.mode import MISFIT, find_mode
from hyperp.analysis.optima.likelihood.tables import interpolate, tabulate
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.table.slices import cut_slices
from hyperp.analysis.table.validate import read_runs

OCTAVE = np.log(2.0)
TOKENS = tuple(2**k for k in range(20, 26))


def sweep(noise=0.001, seeds=1, rates=7, exponent=-0.4, rng_seed=0, step=1.0, tokens=TOKENS):
    """A basin like those of public sweeps, 0.8% up at one octave by curvature; grids of steps of octaves."""
    rng, rows = np.random.default_rng(rng_seed), []
    for size in tokens:
        best = exponent * np.log2(size / 2**22) - 7 + 0.05 * rng.normal()
        grid = (np.round(best / step) + np.arange(rates) - rates // 2) * step
        for seed in range(seeds):
            level = 3 * (1 + noise * rng.normal())
            for x in grid:
                excess = 0.0166 * skewed_excess(np.array((x - best) * OCTAVE), 0.9, 0.4)
                loss = level * (1 + float(excess) + noise * rng.normal())
                rows.append({"tokens": size, "lr": 2.0**x, "seed": seed, "loss": loss})
    return pd.DataFrame(rows)


def estimate(frame, by="tokens"):
    slices = cut_slices(read_runs(frame).frame)
    return slices, estimate_optima("hierarchical", slices, MethodOptions(by=(by,)))


def test_the_tables_are_the_likelihood_with_the_floor_integrated_out():
    frame = sweep()
    slices = cut_slices(read_runs(frame).frame)
    curves = pack_rate_curves(slices)
    Z = np.log([[float(s.covariates["tokens"])] for s in slices])
    Z = Z - Z.mean(axis=0)
    mode = find_mode(curves, Z)
    tables = tabulate(curves, Z, mode)
    k, c = 2, 5
    curvature = np.exp(tables.shapes[c, 0] + Z[k] @ tables.shapes[c, 3:])
    w = mode.sound[k] / (np.exp(2 * tables.log_noise[c]) + (MISFIT * mode.model[k]) ** 2)
    floors = np.linspace(0.97, 1.02, 20001)
    found = []
    for m in tables.grid[k, ::2]:
        rise = curvature * skewed_excess(curves.u[k] - m, tables.shapes[c, 1], np.exp(tables.shapes[c, 2]))
        squares = (w * (curves.y[k] - floors[:, None] * (1 + rise)) ** 2).sum(axis=1)
        found.append(-0.5 * squares.min() + np.log(np.exp(-0.5 * (squares - squares.min())).sum()))
    difference = tables.loglik[c, k, ::2] - found
    near = tables.loglik[c, k, ::2] > tables.loglik[c, k].max() - 30
    assert near.sum() >= 3
    np.testing.assert_allclose(difference[near], difference[near][0], rtol=0, atol=1e-3)


def test_interpolation_is_exact_on_parabolas_and_goes_on_straight():
    values = -((np.arange(20.0) - 7.3) ** 2)
    at = np.linspace(1, 17, 50)
    np.testing.assert_allclose(interpolate(values, np.zeros(50, int), at), -((at - 7.3) ** 2), atol=1e-9)
    beyond = interpolate(values, np.zeros(3, int), np.array([25.0, 26.0, 27.0]))
    np.testing.assert_allclose(np.diff(beyond, 2), 0.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("loss", "rate"), [(1e-3, 1.0), (1e4, 1e-7), (1.0, 1e9)])
def test_units_of_loss_and_rate_change_nothing_else(loss, rate):
    frame = sweep(rates=5)
    _, found = estimate(frame)
    _, scaled = estimate(frame.assign(loss=loss * frame["loss"], lr=rate * frame["lr"]))
    for one, other in zip(found.optima, scaled.optima, strict=True):
        ratio = np.array([other.lr, other.se]) / np.array([one.lr, one.se])
        np.testing.assert_allclose(ratio, [rate, 1.0], rtol=1e-4, atol=0)


def test_one_spike_hardly_moves_a_slice_and_none_is_left_out():
    frame = sweep(rates=7)
    _, clean = estimate(frame)
    spiked = frame.copy()
    rows = spiked.index[spiked["tokens"] == TOKENS[2]]
    spiked.loc[rows[2], "loss"] *= 1.02
    _, found = estimate(spiked)
    assert [o.state for o in found.optima] == ["bracketed"] * len(TOKENS)
    own, before = found.optima[2], clean.optima[2]
    assert abs(own.log2_lr - before.log2_lr) < 2 * before.se  # pyright: ignore
    assert any("weigh" in note for note in found.notes)
    before, after = (r.basins[0].noise or 0.0 for r in (clean, found))  # pyright: ignore
    assert 0 < after < 1.3 * before


def test_a_spike_of_one_seed_is_left_out_and_counted():
    frame = sweep(rates=5, seeds=2)
    frame["loss"] = frame["loss"].where(frame.index != 13, 1.02 * frame["loss"])
    _, found = estimate(frame)
    assert "1 run far above the other seeds left out" in found.notes
    _, clean = estimate(sweep(rates=5, seeds=2))
    for one, other in zip(found.optima, clean.optima, strict=True):
        assert abs(one.log2_lr - other.log2_lr) < 1.0 * other.se  # pyright: ignore


def test_a_finished_run_that_blew_up_is_a_diverged_one():
    frame = sweep(rates=7)
    hot = frame.groupby("tokens")["lr"].transform("max") == frame["lr"]
    blown = frame.assign(loss=frame["loss"].where(~hot, 2.5 * frame["loss"]))
    rest = frame.assign(status=np.where(hot, "diverged", "finished"), loss=frame["loss"].where(~hot))
    _, found = estimate(blown)
    _, expected = estimate(rest)
    assert any(note.startswith("6 runs marked finished blew up") for note in found.notes)
    for one, other in zip(found.optima, expected.optima, strict=True):
        np.testing.assert_allclose(one.log2_lr, other.log2_lr, rtol=0, atol=1e-6)  # pyright: ignore


def test_runs_that_are_left_out_are_counted_where_the_other_rows_are():
    frame = sweep(rates=7, seeds=2)
    hot = (frame.groupby("tokens")["lr"].transform("max") == frame["lr"]) & (frame["seed"] == 1)
    blown = frame.assign(loss=frame["loss"].where(~hot, 2.5 * frame["loss"]))
    spike = blown["loss"].where(blown.index != 3, 1.02 * blown["loss"])
    law = fit_law(blown.assign(loss=spike, status="finished"), "tokens")
    assert law.dropped == {"finished, blew up": 6, "finished, far above the other seeds": 1}
    assert law.slices[0].dropped == {"finished, blew up": 1, "finished, far above the other seeds": 1}
    assert law.slices[1].dropped == {"finished, blew up": 1}
    (first,) = [p for p in law.slices[0].points if p.lr == frame.loc[3, "lr"]]
    assert first.seeds == 1
    assert fit_law(frame, "tokens").dropped == {}


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_that_blew_up_takes_no_noisy_run_with_it(seeds):
    """Its loss lifts the means of its rate and seed; at 6% of noise, 15% above the best is nothing."""
    frame = sweep(rates=7, seeds=seeds)
    rng = np.random.default_rng(0)
    frame["loss"] *= np.exp(0.06 * rng.normal(size=len(frame)))
    hot = frame[frame["tokens"] == frame["tokens"].min()]["lr"].idxmax()
    frame.loc[hot, "loss"] *= 8
    law = fit_law(frame.assign(status="finished"), "tokens")
    assert sum(law.dropped.values()) == 1, law.dropped
    assert sum(law.slices[0].dropped.values()) == 1


def test_a_size_may_have_the_name_of_a_part_of_the_basin():
    frame = sweep(rates=5).rename(columns={"tokens": "noise"})
    law, same = fit_law(frame, "noise"), fit_law(sweep(rates=5), "tokens")
    assert law.basin is not None
    assert same.basin is not None
    assert list(law.basin.bend_errors.values()) == list(same.basin.bend_errors.values())
    assert law.basin.errors == same.basin.errors


def test_a_diverged_rate_bounds_the_optimum_from_above():
    frame = sweep(rates=7)
    part = frame[frame["lr"] <= frame.groupby("tokens")["lr"].transform("median") / 2]
    wall = part.groupby("tokens", as_index=False).agg(lr=("lr", "max"), seed=("seed", "first"))
    wall = wall.assign(lr=1.5 * wall["lr"], status="diverged")
    both = pd.concat([part.assign(status="finished"), wall])
    _, open_ended = estimate(part)
    slices, bounded = estimate(both)
    for one, other, cut in zip(bounded.optima, open_ended.optima, slices, strict=True):
        assert one.state == "edge_high"
        assert one.log2_lr < np.log2(cut.diverged[0]) + 0.4  # pyright: ignore
        assert one.log2_lr < other.log2_lr  # pyright: ignore


def test_two_valleys_in_every_slice_are_a_refusal_and_in_one_a_reason():
    frame = sweep(rates=9, noise=5e-4)
    octaves = np.log2(frame["lr"]) - frame.groupby("tokens")["lr"].transform(lambda x: np.log2(x).mean())
    hump = 1 + 0.04 * np.exp(-0.5 * ((octaves + 1.5) / 0.7) ** 2)
    humped = frame.assign(loss=frame["loss"] * hump)
    with pytest.raises(Refusal, match="every slice has two valleys") as caught:
        fit_law(humped, "tokens")
    assert len(caught.value.points) == len(TOKENS)
    both = pd.concat([humped.assign(optimizer="muon"), frame.assign(optimizer="adamw")])
    _, found = estimate(both)
    assert {o.state for o in found.optima[: len(TOKENS)]} == {"bracketed"}
    assert {o.state for o in found.optima[len(TOKENS) :]} == {"not_convex"}
    one = frame["tokens"] == TOKENS[3]
    _, found = estimate(frame.assign(loss=frame["loss"] * np.where(one, hump, 1.0)))
    assert [o.state for o in found.optima].count("bracketed") == len(TOKENS) - 1
    assert found.optima[3].state == "not_convex"
    assert "falls again" in str(found.optima[3].reason)


def test_noise_alone_makes_no_second_valley():
    states = []
    for rng_seed in range(15):
        _, found = estimate(sweep(noise=0.005, rates=9, step=0.5, rng_seed=rng_seed))
        states += [o.state for o in found.optima]
    assert states.count("not_convex") <= 0.03 * len(states)


def test_three_rates_and_no_second_seed_have_a_wide_answer_and_no_certainty():
    """Two sizes, three rates: nothing tells the noise, so its prior does."""
    rows = [(64, 0.01, 3.65), (64, 0.02, 3.612), (64, 0.04, 3.63)]
    rows += [(128, 0.01, 3.421), (128, 0.02, 3.405), (128, 0.04, 3.452)]
    _, found = estimate(pd.DataFrame(rows, columns=["width", "lr", "loss"]), "width")
    for one in found.optima:
        assert one.state == "bracketed"
        assert one.se is not None
        assert one.se > 0.03


def test_a_slice_s_own_interval_holds_its_optimum():
    held = []
    for rng_seed in range(25):
        rng = np.random.default_rng(rng_seed)
        rows, best = [], rng.uniform(-0.5, 0.5, 3)
        for k, b in enumerate(best):
            for u in np.arange(-3, 4) / 2:
                d = u - b
                noise = 1 + 0.001 * rng.standard_normal()
                rows.append((32 * 2**k, 0.01 * 2**u, 3 * (1 + 0.004 * d**2 + 0.0008 * d**3) * noise))
        _, found = estimate(pd.DataFrame(rows, columns=["width", "lr", "loss"]), "width")
        for one, b in zip(found.optima, best, strict=True):
            if one.state == "bracketed":
                assert one.low is not None
                assert one.high is not None
                held.append(one.low <= 0.01 * 2**b <= one.high)
    assert len(held) > 65
    assert np.mean(held) >= 0.88  # two standard errors below 95%


def test_four_widths_of_three_rates_have_a_law_near_zero():
    rows = [
        (width, lr, floor + up)
        for width, floor in ((128, 3.5), (256, 3.3), (512, 3.11), (1024, 2.9))
        for lr, up in ((0.0005, 0.11), (0.001, 0.0), (0.002, 0.08))
    ]
    law = fit_law(pd.DataFrame(rows, columns=["width", "lr", "loss"]), "width")
    e = law.exponents["width"]
    assert abs(e.value) < 0.05
    assert e.high - e.low > 0.05


def test_optima_read_off_a_grid_are_known_to_half_a_step():
    widths = [128, 256, 512, 1024, 2048]
    halves = pd.DataFrame({"width": widths, "lr": [9.77e-4, 4.88e-4, 2.44e-4, 1.22e-4, 6.1e-5]})
    equal = halves.assign(lr=1e-3)
    for frame, words in ((halves, "a factor of 2 apart"), (equal, "all optima are equal")):
        law = fit_law(frame, "width", given=True)
        assert any(words in line for line in law.warnings)
        _, low, high = law.interval_at({"width": 8192})
        assert high / low > 2
    exact = fit_law(halves.assign(se=0.02), "width", given=True, se="se")
    _, low, high = exact.interval_at({"width": 8192})
    assert high / low < 1.6
    with pytest.raises(ValueError, match="se must be a positive standard error of ln lr"):
        fit_law(halves.assign(se=-1.0), "width", given=True, se="se")
    with pytest.raises(ValueError, match="se must be a column of the table"):
        fit_law(halves, "width", given=True, se="error")
