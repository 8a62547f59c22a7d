"""The command `hyperp-law fit`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyperp.analysis.cli.options import (
    AsJson,
    Decorator,
    Fix,
    Map,
    MethodOption,
    Over,
    PointsFile,
    RunsArgument,
    SliceBy,
    Where,
    Window,
    ends_in,
    fixed_of,
    load,
    method_of,
    names_of,
    words_of,
)
from hyperp.analysis.vocabulary import REACH, WINDOW


def fit(
    runs: RunsArgument,
    by: Annotated[
        list[str],
        typer.Option(help="sizes whose exponents to fit: any numeric column; repeat it, or N,tokens"),
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
    points: PointsFile = None,  # for `answer`
    as_json: AsJson = False,
) -> None:
    """Fit lr = exp(a) * product of covariate^b to the best rates of the slices, and write it as JSON.

    Example: hyperp-law fit runs/demo/runs.parquet --by tokens -o runs/demo/law.json

    Example: hyperp-law fit runs.csv --map lr=learning_rate --map loss="smooth loss" --map tokens=D --map
    batch_tokens=bs*2048 --by N,tokens --over lr,batch_tokens -o law.json
    """
    from hyperp.analysis.law.fit import fit_law
    from hyperp.analysis.law.schema import law_text, save_law
    from hyperp.analysis.report.text.law import show_law
    from hyperp.analysis.table.read import parse_map

    command = _fit_command(locals())
    sizes, fixed, tuned = names_of(",".join(by)), fixed_of(fix), tuple(names_of(over))
    columns = [*sizes, *fixed, *(slice_by or []), *tuned[1:]]
    table, rows = load(runs, mapping, where, columns, loss=not optima)
    law = fit_law(
        table,
        sizes,
        rows,
        fixed,
        window,
        command=command,
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


def _fit_command(given: Mapping[str, Any]) -> str:
    """`hyperp-law fit` as it was typed, from the arguments of `fit`; what is the default is left out."""
    words = ["hyperp-law", "fit", str(given["runs"]), "--by", ",".join(given["by"])]
    words += words_of(
        {
            "--where": given["where"],
            "--fix": given["fix"],
            "--map": given["mapping"],
            "--slice": given["slice_by"],
            "--over": given["over"] if names_of(given["over"]) != ["lr"] else None,
            "--also-by": given["also_by"],
            "--method": given["method"],
            "--space": given["space"] if given["space"] != "log" else None,
            "--optima": given["optima"],
            "--window": f"{given['window']:g}" if given["window"] != WINDOW else None,
            "--reach": f"{given['reach']:g}" if given["reach"] != REACH else None,
        }
    )
    return shlex.join([*words, "-o", str(given["out"])])


def register(app: typer.Typer, answer: Decorator) -> None:
    """Add the command; `answer` turns bad input and refusals into one line and an exit code."""
    app.command()(answer(fit))
