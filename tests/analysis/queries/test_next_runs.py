"""The next runs shrink the interval as much as promised, and a sweep can run the file that names them."""

import math
import shlex
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hyperp.analysis import fit_law
from hyperp.analysis.errors import Refusal
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.knowledge import law_knowledge
from hyperp.analysis.queries.next_runs import next_runs
from hyperp.analysis.queries.points_file import run_command, save_points
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.queries.slice_rates import KNOWN_CURVATURE, KNOWN_SKEW, choose_rates, slice_error
from hyperp.analysis.report.text.next_runs import require_value, value_lines
from hyperp.analysis.table.validate import Runs
from hyperp.sweeps.plan.plan import make_plan


def _law(frame: pd.DataFrame, by=("tokens",)) -> Law:
    return fit_law(Runs(frame, "runs.parquet", "0" * 64), list(by))


@pytest.fixture(scope="module")
def law(make_ladder) -> Law:
    return _law(make_ladder(seed_shift=0.05, noise=0.001))


def test_the_width_now_is_that_of_the_recommendation(law):
    found = next_runs(law, {"tokens": 2**22})
    _, low, high = law.interval_at({"tokens": 2**22})
    np.testing.assert_allclose(found.width, high / low, rtol=1e-9, atol=0)


def test_each_slice_shrinks_the_interval_and_none_is_run_twice(law):
    found = next_runs(law, {"tokens": 2**24}, count=2)
    widths = [found.width, *(c.width for c in found.choices)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.95 * widths[0]
    sizes = [c.covariates["tokens"] for c in found.choices]
    assert len({*sizes, *(s.covariates["tokens"] for s in law.slices)}) == 7


def test_only_new_sizes_are_chosen_among_those_of_a_plan(law):
    known = law.slices[0].covariates
    done = [s.covariates["tokens"] for s in law.slices]
    among = [{"tokens": t} for t in (*done, 3 * 2**17, 2**21)] + [
        {"tokens": 2**21, "width": 2 * known["width"]}
    ]
    found = next_runs(law, {"tokens": 2**22}, count=9, among=among)
    assert sorted(c.covariates["tokens"] for c in found.choices) == [3 * 2**17, 2**21]
    assert {c.covariates["width"] for c in found.choices} == {known["width"]}
    assert not next_runs(law, {"tokens": 2**22}, among=[{"tokens": done[0]}]).choices
    with pytest.raises(ValueError, match=r"among must .*tokens.*, got experts"):
        next_runs(law, {"tokens": 2**22}, among=[{"experts": 4}])


def test_the_promise_is_the_interval_of_a_regression_with_that_slice(law):
    """The same variances, one row more: ordinary least squares from scratch gives the promised width."""
    found = next_runs(law, {"tokens": 2**22}, count=1)
    extra = found.choices[0].covariates["tokens"]
    logs = np.log([*(s.covariates["tokens"] for s in law.slices), extra])
    X = np.column_stack([np.ones(len(logs)), logs])
    errors = np.array([s.optimum.se or 0.0 for s in law.slices if s.optimum]) * math.log(2)
    v = np.append(errors**2, law.slice_sd**2) + law.tau**2
    x = np.array([1.0, math.log(2**22)])
    cov = np.linalg.inv(X.T @ (X / v[:, None]))
    from scipy.stats import t

    half = t.ppf(0.975, len(logs) - 2) * math.sqrt(x @ cov @ x + law.tau**2 + law.slice_sd**2)
    np.testing.assert_allclose(found.choices[0].width, math.exp(2 * half), rtol=0.05, atol=0)


def test_three_rates_an_octave_apart_lie_about_the_predicted_optimum(law):
    choice = next_runs(law, {"tokens": 2**22}, count=1).choices[0]
    rate, low, high = law.interval_at(choice.covariates)
    assert (choice.low, choice.high, choice.basin_known) == (low, high, True)
    np.testing.assert_allclose(choice.rates, rate * np.array([0.5, 1.0, 2.0]), rtol=1e-3, atol=0)


def _with_errors(law: Law, points: int | None = None, **errors: float) -> Law:
    """The law with other errors of its basin, or with so many rates in every slice."""
    old: Any = law.basin
    own = {name: error for name, error in errors.items() if name in old.errors}
    bends = {name: error for name, error in errors.items() if name in old.bend}
    assert own.keys() | bends.keys() == errors.keys()
    changed = {"errors": {**old.errors, **own}, "bend_errors": {**old.bend_errors, **bends}}
    basin = old.model_copy(update=changed)
    slices = law.slices
    if points is not None:
        slices = [s.model_copy(update={"points": s.points[:points]}) for s in slices]
    return law.model_copy(update={"basin": basin, "slices": slices})


def test_rates_are_dense_unless_the_basin_is_known(law):
    sizes = {**law.slices[0].covariates, "tokens": 2**21}
    dense = [
        _with_errors(law, curvature=KNOWN_CURVATURE * 1.01),
        _with_errors(law, skew=KNOWN_SKEW * 1.01),
        _with_errors(law, tokens=1.0),  # the curvature at this size is not known
        _with_errors(law, points=3),  # no slice tested the basin's form
        law.model_copy(update={"basin": None}),
    ]
    for one in dense:
        found = choose_rates(one, sizes)
        assert not found.basin_known
        steps = np.diff(np.log2([p.lr for p in one.slices[0].points]))
        np.testing.assert_allclose(np.diff(np.log2(found.rates)), steps[0], rtol=0.01, atol=0)
        assert found.rates[-1] >= 7.9 * found.rates[0]
    assert choose_rates(law, sizes).basin_known


@pytest.mark.parametrize(("half_width", "rates"), [(0.3, 3), (0.6, 4), (1.2, 5), (2.0, 6), (60.0, 9)])
@pytest.mark.parametrize("known", [True, False])
def test_more_rates_bracket_a_wider_interval(law, monkeypatch, half_width, rates, known):
    """The ends of the interval stay half an octave inside the outer rates, up to four octaves each side."""
    ends = (0.01, 0.01 * 2.0**-half_width, 0.01 * 2.0**half_width)
    monkeypatch.setattr(type(law), "interval_at", lambda *_: ends)
    one = law if known else _with_errors(law, curvature=1.0)
    found = choose_rates(one, law.slices[0].covariates)
    octaves = np.log2(np.array(found.rates) / 0.01)
    inside = min(half_width, 3.5) + 0.5
    assert octaves[0] <= -inside + 1e-3
    assert octaves[-1] >= inside - 1e-3
    assert np.diff(octaves).max() <= 1.001
    assert len(found.rates) == rates if known else len(found.rates) <= 9


def test_the_error_of_a_slice_like_those_of_the_law_is_theirs(law):
    """The error from basin and noise, before any run, agrees with that of the slices that were run."""
    used = [s for s in law.slices if s.used]
    for one in used:
        rates = [p.lr for p in one.points]
        error: Any = slice_error(law, one.covariates, rates, one.points[0].seeds)
        np.testing.assert_allclose(error, law.slice_sd, rtol=0.5, atol=0)
        few: Any = slice_error(
            law, one.covariates, choose_rates(law, one.covariates).rates, one.points[0].seeds
        )
        assert error < few < 3 * error


def test_a_slice_costs_its_runs(law):
    """The cost is in units of the dearest slice of the law, so it is a ratio of sizes times one of runs."""
    choice: Any = next_runs(law, {"tokens": 2**22}, count=1).choices[0]
    dearest = max(law.slices, key=lambda s: s.covariates["tokens"])
    runs = sum(p.seeds for p in dearest.points)
    ratio = choice.covariates["tokens"] / dearest.covariates["tokens"]
    np.testing.assert_allclose(choice.cost, ratio * len(choice.rates) * choice.seeds / runs, rtol=1e-9)


def test_the_expected_excess_is_that_of_draws_from_the_posterior(law):
    goal = {"tokens": 2**24}
    found: Any = next_runs(law, goal, count=2)
    known, basin = law_knowledge(law), law.basin.at(goal)
    rng = np.random.default_rng(0)
    mean, variance = known.moments(goal)
    part = rng.choice(len(known.weight), p=known.weight, size=20_000)
    optimum = rng.normal(mean[part], np.sqrt(variance + known.scatter)[part])
    miss = math.log(law.interval_at(goal)[0]) - optimum
    drawn = np.mean([basin.penalty(m) for m in miss])
    np.testing.assert_allclose(found.value.excess, drawn, rtol=0.03, atol=0)
    excess = [found.value.excess, *(c.value.excess for c in found.choices)]
    assert excess == sorted(excess, reverse=True)
    assert found.value.scatter <= excess[-1]  # which no slice can save
    for before, choice in zip(excess, found.choices, strict=False):
        np.testing.assert_allclose(choice.value.saving, before - choice.value.excess, rtol=1e-9, atol=0)


def test_a_slice_is_worth_its_flops_if_they_buy_less_in_the_run_itself(law):
    found: Any = next_runs(law, {"tokens": 2**24}, count=1)
    total, one = found.value, found.choices[0]
    sizes = one.covariates
    parameters = 12 * sizes["width"] ** 2 * sizes.get("depth", 1)
    runs = len(one.rates) * one.seeds
    np.testing.assert_allclose(one.value.flops, 6 * parameters * sizes["tokens"] * runs, rtol=1e-12)
    np.testing.assert_allclose(total.flops, 6 * parameters * 2**24, rtol=1e-12)
    bought = 1 - (1 + one.value.flops / total.flops) ** -total.gain
    np.testing.assert_allclose(one.value.same_flops, bought, rtol=1e-9)
    np.testing.assert_allclose(one.value.saving_per_1e18, one.value.saving / one.value.flops * 1e18)
    assert one.value.worth == (one.value.saving > bought)
    for gain, worth in ((1e-9, True), (10.0, False)):
        priced: Any = next_runs(law, {"tokens": 2**24}, count=1, gain=gain).choices[0]
        assert priced.value.worth is worth
    with pytest.raises(ValueError, match=r"gain must .* got -1"):
        next_runs(law, {"tokens": 2**24}, gain=-1)


def test_worth_is_not_known_without_parameters_and_value_not_without_a_basin(make_ladder):
    frame = make_ladder(seed_shift=0.05, noise=0.001).drop(columns=["width", "depth"], errors="ignore")
    found: Any = next_runs(_law(frame))
    assert found.value.flops is None
    assert all((c.value.flops, c.value.worth) == (None, None) and c.value.saving > 0 for c in found.choices)
    assert "FLOPs is not known" in "".join(value_lines(found))
    plain = _law(frame).model_copy(update={"basin": None})  # as of a table of optima
    bare = next_runs(plain)
    assert bare.value is None
    with pytest.raises(ValueError, match=r"--value needs .*hierarchical"):
        require_value(plain, bare)


def test_points_carry_what_is_tuned_beside_the_rate(make_ladder):
    rows = []
    for batch in (256, 512, 1024, 2048):
        part = make_ladder(tokens=(2**17, 2**18, 2**19, 2**20), seed_shift=0.02, noise=0.001)
        away = np.log2(batch / (512 * (part["tokens"] / 2**17) ** 0.3))
        rows.append(part.assign(batch_tokens=batch, loss=part["loss"] * (1 + 0.01 * away**2)))
    frame = pd.concat(rows)
    law = fit_law(Runs(frame, "runs.parquet", "0" * 64), ["tokens"], over=["lr", "batch_tokens"])
    found = next_runs(law, {"tokens": 2**22}, count=1)
    choice = found.choices[0]
    batch = choice.also["batch_tokens"]
    predicted = law.interval_at(choice.covariates, "batch_tokens")[0]
    assert batch % 256 == 0  # as all batches that were run
    assert abs(batch - predicted) <= 128
    assert not choice.basin_known
    assert found.points[-1]["batch_tokens"] == batch
    with pytest.raises(Refusal) as refused:
        recommend_rate(law, {"tokens": 2**26})
    assert refused.value.points[0]["batch_tokens"] % 256 == 0


def test_a_censored_slice_of_the_law_comes_first(make_ladder):
    edge = make_ladder(tokens=(2**20,), octaves=(-5, -1))
    found = next_runs(_law(pd.concat([make_ladder(seed_shift=0.05), edge])))
    assert [p["tokens"] for p in found.bracket] == [2**20]
    assert max(found.bracket[0]["lr"]) < 2**-5
    assert found.points[0] == found.bracket[0]
    assert found.target["tokens"] == 8 * 2**20  # the one-sided slice is part of the law


def test_the_file_holds_every_run_once(law, tmp_path):
    found = next_runs(law, {"tokens": 2**22})
    assert save_points(found.points, tmp_path / "points.yaml", "further slices")
    rows = yaml.safe_load((tmp_path / "points.yaml").read_text())["blocks"]["points"]["points"]
    assert len(rows) == sum(len(c.rates) * c.seeds for c in found.choices)
    assert len({tuple(sorted(row.items())) for row in rows}) == len(rows)
    assert all(isinstance(row["base_lr"], float) and isinstance(row["scale.tokens"], int) for row in rows)
    assert {row["seed"] for row in rows} == {0, 1}
    assert not save_points([{"tokens": 5, "lr": []}], tmp_path / "none.yaml", "nothing")
    assert not (tmp_path / "none.yaml").exists()


def test_runs_of_two_optimizers_are_two_blocks_that_say_so(tmp_path):
    points = [
        {"optimizer": name, "schedule": "linear", "tokens": 5, "lr": [0.1]} for name in ("muonh", "lion")
    ]
    assert save_points(points, tmp_path / "points.yaml", "both")
    text = (tmp_path / "points.yaml").read_text()
    assert "# not in hyperp-train: optimizer=lion;" in text
    blocks = yaml.safe_load(text)["blocks"]
    assert blocks["points"]["overrides"] == ["optim=muonh", "schedule=linear"]
    assert blocks["points1"]["overrides"] == [
        "schedule=linear"
    ]  # a table from elsewhere: no such option here
    assert [len(block["points"]) for block in blocks.values()] == [1, 1]


POINTS = [{"optimizer": "muonh", "tokens": 131072, "width": 32, "lr": [0.01, 0.02]}]


def _plan_of(path, words: list[str]):
    """The plan of the printed command, with OVERRIDES replaced by those of a sweep."""
    command = shlex.split(run_command(path))
    assert command[:2] == ["hyperp-sweep", "run"]
    at = command.index("OVERRIDES")
    return make_plan([*command[2:at], *words, *command[at + 1 :]])


def _own_sweep(folder) -> str:
    """The override that adds a folder with a sweep and an experiment of the user's own."""
    for group, text in (
        ("sweep", "blocks: {own: {grid: {scale.tokens: [32768]}}}\n"),
        ("experiment", "# @package _global_\ndefaults: [{override /sweep: own}]\nmodel: {context: 64}\n"),
    ):
        (folder / group).mkdir(parents=True)
        (folder / group / "own.yaml").write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize(
    "name",
    [
        "points.yaml",
        "2024/next-1.v2.yaml",
        "a, b/1e5.yaml",
        "x=(y)/it's.yaml",
        "é~/null.yaml",
        "_a/b/c.d.yaml",
    ],
)
def test_the_printed_command_runs_the_points_with_the_overrides_of_the_sweep(tmp_path, name):
    path = tmp_path / name
    assert save_points(POINTS, path, "why")
    assert "# OVERRIDES: " in path.read_text()
    own = _own_sweep(tmp_path / "own")
    plan = _plan_of(path, [own, "sweep=own", "runtime.root=runs/own"])
    assert [p.own.base_lr for p in plan.points] == [0.01, 0.02]
    assert {p.own.scale.tokens for p in plan.points} == {131072}
    assert str(plan.root) == "runs/own"  # beside the sweep's own runs


def test_searchpaths_joined_as_the_note_says_find_the_users_own_experiment(tmp_path):
    path = tmp_path / "points.yaml"
    save_points(POINTS, path, "why")
    assert len(_plan_of(path, ["+experiment=demo"]).points) == 2
    own = _own_sweep(tmp_path / "own").removeprefix("hydra.searchpath=[").removesuffix("]")
    search, *rest = shlex.split(run_command(path))[2:]
    rest = [w for w in rest if w != "OVERRIDES"]
    plan = make_plan([f"{search.removesuffix(']')},{own}]", "+experiment=own", *rest])
    assert {p.own.model.context for p in plan.points} == {64}
    assert len(plan.points) == 2


def test_a_very_small_rate_is_still_a_number(tmp_path):
    save_points([{"N": 1e9, "lr": [1e-5, 2.5e-7], "factor": 0.5}], tmp_path / "points.yaml", "small")
    rows = yaml.safe_load((tmp_path / "points.yaml").read_text())["blocks"]["points"]["points"]
    assert [row["base_lr"] for row in rows] == [2e-5, 5e-7]


@pytest.mark.parametrize(
    ("target", "count", "message"),
    [
        ({"depth": 4}, 1, "target must .* tokens, got 'depth'"),
        ({"tokens": -1}, 1, "tokens must .* got -1"),
        ({}, 0, "count must .* 1, got 0"),
    ],
)
def test_bad_targets_are_named_in_the_error(law, target, count, message):
    with pytest.raises(ValueError, match=message):
        next_runs(law, target, count)
