"""Runs whose log ends before its time: a source without states would count them as finished."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hyperp.analysis.imports.logged import LoggedRun, number_or_none
from hyperp.analysis.table.spellings import TRAINING, is_spelling
from hyperp.near_names import letters_of

STEPS = (
    *(
        "steps",
        "maxsteps",
        "nsteps",
        "numsteps",
        "totalsteps",
        "trainsteps",
        "trainingsteps",
        "maxtrainsteps",
    ),
    *("numtrainsteps", "numtrainingsteps", "totaltrainsteps", "iters", "iterations", "maxiters", "maxiter"),
    *("numiters", "numiterations", "trainiters", "trainiterations", "maxiterations", "totaliterations"),
)
SECTIONS = (*TRAINING, "trainer", "config", "params", "hparams", "args", "arguments", "run")
# Runs of as many tokens have as many steps if these settings are equal too.
IN_A_STEP = ("batch", "accum", "seq", "context", "block", "device", "gpu", "rank", "worldsize", "nodes")


def with_early_ends(
    runs: Sequence[LoggedRun], steps: Sequence[Sequence[float]]
) -> tuple[list[LoggedRun], tuple[str, ...]]:
    """The runs, of which those that end before their time are marked, and a remark that counts these.

    A run ends early if its configuration has more steps, up to one interval of its log, or if another run
    that is as long by its configuration goes on to a later step.

    Args:
        runs: the runs, with the status None where the source keeps none.
        steps: the steps at which each logged, empty where it did not log the step.
    """
    courses = [sorted({one for one in of if math.isfinite(one)}) for of in steps]
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        if courses[number]:
            alike[_length(run.settings)].append(number)
    found: list[LoggedRun] = list(runs)
    told: list[str] = []
    for members in alike.values():
        longest = max((courses[number] for number in members), key=lambda course: course[-1])
        for number in members:
            run, course = runs[number], courses[number]
            planned = planned_steps(run.settings)
            short = planned is not None and course[-1] + _interval(course) < planned
            if run.status is None and (short or _ends_before(course, longest)):
                found[number] = replace(run, ended_early=True)
                last = longest[-1] if planned is None else max(planned, longest[-1])
                told.append(f"{run.name} at step {course[-1]:.10g} of {last:.10g}")
    if not told:
        return found, ()
    count = f"logs that end before the steps of their configuration, or of another as long: {len(told)}"
    named = f"{told[0]}, ..." if len(told) > 1 else told[0]
    rule = "such a run counts as not finished, or as diverged if its last loss is not finite"
    return found, (f"{count} ({named}); {rule}",)


def planned_steps(settings: Mapping[str, Any]) -> float | None:
    """The optimizer steps that a configuration asks for; None if it has none, or several numbers of them."""
    found = {number_or_none(value) for key, value in settings.items() if _names_steps(key)}
    positive = {one for one in found if one is not None and math.isfinite(one) and one > 0}
    return positive.pop() if len(positive) == 1 else None


def _names_steps(key: str) -> bool:
    *sections, last = key.replace("/", ".").split(".")
    return letters_of(last) in STEPS and all(one.lower() in SECTIONS for one in sections)


def _length(settings: Mapping[str, Any]) -> Hashable:
    """What is equal for runs with as many steps: these, or tokens and batch, or all but rate and seed."""
    planned = planned_steps(settings)
    if planned is not None:
        return ("steps", planned)
    tokens = {key for key in settings if is_spelling(key, "tokens")}
    if tokens:
        kept = {key for key in settings if any(word in letters_of(key) for word in IN_A_STEP)} | tokens
        return ("tokens", frozenset((key, str(settings[key])) for key in kept))
    varied = {key for key in settings if is_spelling(key, "lr") or is_spelling(key, "seed")}
    return ("settings", frozenset((key, str(value)) for key, value in settings.items() if key not in varied))


def _interval(course: Sequence[float]) -> float:
    """The largest distance of two steps in a log, which may leave out as many at its end; 1 for one step."""
    return max((after - one for one, after in pairwise(course)), default=1.0)


def _ends_before(course: Sequence[float], longest: Sequence[float]) -> bool:
    """Whether a log stops short of another's end: exactly, where both are as dense."""
    interval = _interval(course)
    slack = 0.0 if len(course) == 1 or interval == _interval(longest) else interval
    return course[-1] + slack < longest[-1]
