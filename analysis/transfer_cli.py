"""The command `hyperp-law transfer`."""

import json
from typing import Annotated

import typer

from hyperp.analysis.errors import Refusal
from hyperp.analysis.options import (
    AsJson,
    Decorator,
    Map,
    MethodOption,
    PointsFile,
    RunsArgument,
    SliceBy,
    Where,
    Window,
    load,
    method_of,
)
from hyperp.analysis.vocabulary import WINDOW


def transfer(
    runs: RunsArgument,
    over: Annotated[str, typer.Option(help="the axis, such as width")],
    where: Where = None,
    mapping: Map = None,
    slice_by: SliceBy = None,
    method: MethodOption = None,
    window: Window = WINDOW,
    points: PointsFile = None,  # noqa: ARG001, for `answer`
    as_json: AsJson = False,
) -> None:
    """Say how far the best rate moves along one axis, and what ignoring that costs.

    Example: hyperp-law transfer runs/demo/runs.parquet --over width
    """
    from hyperp.analysis.check import check as ask
    from hyperp.analysis.show_transfer import show_transfer
    from hyperp.analysis.transfer import another_value, brackets
    from hyperp.analysis.transfer import transfer as along
    from hyperp.analysis.vocabulary import COVARIATES

    columns = [n for n in (over, *(slice_by or [])) if n not in COVARIATES]
    table, rows = load(runs, mapping, where, columns)
    slices = ask(table, rows, window, columns, method=method_of(method)).slices
    found = along(slices, over)
    if not found:
        reason = f"{over} has one value wherever slices are alike in the rest; run another value"
        raise Refusal(reason, another_value(slices, over))
    if all(one.drift is None for one in found):
        raise Refusal(f"no drift over {over} is identified: {found[0].problem}", brackets(slices, found))
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_transfer(over, found)


def register(app: typer.Typer, answer: Decorator) -> None:
    """Add the command; `answer` turns bad input and refusals into one line and an exit code."""
    app.command()(answer(transfer))
