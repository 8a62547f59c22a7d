"""The command hyperp-law: check, fit, recommend, transfer, validate, report.

Exit codes: 0 an answer, 1 a recommendation that did not hold, 2 bad input, 3 data that cannot identify the
answer.
"""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperp.analysis.errors import Refusal
from hyperp.analysis.vocabulary import COVARIATES, WINDOW

app = typer.Typer(
    name="hyperp-law",
    help="From a table of runs to a learning rate with an interval, or to what to run next.\n\n"
    "Exit codes: 0 an answer, 1 the recommended rate did not hold, 2 bad input, 3 the data cannot tell.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RUNS_HELP = "runs.parquet, a CSV, or a folder holding runs.parquet"
WINDOW_HELP = "half-width in octaves of the parabola's window about the optimum"
RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help=RUNS_HELP)]
LawArgument = Annotated[Path, typer.Argument(metavar="LAW", help="the law.json that `hyperp-law fit` wrote")]
Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="only these rows; repeatable")
]
Fix = Annotated[
    list[str] | None, typer.Option("--fix", metavar="COVARIATE=EXPONENT", help="hold an exponent; repeatable")
]
Window = Annotated[float, typer.Option(help=WINDOW_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Size = Annotated[str | None, typer.Option(metavar="N", help="size at the target, such as 520000 or 5.2e5")]
SaveAnswer = Annotated[
    Path | None, typer.Option("--out", "-o", help="also write the answer as JSON, for the report")
]


def answer(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input becomes one line and exit 2, a refusal its reason, the points to run and exit 3."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Refusal as refusal:
            _show_refusal(refusal, bool(kwargs.get("as_json")))
            raise typer.Exit(3) from None
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(2) from None

    return wrapped


def _show_refusal(refusal: Refusal, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"refused": refusal.reason, "next": refusal.next_points}, indent=2))
    typer.echo(f"refused: {refusal.reason}", err=True)
    for point in () if as_json else refusal.next_points:
        rates = ", ".join(f"{rate:g}" for rate in point["lr"])
        sizes = " ".join(f"{name}={point[name]}" for name in ("optimizer", *COVARIATES) if name in point)
        typer.echo(f"run next: {sizes}" + (f" lr={rates}" if rates else ""), err=True)


def _sizes(**given: str | None) -> dict[str, int]:
    sizes = {}
    for name, text in given.items():
        if text is None:
            continue
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value >= 1 and value == value // 1 and value < 2**62):
            raise ValueError(f"{name} must be a whole number of at least 1, such as 5.2e5, got {text!r}")
        sizes[name] = int(value)
    return sizes


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _fixed(conditions: list[str] | None) -> dict[str, float]:
    fixed = {}
    for condition in conditions or []:
        name, _, value = condition.partition("=")
        try:
            fixed[name] = float(value)
        except ValueError:
            raise ValueError(f"--fix must be such as depth=-0.5, got {condition!r}") from None
    return fixed


@app.command()
@answer
def check(runs: RunsArgument, where: Where = None, window: Window = WINDOW, as_json: AsJson = False) -> None:
    """Say what a table of runs holds and which exponents it could identify.

    Example: hyperp-law check runs/demo/runs.parquet
    """
    from hyperp.analysis.check import check as ask
    from hyperp.analysis.records import parse_where, read_runs
    from hyperp.analysis.show import show_check

    found = ask(read_runs(runs), parse_where(where or []), window)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_check(found)


@app.command()
@answer
def fit(
    runs: RunsArgument,
    by: Annotated[str, typer.Option(help=f"covariates to fit, comma-separated, of {', '.join(COVARIATES)}")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where to write the law")],
    where: Where = None,
    fix: Fix = None,
    window: Window = WINDOW,
    as_json: AsJson = False,
) -> None:
    """Fit lr = exp(a) * product of covariate^b to the best rates of the slices, and write it as JSON.

    Example: hyperp-law fit runs/demo/runs.parquet --by tokens -o runs/demo/law.json

    Example: hyperp-law fit runs.csv --by tokens,batch_tokens --where optimizer=muonh --fix depth=-0.5 -o
    law.json
    """
    from hyperp.analysis.fit import fit_law
    from hyperp.analysis.law import save_law
    from hyperp.analysis.records import parse_where, read_runs
    from hyperp.analysis.show import show_law

    words = ["hyperp-law", "fit", str(runs), "--by", by]
    words += [w for c in where or [] for w in ("--where", c)] + [w for c in fix or [] for w in ("--fix", c)]
    words += ["--window", f"{window:g}"] if window != WINDOW else []
    command = shlex.join([*words, "-o", str(out)])
    law = fit_law(read_runs(runs), _names(by), parse_where(where or []), _fixed(fix), window, command=command)
    save_law(law, out)
    if as_json:
        typer.echo(law.model_dump_json(indent=2))
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
    named = _sizes(**sizes, granularity=granularity, sparsity=sparsity)
    fitted = load_law(law)
    found = ask(fitted, named)
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


@app.command()
@answer
def transfer(
    runs: RunsArgument,
    over: Annotated[str, typer.Option(help=f"the axis, one of {', '.join(COVARIATES)}")],
    where: Where = None,
    window: Window = WINDOW,
    as_json: AsJson = False,
) -> None:
    """Say how far the best rate moves along one axis, and what ignoring that costs.

    Example: hyperp-law transfer runs/demo/runs.parquet --over width
    """
    from hyperp.analysis.check import check as ask
    from hyperp.analysis.records import parse_where, read_runs
    from hyperp.analysis.show import show_transfer
    from hyperp.analysis.transfer import transfer as along

    slices = ask(read_runs(runs), parse_where(where or []), window).slices
    found = along(slices, over)
    if not found:
        raise Refusal(f"{over} has one value wherever slices are alike in the rest; run another value")
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
    else:
        show_transfer(over, found)


@app.command()
@answer
def validate(
    law: LawArgument,
    runs: RunsArgument,
    where: Where = None,
    out: SaveAnswer = None,
    as_json: AsJson = False,
) -> None:
    """Check the recommended rate against others that were run at one target scale.

    It holds when, against every other rate, the mean loss difference over common seeds (recommended less
    other) is at most the standard deviation of that mean over seeds. Exit 1 when it does not.

    Example: hyperp-law validate runs/demo/law.json runs/demo_check/runs.parquet
    """
    from hyperp.analysis.law import load_law, save_json
    from hyperp.analysis.records import parse_where, read_runs
    from hyperp.analysis.show import show_validation
    from hyperp.analysis.validate import validate as ask

    found = ask(load_law(law), read_runs(runs), parse_where(where or []))
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
) -> None:
    """Write report.md with tables, and every plot as PNG, SVG and CSV.

    With a target size, the report holds the recommendation for it.

    Example: hyperp-law report runs/demo/law.json -o reports/demo --tokens 5.2e5
    """
    from hyperp.analysis.law import load_law
    from hyperp.analysis.records import read_runs
    from hyperp.analysis.report import write_report
    from hyperp.analysis.validate import validate as ask

    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    target = _sizes(**sizes, granularity=granularity, sparsity=sparsity)
    words = ["hyperp-law", "report", str(law), "-o", str(out)]
    words += ["--check", str(check)] if check else []
    words += [word for name, size in target.items() for word in (f"--{name.replace('_', '-')}", str(size))]
    fitted = load_law(law)
    validation = None if check is None else ask(fitted, read_runs(check))
    for path in write_report(fitted, out, shlex.join(words), target or None, validation):
        typer.echo(f"wrote {path}")


def main() -> None:
    """Entry point of hyperp-law: a wrong option, too, is one line."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)  # pyright: ignore
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
