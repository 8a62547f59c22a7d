"""Rate, batch and weight decay tuned together, on grids and at random, from table to recommendation."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.optima.estimation import MethodOptions
from hyperp.analysis.optima.methods import estimate_optima
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.report.report import write_report
from hyperp.analysis.table.slices import cut_slices
from hyperp.analysis.table.validate import check_frame
from tests.analysis.law_command import one_line, run, says

OVER = ("lr", "batch_tokens", "weight_decay")
EXPONENTS = np.array([-0.4, 0.5, -0.3])
AT_1M = np.array([-6.0, 14.0, -3.0])  # log2 of the optima at 2^20 tokens
CURVATURE = np.array([[0.010, -0.003, 0.0015], [-0.003, 0.004, 0.0], [0.0015, 0.0, 0.004]])  # per octave^2
SKEW = np.array([0.0015, 0.0, 0.0003])  # per octave^3


def optima(tokens: int) -> np.ndarray:
    """Base-2 logs of the best rate, batch and weight decay."""
    return AT_1M + EXPONENTS * np.log2(tokens / 2**20)


def excess(octaves: np.ndarray) -> np.ndarray:
    """Relative excess loss of settings (n, 3) that lie so many octaves from the optimum."""
    return np.einsum("ni,ij,nj->n", octaves, CURVATURE, octaves) + octaves**3 @ SKEW


def sweep(
    design: str,
    noise: float = 0.001,
    seed: int = 0,
    slices: int = 5,
    scatter: float = 0.0,
    shift: float = 0.0,
) -> pd.DataFrame:
    """Slices at doublings of the tokens: 4 x 3 x 3 grids about whole octaves, or 40 random settings each.

    The optima scatter about their laws by `scatter` octaves. The weight decays of the first slice lie `shift`
    octaves higher than they should.
    """
    rng, frames = np.random.default_rng(seed), []
    grid = np.array(list(itertools.product((-1.5, -0.5, 0.5, 1.5), (-1.5, 0, 1.5), (-1.5, 0, 1.5))))
    for tokens in (2**k for k in range(20, 20 + slices)):
        best = optima(tokens) + scatter * rng.standard_normal(3)
        at = np.round(optima(tokens)) + (grid if design == "grid" else rng.uniform(-2, 2, (40, 3)))
        at[:, 2] += shift * (tokens == 2**20)
        loss = 3.5 * (1 + excess(at - best)) * (1 + noise * rng.standard_normal(len(at)))
        frames.append(pd.DataFrame(2.0**at, columns=OVER).assign(tokens=tokens, loss=loss, optimizer="adamw"))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("design", ["grid", "random"])
def test_each_of_three_quantities_has_its_law(design):
    law = fit_law(sweep(design, noise=5e-4), "tokens", over=OVER)
    found = [law.exponents["tokens"], *(law.also[name].exponents["tokens"] for name in OVER[1:])]
    np.testing.assert_allclose([e.value for e in found], EXPONENTS, rtol=0, atol=0.04)
    assert all(e.low < truth < e.high for e, truth in zip(found, EXPONENTS, strict=True))
    middle = [law.interval_at(law.middle, name)[0] for name in OVER]
    np.testing.assert_allclose(np.log2(middle), optima(2**22), rtol=0, atol=0.05)
    assert law.basin is not None
    np.testing.assert_allclose(
        law.basin.penalty([math.log(2), 0.0, 0.0]), excess(np.array([[1.0, 0, 0]]))[0], rtol=0.1, atol=0
    )
    np.testing.assert_allclose(
        law.basin.penalty([math.log(2)] * 3), excess(np.ones((1, 3)))[0], rtol=0.1, atol=0
    )


@pytest.mark.parametrize("design", ["grid", "random"])
def test_the_errors_of_all_three_optima_are_as_large_as_they_say(design):
    error = []
    for seed in range(25):
        slices = cut_slices(check_frame(sweep(design, 0.003, seed, scatter=0.2), sizes=OVER[2:]), over=OVER)
        frame = sweep(design, 0.0, seed, scatter=0.2)  # the same draws without noise
        exact = cut_slices(check_frame(frame, sizes=OVER[2:]), over=OVER)
        options = MethodOptions(OVER, ("tokens",))
        noisy, truth = (estimate_optima("shared", s, options).optima for s in (slices, exact))
        for one, best in zip(noisy, truth, strict=True):
            if one.state != "bracketed":
                continue
            assert one.log2_lr is not None
            assert one.se
            assert best.log2_lr is not None
            error.append((one.log2_lr - best.log2_lr) / one.se)
            error += [(one.also[n] - best.also[n]) / one.also_se[n] for n in OVER[1:]]
    assert len(error) > 0.9 * 25 * 5 * 3
    assert 0.7 < np.std(error) < 1.1
    assert 0.91 < np.mean(np.abs(error) < 2) < 0.99


def test_leaving_a_slice_out_costs_what_missing_all_three_costs():
    frame = sweep("random", scatter=0.4)
    law = fit_law(frame, "tokens", over=OVER)
    rest = fit_law(frame[frame["tokens"] < 2**24], "tokens", over=OVER)
    last, own = law.leave_one_out[-1], law.slices[-1].optimum
    assert law.basin is not None
    assert own is not None
    missed = [
        math.log(rest.interval_at({"tokens": 2**24}, n)[0] / (own.lr if n == "lr" else own.also[n]))
        for n in OVER
    ]
    assert last.loss_penalty is not None
    np.testing.assert_allclose(last.loss_penalty, law.basin.penalty(missed), rtol=0.25, atol=0)
    found = recommend_rate(law, {"tokens": 2**25})
    worst = max(
        law.basin.penalty([math.log(found.lr / found.low), math.log(b / x), math.log(w / y)])
        for (b, x), (w, y) in itertools.product(
            *[
                [(one.value, end) for end in (one.low, one.value, one.high)]
                for one in (found.also[n] for n in OVER[1:])
            ]
        )
    )
    assert found.penalty_low is not None
    np.testing.assert_allclose(found.penalty_low, worst, rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["argmin", "pool"])
def test_a_grid_of_three_has_its_rounding_in_each(method):
    """Random settings are as far apart as those of a grid of as many over the same range."""
    for design, steps in (("grid", (1.0, 1.5, 1.5)), ("random", (4 / (40 ** (1 / 3) - 1),) * 3)):
        slices = cut_slices(check_frame(sweep(design), sizes=OVER[2:]), over=OVER)
        found = [o for o in estimate_optima(method, slices, MethodOptions(OVER)).optima if o.rounding]
        assert found
        for one in found:
            errors = [one.se, *(one.also_se[name] for name in OVER[1:])]
            np.testing.assert_allclose(errors, np.array(steps) / math.sqrt(12), rtol=0.1, atol=0)


def test_what_was_not_tuned_is_named():
    frame = sweep("grid")
    with pytest.raises(ValueError, match=r"weight_decay.* was not tuned"):
        fit_law(
            frame[np.isclose(np.log2(frame["weight_decay"]) % 1, 0)].assign(weight_decay=0.1),
            "tokens",
            over=OVER,
        )
    with pytest.raises(ValueError, match="over must be lr, or lr and one or two more"):
        fit_law(frame.assign(width=64), "tokens", over=(*OVER, "width"))
    with pytest.raises(ValueError, match=r"must be lr, or .*got lr,batch_tokens,beta2"):
        fit_law(frame, "tokens", over=("lr", "batch_tokens", "beta2"))


def test_an_edge_in_the_third_quantity_says_so_and_asks_for_no_rates():
    frame = sweep("grid", noise=2e-4, shift=-4.0)
    slices = cut_slices(check_frame(frame, sizes=OVER[2:]), over=OVER)
    first, *rest = estimate_optima("shared", slices, MethodOptions(OVER, ("tokens",))).optima
    assert first.state == "edge_high"
    assert "above the highest weight_decay" in str(first.reason)
    assert first.next_rates == ()
    assert all(one.state == "bracketed" for one in rest)


def test_from_the_command_to_the_recommendation(tmp_path):
    table, law = tmp_path / "runs.csv", tmp_path / "law.json"
    sweep("random").to_csv(table, index=False)
    words = ["--tuned", ",".join(OVER)]
    check = run("check", table, *words)
    assert check.exit_code == 0
    assert "optimal weight_decay" in check.stdout
    fit = run("fit", table, "--by", "tokens", *words, "-o", law)
    assert fit.exit_code == 0, fit.stderr
    for name in OVER:
        assert f"{name} = " in fit.stdout
    answer = json.loads(run("recommend", law, "--tokens", 2**25, "--json").stdout)
    truth = dict(zip(OVER, 2.0 ** optima(2**25), strict=True))
    assert answer["low"] < truth["lr"] < answer["high"]
    for name in OVER[1:]:
        assert answer["also"][name]["low"] < truth[name] < answer["also"][name]["high"]
    shown = run("recommend", law, "--tokens", 2**25).stdout
    assert all(f"{name} = " in shown for name in OVER)
    one_line(
        run("recommend", law, "--tokens", 2**24, "--hydra"),
        2,
        "--hydra: weight_decay ... lr= ... weight_decay=",
    )
    refused = run("fit", table, "--by", "tokens", *words, "--method", "two-stage", "-o", law)
    assert refused.exit_code == 2
    assert says(refused.stderr, "two-stage tunes lr alone ... --tuned lr,batch_tokens,weight_decay")


def test_the_report_draws_what_it_can_and_says_what_it_leaves_out(tmp_path):
    law = fit_law(sweep("grid"), "tokens", over=OVER)
    paths = {path.name for path in write_report(law, tmp_path, "report", {"tokens": 2**25})}
    assert {"basins.png", "optimum-tokens.png", "leave-one-out.png"} <= paths
    assert not {"collapse.png", "rates-per-slice.png"} & paths
    text = (tmp_path / "report.md").read_text()
    assert "left out" in text
    assert "| weight_decay | tokens |" in text
