"""The command `hyperp-law fit`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyperp.analysis.cli.options import (
    FIT,
    TABLE,
    AsJson,
    Fix,
    Level,
    Map,
    MethodOption,
    PointsFile,
    RunsArgument,
    SliceBy,
    Tuned,
    Where,
    Window,
    load_runs,
    named_numbers,
    option_arguments,
    output_option,
    parse_priors,
    split_names,
)
from hyperp.analysis.vocabulary import DEFAULT_METHOD, DEFAULT_REACH, LEVEL, WINDOW


def fit(
    runs: RunsArgument,
    by: Annotated[
        list[str],
        typer.Option(
            metavar="COLUMNS",
            help="sizes whose exponents to fit, any numeric columns; repeatable, or a list such as N,tokens",
            rich_help_panel=FIT,
        ),
    ],
    out: Annotated[Path, output_option("the JSON file of the law to write", ".json")],
    over: Tuned = "lr",
    where: Where = None,
    fix: Fix = None,
    mapping: Map = None,
    slice_by: SliceBy = None,
    also_by: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS",
            help="sizes whose exponents to fit for what --tuned names beside lr; all of --by unless given",
            rich_help_panel=FIT,
        ),
    ] = "",
    method: MethodOption = DEFAULT_METHOD,
    space: Annotated[
        Literal["log", "linear"],
        typer.Option(help="space of the least squares: log rates, or the rates", rich_help_panel=FIT),
    ] = "log",
    optima: Annotated[
        bool,
        typer.Option(
            "--optima", help="every row is already an optimum: its lr is the best rate", rich_help_panel=TABLE
        ),
    ] = False,
    window: Window = WINDOW,
    level: Level = LEVEL,
    reach: Annotated[
        float,
        typer.Option(
            help="largest extrapolation factor allowed beyond the fitted range", rich_help_panel=FIT
        ),
    ] = DEFAULT_REACH,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            "--prior",
            metavar="COVARIATE=MEAN:SD",
            help="a prior on an exponent, such as tokens=-0.32:0.15; what it moved is printed; repeatable",
            rich_help_panel=FIT,
        ),
    ] = None,
    bend_sd: Annotated[
        float | None,
        typer.Option(
            "--bend-sd",
            metavar="SD",
            help="how far the law may bend, per squared natural log of a size: 0.01 unless given, 0 for none",
            rich_help_panel=FIT,
        ),
    ] = None,
    tau_sd: Annotated[
        float | None,
        typer.Option(
            "--tau-sd",
            metavar="OCTAVES",
            help="scale of the half-Student t prior of the scatter about the law: 0.12 octaves unless given",
            rich_help_panel=FIT,
        ),
    ] = None,
    se: Annotated[
        str | None,
        typer.Option(
            "--se",
            metavar="COLUMN",
            help="with --optima: the column of standard errors of ln lr",
            rich_help_panel=TABLE,
        ),
    ] = None,
    points: PointsFile = None,
    as_json: AsJson = False,
) -> None:
    """Fit a law to the best learning rate of every slice.

    A slice is all runs that differ only in rate and seed. The law is lr = exp(a) * product of covariate^b,
    written as JSON. One model holds all: a basin that the slices share, an optimum for each, a law with a
    scatter and room to bend. A slice that ends at its best rate bounds its optimum, and counts.

    \b
    Examples:
      hyperp-law fit runs/demo/runs.parquet --by tokens -o runs/demo/law.json
      hyperp-law fit runs.csv --map lr=learning_rate --map loss="smooth loss" \\
        --map tokens=D --map batch_tokens=bs*2048 --by N,tokens \\
        --tuned lr,batch_tokens -o law.json
      hyperp-law fit optima.csv --optima --se stderr --by width --prior width=0:0.2 -o law.json
    """
    from hyperp.analysis import api
    from hyperp.analysis.law.schema import law_text
    from hyperp.analysis.report.text.law import show_law

    command = _fit_command(locals())
    sizes, tuned = split_names(",".join(by)), split_names(over)
    fixed = named_numbers(fix or [], "--fix", "depth=-0.5")
    columns = [*sizes, *fixed, *(slice_by or []), *tuned[1:]]
    table, rows = load_runs(runs, mapping, where, columns, loss=not optima)
    law = api.fit_law(
        table,
        sizes,
        where=rows,
        fix=fixed,
        over=tuned,
        also_by=split_names(also_by),
        slice_by=slice_by or (),
        method=method,
        space=space,
        given=optima,
        window=window,
        level=level,
        reach=reach,
        prior=parse_priors(prior),
        bend_sd=bend_sd,
        tau_sd=tau_sd,
        se=se,
        command=command,
    )
    law.save(out)
    if as_json:
        typer.echo(law_text(law))
    else:
        show_law(law)
        typer.echo(f"wrote {out}")


def _fit_command(given: Mapping[str, Any]) -> str:
    """The command line that gives these arguments of `fit`, without options at their default."""
    arguments = ["hyperp-law", "fit", str(given["runs"]), "--by", ",".join(given["by"])]
    arguments += option_arguments(
        {
            "--where": given["where"],
            "--fix": given["fix"],
            "--map": given["mapping"],
            "--slice": given["slice_by"],
            "--tuned": given["over"] if split_names(given["over"]) != ["lr"] else None,
            "--also-by": given["also_by"],
            "--method": given["method"] if given["method"] != DEFAULT_METHOD else None,
            "--space": given["space"] if given["space"] != "log" else None,
            "--optima": given["optima"],
            "--window": f"{given['window']:g}" if given["window"] != WINDOW else None,
            "--level": f"{given['level']:g}" if given["level"] != LEVEL else None,
            "--reach": f"{given['reach']:g}" if given["reach"] != DEFAULT_REACH else None,
            "--prior": given["prior"],
            "--bend-sd": None if given["bend_sd"] is None else f"{given['bend_sd']:g}",
            "--tau-sd": None if given["tau_sd"] is None else f"{given['tau_sd']:g}",
            "--se": given["se"],
        }
    )
    return shlex.join([*arguments, "-o", str(given["out"])])
