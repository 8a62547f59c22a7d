"""The command `hyperp-law isoflop`."""

from pathlib import Path
from typing import Annotated

import typer

from hyperp.analysis.cli.options import (
    TABLE,
    TARGET,
    AsJson,
    Extrapolate,
    Level,
    Map,
    MethodOption,
    Plots,
    PointsFile,
    Resamples,
    RunsArgument,
    Seed,
    Where,
    output_option,
    parse_rows,
)
from hyperp.analysis.vocabulary import DEFAULT_METHOD, LEVEL


def isoflop(
    runs: RunsArgument,
    budget: Annotated[
        float,
        typer.Option(metavar="FLOPS", help="the compute C to divide, such as 1e21", rich_help_panel=TARGET),
    ],
    out: Annotated[Path | None, output_option("a JSON file for the answer", ".json")] = None,
    where: Where = None,
    mapping: Map = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="budgets that differ by less than this fraction are one profile", rich_help_panel=TABLE
        ),
    ] = 0.01,
    method: MethodOption = DEFAULT_METHOD,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
    level: Level = LEVEL,
    extrapolate: Extrapolate = False,
    plots: Plots = None,
    points: PointsFile = None,  # noqa: ARG001, for `exit_codes`
    as_json: AsJson = False,
) -> None:
    """Divide a compute budget between parameters and tokens.

    C = 6 N D is split so that the loss is lowest. Each budget in the table is a profile, in which the number
    of parameters is what was tuned; a law through their best sizes gives N* and D*. Beside it stands the
    answer of the loss surface E + A N^-alpha + B D^-beta. The table needs the column loss and two of
    parameters, tokens and budget; without budgets, runs are grouped by 6 N D.

    \b
    Example:
      hyperp-law isoflop profiles.csv --map parameters=params \\
        --where experiment=dclm --budget 1e21 --plots figures
    """
    from hyperp.analysis import api_loss
    from hyperp.analysis.report.text.isoflop import show_isoflop

    found = api_loss.isoflop(
        runs,
        budget,
        **parse_rows(mapping, where),
        method=method,
        tolerance=tolerance,
        extrapolate=extrapolate,
        bootstrap=bootstrap,
        seed=seed,
        level=level,
    )
    if out is not None:
        found.save(out)
    for line in found.answer.warnings:
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(found.answer.model_dump_json(indent=2))
    else:
        show_isoflop(found.answer)
        if out is not None:
            typer.echo(f"wrote {out}")
    if plots is not None:
        for path in found.write_plots(plots):
            typer.echo(f"wrote {path}", err=True)
