"""Plan, run, fit, and run what the fit asks for, until the rate is known well enough at a target.

The fitting is `hyperp-law`'s, as a command: the two parts of this package share files and nothing else.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from omegaconf import OmegaConf

from hyperp.scale import Scale
from hyperp.sweeps import planfile
from hyperp.sweeps.plan import Block, Plan, Point, Sweep, make_plan
from hyperp.sweeps.planfile import Planned
from hyperp.sweeps.words import parse

LAW = Path(sys.executable).with_name("hyperp-law")
REFUSED = 3  # hyperp-law's exit code where the runs do not identify an answer
SLICES = 3  # that a fit begins with
AHEAD = 8  # the target, in times the plan's largest size, where none is given


@dataclass(frozen=True)
class Goal:
    """`half` is the asked half-width of the interval, 0.15 for 15%; `flops` and `rounds` are the budget."""

    by: str
    half: float
    target: float
    flops: float = math.inf
    rounds: int = 64


@dataclass(frozen=True)
class Step:
    """One round: runs done so far, and the half-width that they give, None without a law yet."""

    runs: int
    flops: float
    half: float | None
    reason: str | None = None


def read_until(text: str) -> float:
    """0.15 of `interval=15%` or `interval=0.15`. Raises ValueError for anything else."""
    match = re.fullmatch(r"interval=(\d+(?:\.\d+)?)(%?)", text)
    half = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not half > 0:
        raise ValueError(f"--until must be such as interval=15%, got {text!r}")
    return half


def largest(plan: Plan, by: str) -> int:
    """The plan's largest size of that name. Raises ValueError if runs have no size of that name."""
    names = [field.name for field in fields(Scale)]
    if by not in names:
        raise ValueError(f"--by must be one of {', '.join(names)}, got {by!r}")
    return max(getattr(point.config.scale, by) for point in plan.points)


def slices_of(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each scale, cheapest scale first."""
    found: dict[object, list[Point]] = {}
    for point in points:
        found.setdefault(point.config.scale, []).append(point)
    return sorted(found.values(), key=lambda members: sum(point.flops for point in members))


def search(
    plan: Plan,
    goal: Goal,
    do: Callable[[Plan], None],
    show: Callable[[Step], None],
    table: Callable[[], Path],
) -> Step:
    """Do the cheapest slices of the plan, then those that the law asks for; returns the last round.

    `do` does the runs of a plan, `table` collects them and returns the path. The law chooses among the slices
    of the plan while it has any, and freely after them. Where the runs so far identify no law, the cheapest
    slice that waits is done. Raises RuntimeError if hyperp-law fails.
    """
    slices = slices_of(plan.points)
    todo = [point for one in slices[:SLICES] for point in one]
    tried: set[str] = set()
    for number in range(goal.rounds):
        do(replace(plan, points=tuple(todo)))
        tried |= {point.run_id for point in todo}
        done = {
            one.run_id: one for one in planfile.read(plan.root) if one.run_id in tried or _ended(plan, one)
        }
        waiting = [one for one in slices if any(point.run_id not in done for point in one)]
        spent = sum(one.flops for one in done.values())
        half, reason, asked = ask(plan, goal, table(), number, waiting)
        step = Step(len(done), spent, half, reason)
        show(step)
        if half is not None and half <= goal.half:
            return step
        if half is None and waiting:
            asked = waiting[0]
        todo = [point for point in asked if point.run_id not in done]
        if not todo:
            return replace(step, reason="there is nothing more to run")
        if spent + sum(point.flops for point in todo) > goal.flops:
            return replace(step, reason="the budget is spent")
    return replace(step, reason=f"{goal.rounds} rounds are over")


def ask(
    plan: Plan, goal: Goal, table: Path, number: int, waiting: Sequence[Sequence[Point]]
) -> tuple[float | None, str | None, list[Point]]:
    """The half-width at the target, or why there is none; and the runs that hyperp-law wants next."""
    law, folder = plan.root / "law.json", plan.root / "auto"
    folder.mkdir(exist_ok=True)
    points = folder / f"round{number}.yaml"
    fit = _law("fit", str(table), "--by", goal.by, "-o", str(law), "--points", str(points))
    if fit.returncode == REFUSED:
        return None, _first_line(fit), planned(plan, points)
    target = (f"--{goal.by.replace('_', '-')}", f"{goal.target:.15g}")
    words = ["next", str(law), *target, "--slices", "1", "-o", str(points), "--json"]
    offers = [_sizes(members[0]) for members in waiting]
    after = _law(*words, *(f"--among={','.join(f'{n}={v}' for n, v in one.items())}" for one in offers))
    if after.returncode == REFUSED:  # the slices lie exactly on the law
        return 0.0, _first_line(after), []
    found = json.loads(after.stdout)
    if not found["choices"]:  # what waits belongs to other laws
        found, offers = json.loads(_law(*words).stdout), []
    half = math.sqrt(found["width"]) - 1
    chosen = [one["covariates"] for one in found["choices"]]
    ours = [p for members, sizes in zip(waiting, offers, strict=False) if sizes in chosen for p in members]
    theirs = planned(plan, points)  # with rates of its own for the slice that it chose
    return half, None, [*(p for p in theirs if not ours or _sizes(p) not in chosen), *ours]


def _sizes(point: Point) -> dict[str, int]:
    return asdict(point.config.scale)


def _ended(plan: Plan, point: Planned) -> bool:
    return (plan.root / point.run_id / "record.json").exists()


def planned(plan: Plan, path: Path) -> list[Point]:
    """The runs of a file of points, with the words of the plan; none without the file."""
    if not path.exists():
        return []
    keys = _keys_of(path)
    given = [
        str(one.input_line)
        for one in parse(plan.words)
        if one.key_or_group not in keys and not one.key_or_group.startswith("sweep.")
    ]
    where = path.resolve()
    search = f"hydra.searchpath=[file://{where.parent.parent}]"
    words = [*given, "sweep=none", search, f"+{where.parent.name}@sweep={where.stem}"]
    return list(make_plan(words).points)


def _keys_of(path: Path) -> set[str]:
    """What the blocks of a file of points set themselves: the law's context, sizes, rates and seeds."""
    sweep = Sweep.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    named = [override.key_or_group for block in sweep.blocks.values() for override in parse(block.overrides)]
    return {key for block in sweep.blocks.values() for key in Block.keys(block)} | set(named) | {"sweep"}


def _law(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(LAW), *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, REFUSED):
        raise RuntimeError(f"hyperp-law {words[0]}: {_first_line(done)}")
    return done


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"
