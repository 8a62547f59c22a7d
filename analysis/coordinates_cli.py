"""The command `hyperp-law coordinates`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperp.analysis.options import AsJson, Decorator, Map, RunsArgument, Where, load
from hyperp.analysis.vocabulary import FLAT


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
    from hyperp.analysis.coordinates import coordinate_check, read_coordinates
    from hyperp.analysis.show_coordinates import show_coordinates

    table, rows = load(runs, mapping, where, loss=False)
    found = coordinate_check(table, read_coordinates(table), rows, tolerance)
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_coordinates(found, tolerance)
    if out is not None:
        from hyperp.analysis.coordinates_plot import write_coordinates

        for path in write_coordinates(found, out):
            typer.echo(f"wrote {path}", err=as_json)


def register(app: typer.Typer, answer: Decorator) -> None:
    """Add the command; `answer` turns bad input and refusals into one line and an exit code."""
    app.command()(answer(coordinates))
