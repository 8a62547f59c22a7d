"""The command hyperp-law: check, fit, recommend, loss, leverage, transfer, coordinates, next, validate,
report.

Exit codes: 0 an answer, 1 a recommendation that did not hold, 2 bad input, 3 data that cannot identify the
answer.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperp import __version__
from hyperp.analysis.cli import diagnostics, fit, loss
from hyperp.analysis.cli.options import (
    PROGRAM,
    AsJson,
    At,
    Extrapolate,
    LawArgument,
    Map,
    MethodOption,
    Over,
    PointsFile,
    RunsArgument,
    SaveAnswer,
    Size,
    Where,
    Window,
    answer,
    ends_in,
    load,
    method_of,
    names_of,
    sizes_of,
    words_of,
)
from hyperp.analysis.vocabulary import WINDOW
from hyperp.terminal import run_app

if TYPE_CHECKING:  # pull in numpy, which --help does without
    from hyperp.analysis.law.schema import Law
    from hyperp.analysis.queries.recommend import Recommendation

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyperp-law {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """From a table of runs to a learning rate with an interval, or to what to run next.

    Exit codes: 0 an answer, 1 the recommended rate did not hold, 2 bad input, 3 the data cannot tell.
    """


@app.command()
@answer
def check(
    runs: RunsArgument,
    by: Annotated[str, typer.Option(help="columns of sizes beyond the standard ones, as N,D")] = "",
    over: Over = "lr",
    where: Where = None,
    mapping: Map = None,
    method: MethodOption = None,
    window: Window = WINDOW,
    as_json: AsJson = False,
) -> None:
    """Say what a table of runs holds and which exponents it could identify.

    Example: hyperp-law check runs/demo/runs.parquet
    """
    from hyperp.analysis.queries.check import check as ask
    from hyperp.analysis.report.text.slices import show_check

    columns, tuned = names_of(by), tuple(names_of(over))
    table, rows = load(runs, mapping, where, [*columns, *tuned[1:]])
    found = ask(table, rows, window, columns, tuned, method_of(method))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_check(found)


fit.register(app, answer)


@app.command()
@answer
def recommend(
    law: LawArgument,
    tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    batch_tokens: Size = None,
    granularity: Size = None,
    sparsity: Size = None,
    at: At = None,
    optimizer: Annotated[str | None, typer.Option(help="refuse unless the law is for it")] = None,
    parametrization: Annotated[str | None, typer.Option(help="refuse unless the law is for it")] = None,
    schedule: Annotated[str | None, typer.Option(help="refuse unless the law is for it")] = None,
    extrapolate: Extrapolate = False,
    points: PointsFile = None,  # noqa: ARG001, for `answer`
    as_json: AsJson = False,
    hydra: Annotated[
        bool, typer.Option(help="print override words for hyperp-train and hyperp-sweep")
    ] = False,
) -> None:
    """Say the learning rate for a target scale, with its prediction interval and every factor.

    Sizes that the law holds constant may be left out.

    Example: hyperp-law recommend law.json --tokens 5.2e5

    Example: hyperp-train $(hyperp-law recommend law.json --tokens 5.2e5 --hydra)
    """
    from hyperp.analysis.law.schema import load_law
    from hyperp.analysis.queries.recommend import recommend as ask
    from hyperp.analysis.queries.recommend import refuse_unknown

    if as_json and hydra:
        raise ValueError("--json and --hydra exclude each other, got both")
    sizes: dict[str, str | None] = {
        "tokens": tokens,
        "width": width,
        "depth": depth,
        "batch_tokens": batch_tokens,
    }
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    named = sizes_of(at, sizes)
    asked = {"optimizer": optimizer, "parametrization": parametrization, "schedule": schedule}
    fitted = load_law(law)
    found = ask(fitted, named, {n: v for n, v in asked.items() if v is not None}, extrapolate)
    if not extrapolate:
        refuse_unknown(fitted, found)
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    if hydra:
        _print_hydra_words(fitted, found)
    elif as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        from hyperp.analysis.report.text.recommendation import show_recommendation

        show_recommendation(fitted, found)


def _print_hydra_words(law: "Law", found: "Recommendation") -> None:
    from hyperp.analysis.queries.recommend import hydra_words

    typer.echo(hydra_words(law, found))
    typer.echo(
        f"note: base_lr = lr / {found.rate_factor:g}, the factor of the fitted runs' parametrization; "
        "use the same one, its fitted exponents zero",
        err=True,
    )


@app.command("next")
@answer
def next_command(
    law: LawArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="where to write the points", callback=ends_in(".yaml"))
    ],
    slices: Annotated[int, typer.Option(help="how many further slices")] = 2,
    among: Annotated[
        list[str] | None,
        typer.Option(
            help="choose among these slices alone; one is tokens=1e6 or tokens=1e6,width=128; repeat it"
        ),
    ] = None,
    tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    batch_tokens: Size = None,
    granularity: Size = None,
    sparsity: Size = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Say which runs would shrink the prediction interval at a target most for what they cost.

    Without a target it is 8 times the largest fitted size. Slices of the law without an optimum come first,
    with the rates that would bracket it.

    Example: hyperp-law next law.json --tokens 2e11 -o points.yaml
    """
    from hyperp.analysis.law.schema import load_law
    from hyperp.analysis.queries.next_runs import next_runs
    from hyperp.analysis.queries.points_file import WORDS, run_command, save_points
    from hyperp.analysis.report.text.recommendation import show_next_runs

    sizes: dict[str, str | None] = {
        "tokens": tokens,
        "width": width,
        "depth": depth,
        "batch_tokens": batch_tokens,
    }
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    fitted = load_law(law)
    target = sizes_of(at, sizes)
    offers = [sizes_of(one.split(","), option="--among") for one in among or []]
    found = next_runs(fitted, target, slices, offers)
    wrote = save_points(found.points, out, f"further slices for {law}")
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    elif wrote:
        show_next_runs(fitted, found)
        typer.echo(f"wrote {out}; run it with: {run_command(out)}\n{WORDS}")
    else:
        raise ValueError(
            "--among: none is a further slice of the law; it has them, or they differ in what it holds"
        )


@app.command()
@answer
def validate(
    law: LawArgument,
    runs: RunsArgument,
    where: Where = None,
    mapping: Map = None,
    out: SaveAnswer = None,
    as_json: AsJson = False,
) -> None:
    """Check the recommended rate against others that were run at one target scale.

    It holds when, against every other rate, the mean loss difference over common seeds (recommended less
    other) is at most the standard deviation of that mean over seeds. Exit 1 when it does not.

    Example: hyperp-law validate runs/demo/law.json runs/demo_check/runs.parquet
    """
    from hyperp.analysis.files import write_text
    from hyperp.analysis.law.schema import load_law
    from hyperp.analysis.queries.validate import validate as ask
    from hyperp.analysis.report.text.recommendation import show_validation

    fitted = load_law(law)
    table, rows = load(runs, mapping, where, [*fitted.ranges, *fitted.held])
    found = ask(fitted, table, rows)
    if out is not None:
        write_text(found.model_dump_json(indent=2) + "\n", out)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_validation(found)
    if not found.passed:
        typer.echo(found.verdict, err=True)
        raise typer.Exit(1)


@app.command()
@answer
def report(
    law: LawArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write, made if it is not there")],
    check: Annotated[
        Path | None, typer.Option(help="runs at a target scale, to report what `validate` says of them")
    ] = None,
    tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    batch_tokens: Size = None,
    granularity: Size = None,
    sparsity: Size = None,
    at: At = None,
    extrapolate: Extrapolate = False,
) -> None:
    """Write report.md with tables, and every plot as PNG, SVG and CSV.

    With a target size, the report holds the recommendation for it. If the table that the law was fitted to is
    still there, unchanged, what stability monitors saw of its runs is drawn too.

    Example: hyperp-law report runs/demo/law.json -o reports/demo --tokens 5.2e5
    """
    from hyperp.analysis.law.schema import load_law
    from hyperp.analysis.queries.validate import validate as ask
    from hyperp.analysis.report.report import write_report

    sizes: dict[str, str | None] = {
        "tokens": tokens,
        "width": width,
        "depth": depth,
        "batch_tokens": batch_tokens,
    }
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    named = sizes_of(None, sizes)
    target = sizes_of(at, sizes)
    words = ["hyperp-law", "report", str(law), "-o", str(out)]
    words += words_of({"--check": None if check is None else str(check)})
    words += words_of({f"--{name.replace('_', '-')}": str(size) for name, size in named.items()})
    words += words_of({"--at": at, "--extrapolate": extrapolate})
    fitted = load_law(law)
    validation = None if check is None else ask(fitted, load(check, None, None)[0])
    for path in write_report(fitted, out, shlex.join(words), target or None, validation, extrapolate):
        typer.echo(f"wrote {path}")


for part in (loss, diagnostics):
    part.register(app, answer)


def main() -> None:
    """Entry point of hyperp-law; see `hyperp.terminal.run_app` for how it ends."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
