"""Whether points identify a loss law, and if not, the runs that would."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hyperp.analysis.errors import Refusal, argument
from hyperp.analysis.loss.points import FORM_COLUMNS, LossPoints, suggested_run
from hyperp.analysis.loss.solver import Layout

TOGETHER = 0.999  # correlation of the logs of parameters and tokens beyond which their terms look alike


def require_identified(points: LossPoints, layout: Layout, held: Mapping[int, float]) -> None:
    """Raise Refusal, with the runs that would help, unless the points identify every free parameter.

    The exponents need three values of each covariate, two where the floor is held, and one data set that has
    them is enough. With the exponents known, a data set determines its floor and terms by as many points.

    Args:
        points: the points of the law.
        layout: the parameters of the law.
        held: the parameters that are pinned, by index.
    """
    names, free = FORM_COLUMNS[points.form], layout.size - len(held)
    for row, name in enumerate(names):
        _require_values(points, row, name, held, free)
    for index in range(layout.sets if points.by_data is not None else 0):
        _require_data_set(points, layout, index, index in held)
    _require_points(points, names, free, floor_held=0 in held)
    if len(names) == 2:
        _require_apart(points, layout)


def _require_values(points: LossPoints, row: int, name: str, held: Mapping[int, float], free: int) -> None:
    """One covariate must have enough values, in at least one data set."""
    x = points.x_Kn[row]
    sets = [x[points.set_n == s] for s in range(len(points.sets))]
    if max(len(np.unique(own)) for own in sets) == 1:
        more = [_run_beyond(points, name, times) for times in (2, 4, 8)[:free]]
        own = "" if points.by_data is None else f" in each {points.by_data}"
        at = f"it is {x[0]:.4g} everywhere" if len(np.unique(x)) == 1 else "it has one value"
        raise Refusal(f"{name} does not vary, {at}{own}; run at another {name}", more)
    lacking = [(len(np.unique(own)), 3 - (s in held)) for s, own in enumerate(sets)]
    if len(FORM_COLUMNS[points.form]) > 1 and all(distinct < need for distinct, need in lacking):
        distinct, need = max(lacking)
        raise Refusal(
            f"{name} has {distinct} values and its term needs {need}; run between or beyond "
            f"{x.min():.4g} and {x.max():.4g}",
            [_run_beyond(points, name, 2)],
        )


def _require_data_set(points: LossPoints, layout: Layout, index: int, floor_held: bool) -> None:
    """A data set must have as many points as it has parameters of its own, and each covariate must vary."""
    own = points.set_n == index
    name, count = points.sets[index], int(own.sum())
    need = 1 + layout.terms - floor_held
    constant = [
        column
        for column, x in zip(FORM_COLUMNS[points.form], points.x_Kn[:, own], strict=True)
        if len(np.unique(x)) == 1
    ]
    if count >= need and not constant:
        return
    what = (
        f"{count} points cannot fit its {need} parameters"
        if count < need
        else f"{' and '.join(constant)} does not vary there"
    )
    column = constant[0] if constant else FORM_COLUMNS[points.form][0]
    raise Refusal(
        f"{points.by_data}={name}: {what}; run more of it, or leave it out",
        [
            {**_run_beyond(points, column, 2 ** (1 + k)), str(points.by_data): name}
            for k in range(max(need - count, 1))
        ],
    )


def _require_points(points: LossPoints, names: tuple[str, ...], free: int, floor_held: bool) -> None:
    """There must be more points than parameters."""
    n = len(points.loss_n)
    if n > free:
        return
    what = "rows" if points.all_rows else f"distinct ({', '.join(names)})"
    beyond = " ".join(f"{k} {2 * x.max():.3g}" for k, x in zip(names, points.x_Kn, strict=True))
    pin = f", or pin the floor with {argument('pin', {'E': 'VALUE'})}"
    raise Refusal(
        f"{n} {what} cannot fit {free} parameters, {free + 1} are needed; run {free + 1 - n} more, "
        f"such as at {beyond}" + ("" if floor_held else pin),
        [_run_beyond(points, names[k % len(names)], 2 ** (1 + k // len(names))) for k in range(free + 1 - n)],
    )


def _require_apart(points: LossPoints, layout: Layout) -> None:
    """In no data set may parameters and tokens move together, nor in a single one against each other."""
    for index in range(layout.sets):
        x_Kn = points.x_Kn[:, points.set_n == index]
        together = float(np.corrcoef(np.log(x_Kn))[0, 1])
        alike = together if layout.sets > 1 else abs(together)
        if x_Kn.shape[1] > 2 and alike > TOGETHER:
            where = "" if points.by_data is None else f" in {points.by_data}={points.sets[index]}"
            raise Refusal(
                f"parameters and tokens move together{where} (correlation {together:.4f} of their logs), so "
                "their terms cannot be told apart; run the same model on other token budgets, or fit "
                f"{argument('form', 'power')}",
                [_run_beyond(points, "tokens", times) for times in (4, 1 / 4)],
            )


def _run_beyond(points: LossPoints, name: str, times: float) -> dict[str, Any]:
    """A run at `times` the largest value of one column, the other column at its largest value."""
    largest = dict(zip(FORM_COLUMNS[points.form], points.x_Kn.max(axis=1).tolist(), strict=True))
    return suggested_run(points, **{**largest, name: times * largest[name]})
