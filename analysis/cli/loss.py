"""The commands `hyperp-law loss` and `hyperp-law leverage`."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyperp.analysis.cli.options import (
    AsJson,
    Decorator,
    Map,
    PointsFile,
    RunsArgument,
    Where,
    ends_in,
    words_of,
)

FormOption = Annotated[
    Literal["power", "chinchilla"], typer.Option("--form", help="E + A C^-b, or E + A N^-alpha + B D^-beta")
]
Pin = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="NAME=VALUE", help="hold the floor, E=1.6, or an exponent; repeatable"),
]
Resamples = Annotated[int, typer.Option("--bootstrap", metavar="COUNT", help="resamples for the intervals")]
Seed = Annotated[int, typer.Option(min=0, help="of the resamples")]
Plots = Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="write the plots to this folder")]


def loss(
    runs: RunsArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="where to write the law", callback=ends_in(".json"))
    ],
    form: FormOption = "power",
    mapping: Map = None,
    where: Where = None,
    pin: Pin = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="every run is a point, not the best rate of every size")
    ] = False,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
    plots: Plots = None,
    points: PointsFile = None,  # noqa: ARG001, for `answer`
    as_json: AsJson = False,
) -> None:
    """Fit a loss law and say how well its floor is known.

    Compute is the column flops, N and D are parameters and tokens; at each, the lowest mean-over-seeds loss
    among the rates counts. --bootstrap 0 leaves the intervals out.

    Example: hyperp-law loss runs.parquet --form power --where optimizer=muonh -o loss.json

    Example: hyperp-law loss chinchilla.csv --form chinchilla --map parameters=N --map tokens=D -o loss.json
    """
    from hyperp.analysis.loss.bootstrap import bootstrap_loss, floor_interval
    from hyperp.analysis.loss.fit import fit_loss_law, profile_floor
    from hyperp.analysis.loss.points import loss_points
    from hyperp.analysis.loss.schema import loss_law_record, save_loss
    from hyperp.analysis.report.text.loss import show_loss, unconverged

    pins = _pins(pin)
    frame, source = _read(runs, mapping, where)
    fit = fit_loss_law(loss_points(frame, form, all_rows), pins)
    draws = bootstrap_loss(fit, bootstrap, seed) if bootstrap else None
    found = profile_floor(fit, None if draws is None else floor_interval(draws))
    words = words_of({"--map": mapping, "--where": where, "--pin": pin, "--all-rows": all_rows})
    words += ["--bootstrap", str(bootstrap), "--seed", str(seed)]
    source["command"] = shlex.join(["hyperp-law", "loss", str(runs), "--form", form, *words, "-o", str(out)])
    law = loss_law_record(fit, found, draws, source)
    save_loss(law, out)
    for line in unconverged(law):
        typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(law.model_dump_json(indent=2))
    else:
        show_loss(law)
        typer.echo(f"wrote {out}")
    if plots is not None:
        from hyperp.analysis.report.figures.loss import law_plots

        _report(law_plots(fit, draws, found, plots))


def leverage(
    runs: RunsArgument,
    baseline: Annotated[str, typer.Option(metavar="COLUMN=VALUE", help="such as optimizer=muon")],
    over: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="what tells the curves apart; the baseline's column")
    ] = None,
    mapping: Map = None,
    where: Where = None,
    pin: Pin = None,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
    plots: Plots = None,
    points: PointsFile = None,  # noqa: ARG001, for `answer`
    as_json: AsJson = False,
) -> None:
    """Say how many times the baseline's compute the others save at equal loss (CEL, arXiv 2603.28743).

    A law L(C) is fitted to each; their compute is compared only at losses that both reached.

    Example: hyperp-law leverage runs.parquet --baseline optimizer=muon
    """
    from hyperp.analysis.loss.leverage import compute_leverage
    from hyperp.analysis.report.text.loss import show_leverage

    column, sign, value = baseline.partition("=")
    if not (column and sign and value) or over not in (None, column):
        raise ValueError(
            f"--baseline must be {over or 'COLUMN'}=VALUE, such as optimizer=muon, got {baseline!r}"
        )
    pins = _pins(pin)
    frame, source = _read(runs, mapping, where)
    answer, series = compute_leverage(frame, value, column, pins, bootstrap, seed)
    answer = answer.model_copy(update={n: source[n] for n in ("records", "records_sha256")})
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        show_leverage(answer)
    if plots is not None:
        from hyperp.analysis.report.figures.loss import leverage_plots

        _report(leverage_plots(answer, series, plots))


def register(app: typer.Typer, answer: Decorator) -> None:
    """Add both commands; `answer` turns bad input and refusals into one line and an exit code."""
    for command in (loss, leverage):
        app.command()(answer(command))


def _read(runs: Path, mapping: list[str] | None, where: list[str] | None) -> tuple[Any, dict[str, Any]]:
    from hyperp.analysis.table.read import apply_map, parse_map, read_table
    from hyperp.analysis.table.validate import filter_runs, parse_where

    names, conditions = parse_map(mapping or []), parse_where(where or [])
    table = read_table(runs)
    frame = filter_runs(apply_map(table.frame, names), conditions)
    source = {"mapping": names, "where": conditions, "records": table.path, "records_sha256": table.sha256}
    return frame, source


def _pins(texts: list[str] | None) -> dict[str, float]:
    pins = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            pins[name] = float(value)
        except ValueError:
            raise ValueError(f"--pin must be such as E=1.6, got {text!r}") from None
    return pins


def _report(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}", err=True)
