"""`hyperp-sweep auto` on runs whose losses follow a known law: it stops by itself, before the whole grid."""

import json
import math
import random
from dataclasses import asdict

import pytest

from hyperp.rundir import record
from hyperp.sweeps.auto import (
    MIN_SLICES,
    AutoGoal,
    bracketing_rates,
    further_rates,
    law_slices,
    nearest_rates,
    parse_until,
    search_rate,
)
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.plan.run_config import setting_hash
from hyperp.training.train import base_record

WORDS = [
    "parametrization=raw",
    "+sweep.blocks.a.grid={scale.tokens:[16384,32768,65536,131072,262144,524288,1048576],seed:[0,1]}",
    "+sweep.blocks.a.lr={center:-4.6,octaves:2,step:1,per_octave:{scale.tokens:-0.5},at:{scale.tokens:131072}}",
]


def trained(plan, scatter, away=None):
    """Write records whose losses are parabolas around 0.04 (tokens/131072)^-0.5, instead of training.

    `away` moves the optima of some sizes, in octaves.
    """
    planfile.write_plan(plan)
    for point in plan.points:
        config = point.config
        tokens, noise = config.scale.tokens, random.Random(point.run_id)
        moved = scatter * random.Random(tokens).gauss(0, 1) + (away or {}).get(tokens, 0.0)
        octaves = math.log2(config.base_lr / 0.04) + 0.5 * math.log2(tokens / 131072) - moved
        loss = 2 + 3 * (tokens / 16384) ** -0.3 + 0.02 * octaves**2 + 0.0005 * noise.gauss(0, 1)
        record.save(
            base_record(config, status="finished", loss=loss, steps=config.scale.steps), point.run_dir
        )


def searched(root, goal, scatter=0.02, words=WORDS, away=None):
    plan, steps = make_plan([*words, f"runtime.root={root}"]), []
    rounds = []

    def do(some):
        rounds.append(some)
        trained(some, scatter, away)

    return plan, search_rate(plan, goal, do, steps.append), steps, rounds


def test_the_law_is_of_the_plans_own_setting_whatever_else_lies_in_the_root(tmp_path):
    other = [*WORDS, "model.mlp_ratio=2", f"runtime.root={tmp_path}"]
    trained(make_plan(other), 0.0, dict.fromkeys((2**k for k in range(14, 21)), 3.0))
    plan, last, _, _ = searched(tmp_path, AutoGoal("tokens", 0.15, 2097152))
    law = json.loads((tmp_path / "law.json").read_text())
    assert last.half_width is not None
    assert law["where"] == {"setting": setting_hash(asdict(plan.points[0].own))}
    at_131072 = math.exp(law["a"]["value"]) * 131072 ** law["exponents"]["tokens"]["value"]
    assert at_131072 == pytest.approx(0.04, rel=0.15)


def test_it_stops_at_the_asked_interval_before_the_whole_grid_is_run(tmp_path):
    plan, last, steps, rounds = searched(tmp_path, AutoGoal("tokens", 0.15, 2097152))
    assert last.half_width is not None
    assert last.half_width <= 0.15
    assert last.reason is None
    assert last.runs < len(plan.points)
    assert all(step.half_width is None or step.half_width > 0.15 for step in steps[:-1])
    law = json.loads((tmp_path / "law.json").read_text())
    assert law["exponents"]["tokens"]["value"] == pytest.approx(-0.5, abs=0.1)
    cheapest = {point.config.scale.tokens for point in rounds[0].points}
    assert cheapest == {16384, 32768, 65536}
    ids = [point.run_id for one in rounds for point in one.points]
    assert len(ids) == len(set(ids)) == last.runs
    assert set(ids) < {
        point.run_id for point in plan.points
    }  # a plan's slices come before slices of the law's own


def test_what_another_process_planned_and_did_not_finish_is_done(tmp_path):
    goal = AutoGoal("tokens", 0.5, 2097152)
    planfile.write_plan(make_plan([*WORDS, f"runtime.root={tmp_path}"]))  # as a killed process leaves it
    _, last, between, rounds = searched(tmp_path, goal)
    ids = [point.run_id for one in rounds for point in one.points]
    assert (last.reason, len(set(ids))) == (None, last.runs)
    # Fewer slices reach the goal, but are not believed.
    assert len({point.config.scale.tokens for one in rounds for point in one.points}) == MIN_SLICES
    # The first slices at all five rates with two seeds, the others at three or four of them.
    assert 30 + 3 * 6 <= last.runs <= 30 + 3 * 8
    assert any(step.half_width is not None and step.half_width <= goal.half_width for step in between[:-1])
    _, again, steps, _ = searched(tmp_path, goal)
    assert (again.runs, len(steps)) == (last.runs, 1)  # every run is there: one fit


def test_the_other_rates_of_a_slice_are_run_only_if_its_best_rate_is_the_last(tmp_path):
    """One slice has its optimum an octave below the law, near the end of the rates that are run first."""
    goal = AutoGoal("tokens", 0.001, 2097152, rounds=3)
    plan, _, _, rounds = searched(tmp_path, goal, words=WORDS, away={131072: -1.2})
    first = [point for point in rounds[1].points if point.config.scale.tokens == 131072]
    assert len({point.config.base_lr for point in first}) < 5
    assert {point.config.scale.tokens for point in rounds[1].points} == {131072}
    more = [point for point in rounds[2].points if point.config.scale.tokens == 131072]
    assert more
    assert max(p.config.base_lr for p in more) < min(p.config.base_lr for p in first)
    assert {point.run_id for point in more} < {point.run_id for point in plan.points}
    settled = {p.config.scale.tokens for p in rounds[2].points} - {131072}
    assert settled  # a further slice in the same round


def test_planned_rates_are_the_fewest_that_bracket_the_interval():
    planned = [2.0**k for k in range(-8, 1)]
    around = [2.0**k for k in (-5, -4, -3)]
    narrow = bracketing_rates(planned, around, 2.0**-4.4, 2.0**-3.6)
    assert narrow == around
    assert bracketing_rates(planned, [2.0**k for k in (-4.7, -3.7, -2.7)], 2.0**-4.1, 2.0**-3.3) == [
        *around,
        2.0**-2,
    ]
    assert bracketing_rates(planned, around, 2.0**-9, 2.0**0) == planned
    assert bracketing_rates(planned, [2.0**3, 2.0**4, 2.0**5], 2.0**3.7, 2.0**4.3) == planned[-3:]
    fine = [2.0 ** (k / 4) for k in range(-32, 1)]
    assert bracketing_rates(fine, around, 2.0**-4.4, 2.0**-3.6) == around
    assert bracketing_rates([0.1, 0.2], [0.05, 0.1, 0.2], 0.09, 0.12) == [0.1, 0.2]


def test_a_slice_is_run_at_all_rates_while_the_basin_is_not_known(tmp_path):
    plan = make_plan([*WORDS, f"runtime.root={tmp_path}"])
    one = law_slices(plan, "tokens")[3]
    rates = sorted({point.own.base_lr for point in one})
    law = [point for point in one if point.own.base_lr in rates[1:4]]
    choice = {"rates": rates[1:4], "low": rates[2] * 0.9, "high": rates[2] * 1.1, "basin_known": True}
    assert nearest_rates(one, choice, law) == law
    assert nearest_rates(one, {**choice, "basin_known": False}, law) == one
    assert nearest_rates(one, choice, []) == one
    done = {point.run_id for point in law}
    edge = [point for point in one if point.own.base_lr == rates[4]]
    assert further_rates(one, done, edge) == edge
    beyond = [point for point in one if point.own.base_lr == rates[2]]
    assert further_rates(law, done, beyond) == beyond  # no planned rate is left


def test_a_sweep_of_one_s_own_folder_is_gone_on_with(tmp_path):
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    sweep = "blocks: {a: {grid: {scale.tokens: [16384, 32768, 65536], seed: [0, 1]}, lr: LR}}"
    (tmp_path / "mine" / "sweep" / "own.yaml").write_text(
        sweep.replace("LR", WORDS[-1].partition("=")[2].replace(":", ": "))
    )
    words = ["parametrization=raw", f"hydra.searchpath=[file://{tmp_path}/mine]", "sweep=own"]
    goal = AutoGoal("tokens", 0.05, 2097152, rounds=2)
    plan, _, _, rounds = searched(tmp_path / "runs", goal, scatter=0.2, words=words)
    assert len(rounds) == 2
    assert not {p.run_id for p in plan.points} & {p.run_id for p in rounds[1].points}
    assert all(p.config.parametrization.name == "raw" for p in rounds[1].points)


def test_after_the_plan_come_slices_of_the_law_s_own(tmp_path):
    words = [word.replace(",262144,524288,1048576]", "]") for word in WORDS]
    goal = AutoGoal("tokens", 0.05, 2097152, rounds=3)
    plan, last, _, rounds = searched(tmp_path, goal, scatter=0.2, words=words)
    planned = {point.run_id for point in plan.points}
    shares = [len({point.run_id for point in one.points} & planned) for one in rounds]
    assert (shares[0], shares[2]) == (30, 0)
    assert 6 <= shares[1] <= 10
    assert last.runs > len(plan.points)


def test_runs_that_failed_in_an_earlier_call_are_done_again(tmp_path):
    goal = AutoGoal("tokens", 0.5, 2097152)
    searched(tmp_path, goal)
    plan = make_plan([*WORDS, f"runtime.root={tmp_path}"])
    some = [point for point in plan.points if point.own.scale.tokens == 131072][:2]
    for point in some:
        failed = base_record(point.own, status="failed", reason="no memory", cause="out_of_memory")
        record.save(failed, point.run_dir)
    _, last, _, rounds = searched(tmp_path, goal)
    assert {point.run_id for point in some} <= {point.run_id for one in rounds for point in one.points}
    assert last.reason is None


def test_it_stops_where_the_budget_does(tmp_path):
    _, last, _, rounds = searched(
        tmp_path / "rounds", AutoGoal("tokens", 0.001, 2097152, rounds=2), scatter=0.2
    )
    assert (last.reason, len(rounds)) == ("2 rounds are over", 2)
    start = sum(point.flops for point in rounds[0].points)
    goal = AutoGoal("tokens", 0.001, 2097152, flops=start * 1.01)
    _, last, _, rounds = searched(tmp_path / "flops", goal, scatter=0.2)
    assert (last.flops, len(rounds)) == (start, 1)
    assert last.reason == f"the next runs would bring it to {15 / 7 * start:.3g} FLOPs of {goal.flops:.3g}"
    goal = AutoGoal("tokens", 0.001, 2097152, flops=start * 0.99)
    _, last, _, rounds = searched(tmp_path / "none", goal)
    assert (last.flops, len(rounds)) == (0, 0)
    assert last.reason == f"the next runs would bring it to {start:.3g} FLOPs of {goal.flops:.3g}"


def test_slices_go_from_cheap_to_dear(tmp_path):
    plan = make_plan([*WORDS, f"runtime.root={tmp_path}"])
    tokens = [{point.own.scale.tokens for point in one} for one in law_slices(plan, "tokens")]
    assert tokens == [{2**k} for k in range(14, 21)]


def test_a_law_is_of_the_runs_that_differ_in_one_size_alone(tmp_path):
    other = (
        "+sweep.blocks.b={overrides:['optim=adamw'],grid:{scale.tokens:[16384,32768,65536],base_lr:[0.001]}}"
    )
    deep = "+sweep.blocks.c={overrides:['scale.depth=3'],grid:{scale.tokens:[131072],base_lr:[0.001]}}"
    plan = make_plan([*WORDS, other, deep, f"runtime.root={tmp_path}"])
    assert {point.blocks for one in law_slices(plan, "tokens") for point in one} == {("a",)}
    with pytest.raises(ValueError, match=r"--by must .*tokens.*, got 'lr'"):
        law_slices(plan, "lr")
    with pytest.raises(ValueError, match=r"must have 3 .* sizes of depth .*, got 2"):
        law_slices(make_plan([*WORDS, deep, f"runtime.root={tmp_path}"]), "depth")
    twin = other.replace("65536]", "65536,131072,262144,524288,1048576]")
    with pytest.raises(ValueError, match=r"got 2 with 7 sizes each: .*blocks a, b.*~sweep\.blocks\.a"):
        law_slices(make_plan([*WORDS, twin, f"runtime.root={tmp_path}"]), "tokens")
    words = ["scale.tokens=16384,32768,65536", "optim=muonh,adamw", "base_lr=0.01,0.02"]
    with pytest.raises(ValueError, match="got 2 with 3 sizes each"):
        law_slices(make_plan([*words, f"runtime.root={tmp_path}"]), "tokens")


def test_what_is_asked_for():
    asked = ("interval=15%", "interval=0.15", "interval=7.5%")
    assert [parse_until(text) for text in asked] == pytest.approx([0.15, 0.15, 0.075], rel=1e-12, abs=0)
    for wrong in ("", "interval=0%", "loss=1", "interval=-3%", "15%"):
        with pytest.raises(ValueError, match=r"--until must .*, got "):
            parse_until(wrong)
