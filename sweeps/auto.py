"""Run, fit a law, and run what the law asks for, until the rate is known well enough at a target.

The fitting is done by the command `hyperp-law`: `hyperp.sweeps` and `hyperp.analysis` share files alone.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from hyperp.run_table import CONTEXT
from hyperp.suggestions import parse_overrides
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.plan import Plan, Point, full_key, make_plan
from hyperp.sweeps.plan.run_config import setting_hash, trainer_name, values_of
from hyperp.sweeps.plan.sweep import Block, Sweep
from hyperp.sweeps.runs.run import load_record
from hyperp.sweeps.runs.status import DONE
from hyperp.sweeps.table.runs import collect
from hyperp.terminal import REFUSED

LAW_COMMAND = Path(sys.executable).with_name("hyperp-law")
FIRST_SLICES = 3  # slices that are run before the first fit
SEARCH = "hydra.searchpath"
MIN_SLICES = 6  # slices that must be done before a small interval is believed
TARGET_FACTOR = 8  # the default target over the plan's largest size
FEWEST_RATES = 3  # that bracket an optimum


@dataclass(frozen=True)
class AutoGoal:
    """When to stop: at `target`, a value of the size `by`, the interval is within a factor 1 + `half_width`.

    `flops` (spent below the root) and `rounds` (fits) are the budget.
    """

    by: str
    half_width: float
    target: float
    flops: float = math.inf
    rounds: int = 64


@dataclass(frozen=True)
class Round:
    """One round: runs done so far, their FLOPs, and the interval's half-width, None while there is no law.

    `reason` says why there is no law yet or, of the last round, why the search ended before its goal.
    """

    runs: int
    flops: float
    half_width: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Advice:
    """What a fit says after a round.

    Attributes:
        half_width: of the interval at the target; None while there is no law.
        reason: why there is no law, or why none of its slices would help.
        points: the runs to do next.
        waiting: the slices of the plan that need further runs, cheapest first. A slice whose optimum some of
            its rates bracket does not.
    """

    half_width: float | None
    reason: str | None
    points: list[Point]
    waiting: list[list[Point]]


def parse_until(text: str) -> float:
    """0.15 from `interval=15%` or `interval=0.15`. Raises ValueError for anything else."""
    match = re.fullmatch(r"interval=(\d+(?:\.\d+)?)(%?)", text)
    half_width = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not half_width > 0:
        raise ValueError(f"--until must be such as interval=15%, got {text!r}")
    return half_width


def law_slices(plan: Plan, by: str) -> list[list[Point]]:
    """The slices of the plan that one law over the size `by` can use, cheapest first.

    They differ in `by` alone, not in the optimizer or anything else. Of several such sets, the one with the
    most sizes is taken.

    Raises:
        ValueError: there is no size of that name, or fewer than FIRST_SLICES values of it, or several sets
            of slices have the most.
    """
    names = sorted({name for point in plan.points for name in _sizes_of(point)})
    if by not in names:
        raise ValueError(f"--by must be one of {', '.join(names)}, got {by!r}")
    ladders: dict[str, dict[float, list[Point]]] = {}
    for point in plan.points:
        rest = {name: size for name, size in {**point.facts.others, **_sizes_of(point)}.items() if name != by}
        key = json.dumps([setting_hash(values_of(point.config)), rest])
        ladders.setdefault(key, {}).setdefault(_sizes_of(point)[by], []).append(point)
    most = max(map(len, ladders.values()), default=0)
    longest = [one for one in ladders.values() if len(one) == most]
    if most < FIRST_SLICES:
        raise ValueError(
            f"the plan must have {FIRST_SLICES} or more sizes of {by} with all else alike, got {most}"
        )
    if len(longest) > 1:
        blocks = sorted(
            {name for one in longest for points in one.values() for p in points for name in p.blocks}
        )
        how = "give one value of what else varies"
        if blocks:
            how = f"of the blocks {', '.join(blocks)} leave some out, such as with ~sweep.blocks.{blocks[0]}"
        raise ValueError(
            f"the plan must have one law over {by}, got {len(longest)} with {most} sizes each: {how}"
        )
    return sorted(longest[0].values(), key=_flops_of)


def make_goal(
    plan: Plan, by: str, half_width: float, target: float | None, flops: float | None, rounds: int
) -> AutoGoal:
    """A goal with defaults from the plan: TARGET_FACTOR times its largest size, and its FLOPs as the budget.

    Raises ValueError for a target or budget that is no positive number, and as `law_slices` does.
    """
    largest = max(_sizes_of(points[0])[by] for points in law_slices(plan, by))
    if target is not None and not 1 <= target < math.inf:
        raise ValueError(f"--target must be a size of at least 1, got {target:g}")
    if flops is not None and not flops > 0:
        raise ValueError(f"--most-flops must be positive, got {flops:g}")
    where = TARGET_FACTOR * largest if target is None else target
    return AutoGoal(by, half_width, where, _flops_of(plan.points) if flops is None else flops, rounds)


def _flops_of(points: Sequence[Point]) -> float:
    return sum(point.flops for point in points)


def search_rate(
    plan: Plan,
    goal: AutoGoal,
    do_runs: Callable[[Plan], object],
    show: Callable[[Round], None],
) -> Round:
    """Do the cheapest slices of the plan, then those that the law asks for; return the last round.

    `do_runs` does the runs of a plan and returns when they have ended (its value is ignored); `show` is
    called after every round. Slices that an earlier call began come first, with the runs that failed in them.
    The law chooses among the slices of the plan while any is left, then freely. Once it knows the shape of
    the basin, a slice is run at the planned rates about the predicted optimum, and at the others only if its
    best rate turns out to be the last of these. If the runs so far identify
    no law, the cheapest slice that is left is done. A small interval counts from MIN_SLICES slices on: few
    slices show too little scatter by luck, and stopping at the first small interval selects for that luck.

    Raises:
        RuntimeError: hyperp-law fails.
        ValueError: the plan has no such slices, or more than one set of them.
    """
    slices = law_slices(plan, goal.by)
    begun = [point for one in slices[FIRST_SLICES:] for point in _begun_rates(one)]
    todo = [*(point for one in slices[:FIRST_SLICES] for point in one), *begun]
    tried: set[str] = set()
    step = Round(0, 0.0, None)
    for number in range(goal.rounds):
        before = _flops_done(plan, tried)
        new = [point for point in todo if point.run_id not in before]
        cost = sum(before.values()) + _flops_of(new)
        if cost > goal.flops:
            return replace(
                step, reason=f"the next runs would bring it to {cost:.3g} FLOPs of {goal.flops:.3g}"
            )
        do_runs(replace(plan, points=tuple(todo)))
        tried |= {point.run_id for point in todo}
        done = _flops_done(plan, tried)
        advice = ask_law(plan, goal, collect(plan.root).table, number, slices, done)
        half_width, waiting = advice.half_width, advice.waiting
        step = Round(len(done), sum(done.values()), half_width, advice.reason)
        show(step)
        if (
            half_width is not None
            and half_width <= goal.half_width
            and (len(slices) - len(waiting) >= MIN_SLICES or not waiting)
        ):
            return replace(step, reason=None)
        asked = advice.points or (waiting[0] if waiting else [])
        todo = [point for point in asked if point.run_id not in done]
        if not todo:
            return replace(step, reason="there is nothing more to run")
    return replace(step, reason=f"{goal.rounds} rounds are over")


def _begun_rates(members: Sequence[Point]) -> list[Point]:
    """The runs of a slice at the rates that an earlier call began."""
    rates = {p.facts.base_lr for p in members if (p.run_dir / "record.json").exists()}
    return [p for p in members if p.facts.base_lr in rates]


def _flops_done(plan: Plan, tried: Collection[str]) -> dict[str, float]:
    """FLOPs by run id of the runs that need not be done: those that ended well, and those tried just now."""
    return {
        one.run_id: one.flops
        for one in planfile.read_plan(plan.root)
        if one.run_id in tried or _ended_well(plan.root / one.run_id)
    }


def _ended_well(run_dir: Path) -> bool:
    try:
        ended = load_record(run_dir)
    except (OSError, ValueError):
        return False
    return ended is not None and ended.status in DONE


def ask_law(
    plan: Plan,
    goal: AutoGoal,
    table: Path,
    number: int,
    slices: Sequence[list[Point]],
    done: Collection[str],
) -> Advice:
    """Fit a law to the runs so far, and ask it for the next ones.

    Args:
        plan: what is being run.
        goal: where the interval counts.
        table: the runs so far.
        number: of the round.
        slices: the slices of the plan, cheapest first.
        done: run ids that need not be done.
    """
    law, folder = plan.root / "law.json", plan.root / "auto"
    folder.mkdir(exist_ok=True)
    points = folder / f"round{number}.yaml"
    points.unlink(missing_ok=True)  # left by an earlier call
    unfinished = [one for one in slices if any(point.run_id not in done for point in one)]
    fresh = [one for one in unfinished if not any(point.run_id in done for point in one)]
    fitting = ("fit", str(table), "--by", goal.by, *select_setting(table, slices[0][0]))
    fit = _run_law_command(*fitting, "-o", str(law), "--points", str(points))
    if fit.returncode == REFUSED:
        asked = unfinished[0] if unfinished else read_points(plan, points)
        return Advice(None, _first_line(fit), asked, unfinished)
    target = (f"--{goal.by.replace('_', '-')}", f"{goal.target:.15g}")
    offers = [",".join(f"{name}={size}" for name, size in _sizes_of(one[0]).items()) for one in fresh]
    among = [f"--among={offer}" for offer in offers]
    after = _run_law_command("next", str(law), *target, "--slices", "1", "-o", str(points), "--json", *among)
    if after.returncode == REFUSED:  # the optima lie exactly on the law
        return Advice(0.0, _first_line(after), [], unfinished)
    found = json.loads(after.stdout)
    theirs = read_points(plan, points)
    open_ended = [one for one in unfinished if one not in fresh and _is_among(one, found["bracket"])]
    asked = [point for one in open_ended for point in further_rates(one, done, theirs)]
    if fresh or not open_ended:  # slices beyond the plan come after all of its own
        chosen = {json.dumps(one["covariates"], sort_keys=True): one for one in found["choices"]}
        for one in fresh:
            if choice := chosen.get(json.dumps(_sizes_of(one[0]), sort_keys=True)):
                asked += nearest_rates(one, choice, theirs)
        planned = [_sizes_of(one[0]) for one in (*open_ended, *fresh)]
        asked = [*(p for p in theirs if _sizes_of(p) not in planned), *asked]
    return Advice(math.sqrt(found["width"]) - 1, None, asked, [*open_ended, *fresh])


def select_setting(table: Path, point: Point) -> list[str]:
    """The option that keeps runs of other settings out of a law, where the table has any.

    Such runs lie in the same root after a change of the experiment, or a commit of a trainer. hyperp-law
    knows the column `setting` only where it tells runs apart that are alike in everything else.
    """
    rest = [name for name in CONTEXT if name != "setting"]
    settings = pd.read_parquet(table, columns=list(CONTEXT)).groupby(rest, dropna=False)["setting"].nunique()
    return [f"--where=setting={setting_hash(values_of(point.config))}"] if settings.max() > 1 else []


def nearest_rates(
    members: Sequence[Point], choice: Mapping[str, Any], theirs: Sequence[Point]
) -> list[Point]:
    """The runs of a slice of the plan at the rates that serve for those that the law chose.

    All planned rates if the law does not know the basin.

    Args:
        members: the runs of the slice.
        choice: the slice in the answer of `hyperp-law next`.
        theirs: the runs of the law's own points, at its rates.
    """
    asked = sorted({p.facts.base_lr for p in theirs if _sizes_of(p) == _sizes_of(members[0])})
    if not (choice["basin_known"] and asked):
        return list(members)
    base = asked[0] / min(choice["rates"])  # base_lr for a rate of one
    own = {p.facts.base_lr for p in members}
    rates = bracketing_rates(own, asked, choice["low"] * base, choice["high"] * base)
    return [p for p in members if p.facts.base_lr in rates]


def bracketing_rates(
    planned: Collection[float], asked: Collection[float], low: float, high: float
) -> list[float]:
    """The planned rates nearest to those that the law asks for, and further ones until they bracket.

    They do if the interval from `low` to `high` of the optimum lies between the middles of the first two and
    of the last two, where the best rate is not the last. At least FEWEST_RATES, if there are so many.
    """
    own = sorted(planned)
    rates = sorted({min(own, key=lambda r: abs(math.log(r / rate))) for rate in asked})
    below, above = [r for r in own if r < rates[0]], [r for r in own if r > rates[-1]]
    while below and (len(rates) < 2 or math.sqrt(rates[0] * rates[1]) > low):
        rates.insert(0, below.pop())
    while above and (len(rates) < 2 or math.sqrt(rates[-1] * rates[-2]) < high):
        rates.append(above.pop(0))
    while len(rates) < FEWEST_RATES and (below or above):
        rates = [below.pop(), *rates] if below else [*rates, above.pop(0)]
    return rates


def further_rates(members: Sequence[Point], done: Collection[str], theirs: Sequence[Point]) -> list[Point]:
    """The runs that bracket a slice that ends at its best rate: planned ones, or else the law's own."""
    mine = [p for p in theirs if _sizes_of(p) == _sizes_of(members[0])]
    run = [p.facts.base_lr for p in members if p.run_id in done]
    asked = [p.facts.base_lr for p in mine]
    left = [p for p in members if p.run_id not in done]
    rest = [
        p
        for p in left
        if (p.facts.base_lr < min(run) and min(asked, default=0.0) < min(run))
        or (p.facts.base_lr > max(run) and max(asked, default=math.inf) > max(run))
    ]
    return rest or mine


def _is_among(members: Sequence[Point], points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the law's points has the sizes of this slice."""
    sizes = _sizes_of(members[0])
    return any(all(point.get(name) == size for name, size in sizes.items()) for point in points)


def _sizes_of(point: Point) -> dict[str, float]:
    own = {
        n: v for n, v in point.facts.others.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    return {**point.facts.sizes, **own}


def read_points(plan: Plan, path: Path) -> list[Point]:
    """The runs of a file that `hyperp-law --points` wrote, on the plan's overrides; none without the file."""
    if not path.exists():
        return []
    keys = _keys_of(path, trainer_name(values_of(plan.points[0].config)))
    given = [
        str(one.input_line)
        for one in parse_overrides(plan.overrides)
        if one.key_or_group not in (*keys, SEARCH) and not one.key_or_group.startswith("sweep.")
    ]
    where = path.resolve()
    paths = ",".join([f"file://{where.parent.parent}", *_search_path(plan.overrides)])
    overrides = [
        *given,
        "sweep=none",
        f"hydra.searchpath=[{paths}]",
        f"+{where.parent.name}@sweep={where.stem}",
    ]
    blocks = set(_read_sweep(path).blocks)  # an experiment may have blocks of its own, which stay
    return [point for point in make_plan(overrides).points if blocks & set(point.blocks)]


def _search_path(overrides: Sequence[str]) -> list[str]:
    """The folders of the user's own configuration; Hydra takes only the last list of them."""
    given = [one.value() for one in parse_overrides(overrides) if one.key_or_group == SEARCH]
    return [str(folder) for folder in given[-1]] if given and isinstance(given[-1], list) else []


def _read_sweep(path: Path) -> Sweep:
    return Sweep.model_validate(OmegaConf.to_container(OmegaConf.load(path)))


def _keys_of(path: Path, trainer: str) -> set[str]:
    """The keys that the blocks of a file of points set: the law's context, sizes, rates and seeds."""
    sweep = _read_sweep(path)
    named = [
        override.key_or_group
        for block in sweep.blocks.values()
        for override in parse_overrides(block.overrides)
    ]
    keys = {full_key(key, trainer) for block in sweep.blocks.values() for key in Block.keys(block)}
    return keys | set(named) | {"sweep"}


def _run_law_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(LAW_COMMAND), *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, REFUSED):
        raise RuntimeError(f"hyperp-law {arguments[0]}: {_first_line(done)}")
    return done


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"
