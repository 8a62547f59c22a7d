"""The commands that judge runs without a law: `hyperp-law transfer` and `hyperp-law coordinates`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperp.analysis.cli.options import (
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
from hyperp.analysis.errors import Refusal
from hyperp.analysis.vocabulary import FLAT, WINDOW


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
    from hyperp.analysis.queries.check import check as ask
    from hyperp.analysis.queries.transfer import another_value, brackets
    from hyperp.analysis.queries.transfer import transfer as along
    from hyperp.analysis.report.text.transfer import show_transfer
    from hyperp.run_table import COVARIATES

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


def coordinates(
    runs: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="a folder for the plot and its numbers, made if it is not there"),
    ] = None,
    where: Where = None,
    mapping: Map = None,
    tolerance: Annotated[
        float, typer.Option(help="a slope this close to 0, with its whole interval, is flat")
    ] = FLAT,
    as_json: AsJson = False,
) -> None:
    """Say whether activations and their change since initialisation grow with width: muP's coordinate check.

    Reads what runs measured with runtime.coordinates, as `hyperp-sweep collect` writes it beside the table.

    Example: hyperp-law coordinates runs/coord_check/runs.parquet -o reports/coord_check
    """
    from hyperp.analysis.diagnostics.coordinates import coordinate_check, read_coordinates
    from hyperp.analysis.report.text.coordinates import show_coordinates

    table, rows = load(runs, mapping, where, loss=False)
    found = coordinate_check(table, read_coordinates(table), rows, tolerance)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_coordinates(found, tolerance)
    if out is not None:
        from hyperp.analysis.report.figures.coordinates import write_coordinate_check

        for path in write_coordinate_check(found, out):
            typer.echo(f"wrote {path}", err=as_json)


def register(app: typer.Typer, answer: Decorator) -> None:
    """Add the commands; `answer` turns bad input and refusals into one line and an exit code."""
    app.command()(answer(transfer))
    app.command()(answer(coordinates))
