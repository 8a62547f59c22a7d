"""The commands `hyperp-law loss` and `hyperp-law leverage`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperp.analysis.cli.options import (
    FIT,
    TABLE,
    AsJson,
    Level,
    Map,
    Plots,
    PointsFile,
    Resamples,
    RunsArgument,
    Seed,
    Where,
    option_arguments,
    output_option,
    parse_rows,
)
from hyperp.analysis.vocabulary import HUBER_DELTA, LEVEL

FormOption = Annotated[
    Literal["power", "chinchilla"],
    typer.Option("--form", help="E + A C^-b, or E + A N^-alpha + B D^-beta", rich_help_panel=FIT),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="NAME=VALUE",
        help="fix the floor, such as E=1.6, or an exponent; repeatable",
        rich_help_panel=FIT,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="COLUMN",
        help="this column names the run of each row; whole runs are resampled (run_id where it repeats)",
        rich_help_panel=TABLE,
    ),
]


def loss(
    runs: RunsArgument,
    out: Annotated[Path, output_option("the JSON file of the loss law to write", ".json")],
    form: FormOption = "power",
    mapping: Map = None,
    where: Where = None,
    pin: Pin = None,
    all_rows: Annotated[
        bool,
        typer.Option(
            "--all-rows",
            help="fit every run, not only the best rate at every size",
            rich_help_panel=TABLE,
        ),
    ] = False,
    cluster: Cluster = None,
    by_data: Annotated[
        str | None,
        typer.Option(
            "--by-data",
            metavar="COLUMN",
            help="this column names data sets: they share the exponents, each has its own E, A and B",
            rich_help_panel=FIT,
        ),
    ] = None,
    tie: Annotated[
        str | None,
        typer.Option("--tie", metavar="alpha=beta", help="fit one exponent for both", rich_help_panel=FIT),
    ] = None,
    delta: Annotated[
        float, typer.Option("--delta", help="Huber's threshold on ln L", rich_help_panel=FIT)
    ] = HUBER_DELTA,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
    level: Level = LEVEL,
    plots: Plots = None,
    points: PointsFile = None,  # noqa: ARG001, for `exit_codes`
    as_json: AsJson = False,
) -> None:
    """Fit a loss law and say how well its floor is known.

    C is the column flops, N is parameters and D is tokens. A point of the fit is the lowest loss (mean over
    seeds) among the rates at one size. Where several rows are of one run, such as its checkpoints, --cluster
    names the column that says which. --bootstrap 0 leaves the intervals out.

    \b
    Examples:
      hyperp-law loss runs.parquet --where optimizer=muonh -o loss.json
      hyperp-law loss chinchilla.csv --form chinchilla \\
        --map parameters=N --map tokens=D -o loss.json
      hyperp-law loss checkpoints.csv --form chinchilla --cluster run_name -o loss.json
    """
    from hyperp.analysis import api_loss
    from hyperp.analysis.report.text.loss import loss_warnings, show_loss

    given = option_arguments({"--map": mapping, "--where": where, "--pin": pin, "--all-rows": all_rows})
    given += option_arguments({"--cluster": cluster, "--by-data": by_data, "--tie": tie})
    given += option_arguments({"--delta": f"{delta:g}" if delta != HUBER_DELTA else None})
    given += option_arguments({"--level": f"{level:g}" if level != LEVEL else None})
    given += ["--bootstrap", str(bootstrap), "--seed", str(seed)]
    command = shlex.join(["hyperp-law", "loss", str(runs), "--form", form, *given, "-o", str(out)])
    fitted = api_loss.fit_loss(
        runs,
        form,
        **parse_rows(mapping, where),
        pin=_parse_pins(pin),
        tie=tie,
        all_rows=all_rows,
        cluster=cluster,
        by_data=by_data,
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        level=level,
        command=command,
    )
    fitted.save(out)
    for line in loss_warnings(fitted.law):
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(fitted.law.model_dump_json(indent=2))
    else:
        show_loss(fitted.law)
        typer.echo(f"wrote {out}")
    if plots is not None:
        _print_written(fitted.write_plots(plots))


def leverage(
    runs: RunsArgument,
    baseline: Annotated[
        str, typer.Option(metavar="COLUMN=VALUE", help="the curve to compare with, such as optimizer=muon")
    ],
    over: Annotated[str | None, typer.Option(hidden=True)] = None,  # --baseline names the column
    mapping: Map = None,
    where: Where = None,
    pin: Pin = None,
    cluster: Cluster = None,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
    level: Level = LEVEL,
    plots: Plots = None,
    points: PointsFile = None,  # noqa: ARG001, for `exit_codes`
    as_json: AsJson = False,
) -> None:
    """Compare the compute that optimizers need for equal loss.

    The leverage over the baseline is the ratio of its compute to that of another curve at equal loss (CEL,
    arXiv 2603.28743). A law L(C) is fitted to each curve; their compute is compared only at losses that both
    reached.

    \b
    Example:
      hyperp-law leverage runs.parquet --baseline optimizer=muon
    """
    from hyperp.analysis import api_loss
    from hyperp.analysis.report.text.loss import show_leverage

    column, sign, value = baseline.partition("=")
    if not (column and sign and value) or over not in (None, column):
        raise ValueError(
            f"--baseline must be {over or 'COLUMN'}=VALUE, such as optimizer=muon, got {baseline!r}"
        )
    found = api_loss.leverage(
        runs,
        {column: value},
        **parse_rows(mapping, where),
        pin=_parse_pins(pin),
        cluster=cluster,
        bootstrap=bootstrap,
        seed=seed,
        level=level,
    )
    for line in found.answer.warnings:
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(found.answer.model_dump_json(indent=2))
    else:
        show_leverage(found.answer)
    if plots is not None:
        _print_written(found.write_plots(plots))


def _parse_pins(texts: list[str] | None) -> dict[str, float]:
    pins = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            pins[name] = float(value)
        except ValueError:
            raise ValueError(f"--pin must be such as E=1.6, got {text!r}") from None
    return pins


def _print_written(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}", err=True)
