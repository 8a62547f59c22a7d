"""The commands that need no law: `hyperp-law transfer` and `hyperp-law coordinates`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperp.analysis.cli.options import (
    AsJson,
    Level,
    Map,
    MethodOption,
    PointsFile,
    RunsArgument,
    SliceBy,
    Where,
    Window,
    load_runs,
    output_option,
)
from hyperp.analysis.vocabulary import DEFAULT_METHOD, FLAT_SLOPE, LEVEL, WINDOW


def transfer(
    runs: RunsArgument,
    over: Annotated[str, typer.Option(metavar="COLUMN", help="the axis, such as width")],
    where: Where = None,
    mapping: Map = None,
    slice_by: SliceBy = None,
    method: MethodOption = DEFAULT_METHOD,
    window: Window = WINDOW,
    level: Level = LEVEL,
    points: PointsFile = None,  # noqa: ARG001, for `exit_codes`
    as_json: AsJson = False,
) -> None:
    """Measure how far the best rate moves along one axis.

    Also prints what it costs to keep the rate of the smallest size.

    \b
    Example:
      hyperp-law transfer runs/demo/runs.parquet --over width
    """
    from hyperp.analysis import api
    from hyperp.analysis.report.text.transfer import show_transfer
    from hyperp.run_table import COVARIATES

    columns = [n for n in (over, *(slice_by or [])) if n not in COVARIATES]
    table, rows = load_runs(runs, mapping, where, columns)
    found = api.transfer(
        table, over, where=rows, slice_by=slice_by or (), method=method, window=window, level=level
    )
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_transfer(over, found)


def coordinates(
    runs: RunsArgument,
    out: Annotated[
        Path | None, output_option("a folder for the plot and its numbers; created if it does not exist")
    ] = None,
    where: Where = None,
    mapping: Map = None,
    tolerance: Annotated[
        float, typer.Option(help="a slope counts as flat if its whole interval is this close to 0")
    ] = FLAT_SLOPE,
    as_json: AsJson = False,
) -> None:
    """Check whether activations grow with width.

    This is muP's coordinate check, of activations and of their change since initialisation. It reads what
    runs measured with runtime.coordinates and `hyperp-sweep collect` wrote beside the table.

    \b
    Example:
      hyperp-law coordinates runs/coord_check/runs.parquet -o reports/coord_check
    """
    from hyperp.analysis.diagnostics.coordinates import coordinate_check, read_coordinates
    from hyperp.analysis.report.text.coordinates import show_coordinates

    table, rows = load_runs(runs, mapping, where, loss=False)
    found = coordinate_check(table, read_coordinates(table), rows, tolerance)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_coordinates(found, tolerance)
    if out is not None:
        from hyperp.analysis.report.figures.coordinates import write_coordinate_check

        for path in write_coordinate_check(found, out):
            typer.echo(f"wrote {path}", err=as_json)
