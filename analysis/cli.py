"""The command hyperp-law: check, fit, recommend, loss, leverage, transfer, coordinates, next, validate,
report.

Exit codes: 0 an answer, 1 a recommendation that did not hold, 2 bad input, 3 data that cannot identify the
answer.
"""

import os
import shlex
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from hyperp.analysis import coordinates_cli, loss_cli, transfer_cli
from hyperp.analysis.options import (
    AsJson,
    At,
    Extrapolate,
    Fix,
    LawArgument,
    Map,
    MethodOption,
    Over,
    PointsFile,
    RunsArgument,
    SaveAnswer,
    Size,
    SliceBy,
    Where,
    Window,
    answer,
    ends_in,
    fixed_of,
    load,
    method_of,
    names_of,
    sizes_of,
    words_of,
)
from hyperp.analysis.vocabulary import REACH, WINDOW

app = typer.Typer(
    name="hyperp-law",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyperp-law {installed_version('hyperp-scaling')}")
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
    from hyperp.analysis.check import check as ask
    from hyperp.analysis.show import show_check

    columns, tuned = names_of(by), tuple(names_of(over))
    table, rows = load(runs, mapping, where, [*columns, *tuned[1:]])
    found = ask(table, rows, window, columns, tuned, method_of(method))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_check(found)


@app.command()
@answer
def fit(
    runs: RunsArgument,
    by: Annotated[
        str, typer.Option(help="sizes whose exponents to fit, comma-separated: any numeric column")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="where to write the law", callback=ends_in(".json"))
    ],
    over: Over = "lr",
    where: Where = None,
    fix: Fix = None,
    mapping: Map = None,
    slice_by: SliceBy = None,
    also_by: Annotated[
        str, typer.Option(help="sizes for what is tuned beside the rate; all of --by unless given")
    ] = "",
    method: MethodOption = None,
    space: Annotated[
        Literal["log", "linear"], typer.Option(help="least squares in log rates, or in the rates themselves")
    ] = "log",
    optima: Annotated[
        bool, typer.Option("--optima", help="every row already is an optimum: its lr is the best rate")
    ] = False,
    window: Window = WINDOW,
    reach: Annotated[
        float, typer.Option(help="how many times beyond its range in a size the law may be asked")
    ] = REACH,
    points: PointsFile = None,  # noqa: ARG001, for `answer`
    as_json: AsJson = False,
) -> None:
    """Fit lr = exp(a) * product of covariate^b to the best rates of the slices, and write it as JSON.

    Example: hyperp-law fit runs/demo/runs.parquet --by tokens -o runs/demo/law.json

    Example: hyperp-law fit runs.csv --map lr=learning_rate --map loss="smooth loss" --map tokens=D --map
    batch_tokens=bs*2048 --by N,tokens --over lr,batch_tokens -o law.json
    """
    from hyperp.analysis.fit import fit_law
    from hyperp.analysis.law import law_text, save_law
    from hyperp.analysis.mapping import parse_map
    from hyperp.analysis.show import show_law

    fixed, tuned = fixed_of(fix), tuple(names_of(over))
    words = ["hyperp-law", "fit", str(runs), "--by", by]
    words += words_of({"--where": where, "--fix": fix, "--map": mapping, "--slice": slice_by})
    words += words_of(
        {"--over": over if tuned != ("lr",) else None, "--also-by": also_by, "--method": method}
    )
    words += words_of({"--space": space if space != "log" else None})
    words += ["--optima"] if optima else []
    words += words_of({"--window": f"{window:g}" if window != WINDOW else None})
    words += words_of({"--reach": f"{reach:g}" if reach != REACH else None})
    table, rows = load(
        runs, mapping, where, [*names_of(by), *fixed, *(slice_by or []), *tuned[1:]], loss=not optima
    )
    law = fit_law(
        table,
        names_of(by),
        rows,
        fixed,
        window,
        command=shlex.join([*words, "-o", str(out)]),
        mapping=parse_map(mapping or []),
        over=tuned,
        also_by=tuple(names_of(also_by)),
        slice_by=tuple(slice_by or ()),
        method=method_of(method),
        space=space,
        given=optima,
        reach=reach,
    )
    save_law(law, out)
    if as_json:
        typer.echo(law_text(law))
    else:
        show_law(law)
        typer.echo(f"wrote {out}")


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
    from hyperp.analysis.law import load_law
    from hyperp.analysis.recommend import hydra_words
    from hyperp.analysis.recommend import recommend as ask

    if as_json and hydra:
        raise ValueError("--json and --hydra exclude each other, got both")
    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    named = sizes_of(at, **sizes, granularity=granularity, sparsity=sparsity)
    asked = {"optimizer": optimizer, "parametrization": parametrization, "schedule": schedule}
    fitted = load_law(law)
    found = ask(fitted, named, {n: v for n, v in asked.items() if v is not None}, extrapolate)
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    if hydra:
        typer.echo(hydra_words(fitted, found, named))
        typer.echo(
            f"note: base_lr = lr / {found.rate_factor:g}, the factor of the fitted runs' parametrization; "
            "use the same one, its fitted exponents zero",
            err=True,
        )
    elif as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        from hyperp.analysis.show import show_recommendation

        show_recommendation(fitted, found)


@app.command("next")
@answer
def next_command(
    law: LawArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="where to write the points", callback=ends_in(".yaml"))
    ],
    slices: Annotated[int, typer.Option(help="how many further slices")] = 2,
    among: Annotated[
        list[str] | None, typer.Option(help="choose among these sizes alone, such as tokens=1e6; repeat it")
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
    with the rates that would bracket it. Several sizes of one slice of --among are separated by commas.

    Example: hyperp-law next law.json --tokens 2e11 -o points.yaml
    """
    from hyperp.analysis.law import load_law
    from hyperp.analysis.nextruns import next_runs
    from hyperp.analysis.points import WORDS, run_command, save_points
    from hyperp.analysis.show import show_next

    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    fitted = load_law(law)
    target = sizes_of(at, **sizes, granularity=granularity, sparsity=sparsity)
    found = next_runs(fitted, target, slices, [sizes_of(one.split(",")) for one in among or []])
    save_points(found.points, out, f"further slices for {law}")
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_next(fitted, found)
        typer.echo(f"wrote {out}; run it with: {run_command(out)}\n{WORDS}")


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
    from hyperp.analysis.law import load_law, save_json
    from hyperp.analysis.show import show_validation
    from hyperp.analysis.validate import validate as ask

    fitted = load_law(law)
    table, rows = load(runs, mapping, where, [*fitted.ranges, *fitted.held])
    found = ask(fitted, table, rows)
    if out is not None:
        save_json(found.model_dump_json(indent=2) + "\n", out)
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
    from hyperp.analysis.law import load_law
    from hyperp.analysis.report import write_report
    from hyperp.analysis.validate import validate as ask

    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    named = sizes_of(None, **sizes, granularity=granularity, sparsity=sparsity)
    target = sizes_of(at, **sizes, granularity=granularity, sparsity=sparsity)
    words = ["hyperp-law", "report", str(law), "-o", str(out)]
    words += words_of({"--check": None if check is None else str(check)})
    words += words_of(
        {f"--{name.replace('_', '-')}": str(size) for name, size in named.items()} | {"--at": at}
    )
    words += ["--extrapolate"] if extrapolate else []
    fitted = load_law(law)
    validation = None if check is None else ask(fitted, load(check, None, None)[0])
    for path in write_report(fitted, out, shlex.join(words), target or None, validation, extrapolate):
        typer.echo(f"wrote {path}")


for part in (loss_cli, transfer_cli, coordinates_cli):
    part.register(app, answer)


def main() -> None:
    """Entry point of hyperp-law: a wrong option, too, is one line."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = cast(Any, error).format_message().replace(": Value error, ", ": ")
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
