"""What the commands of hyperp-law share: their options, how these are parsed, and the exit codes."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from hyperp.analysis.errors import Refusal, options_in_errors
from hyperp.analysis.vocabulary import CONFIG_GROUPS, DEFAULT_METHOD, METHODS, NOT_COVARIATES
from hyperp.run_table import CONTEXT, COVARIATES
from hyperp.terminal import BAD_INPUT, REFUSED, one_line, print_error

if TYPE_CHECKING:  # pulls in pandas, which a recommendation does without
    from hyperp.analysis.table.validate import Runs

PROGRAM = "hyperp-law"

# Titles under which --help lists the options.
TABLE, FIT, TARGET, OUTPUT = "Reading the table", "Fitting", "Target", "Output"

RunsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUNS",
        help="runs.parquet, another Parquet, CSV or JSON lines file, a folder that holds runs.parquet, or - "
        "for standard input",
    ),
]
LawArgument = Annotated[Path, typer.Argument(metavar="LAW", help="the law.json that `hyperp-law fit` wrote")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="COLUMN=VALUE", help="use only these rows; repeatable", rich_help_panel=TABLE
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=EXPRESSION",
        help="read NAME (lr, loss, tokens, ...) from another column, or compute it: tau=batch/(lr*wd*T), "
        "with + - * / **, sqrt, log, exp, and `odd names` in backquotes; repeatable",
        rich_help_panel=TABLE,
    ),
]
SliceBy = Annotated[
    list[str] | None,
    typer.Option(
        "--slice",
        metavar="COLUMN",
        help="fit a separate curve for each value of this column of sizes; repeatable",
        rich_help_panel=TABLE,
    ),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="COVARIATE=EXPONENT",
        help="fix an exponent at its theoretical value and test that value against the data; repeatable",
        rich_help_panel=FIT,
    ),
]
Tuned = Annotated[
    str,
    typer.Option(
        "--tuned",
        metavar="COLUMNS",
        help="what was tuned: lr, or lr and one or two more columns, such as lr,batch_tokens,weight_decay",
        rich_help_panel=FIT,
    ),
]
Window = Annotated[
    float,
    typer.Option(
        help="half-width in octaves of the window about the optimum that --method two-stage fits",
        rich_help_panel=FIT,
    ),
]
Level = Annotated[float, typer.Option("--level", help="coverage of the intervals", rich_help_panel=FIT)]
MethodOption = Annotated[  # typer takes any text, so that an unknown method is an error like all others
    Any,
    typer.Option(
        parser=str,  # Typer before 0.29 takes Any with a parser only
        metavar="NAME",
        help=f"how optima are found: {', '.join(METHODS)}; {DEFAULT_METHOD} unless given",
        show_default=False,
        autocompletion=lambda incomplete: [name for name in METHODS if name.startswith(incomplete)],
        rich_help_panel=FIT,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="N", help="size at the target, such as 520000 or 5.2e5", rich_help_panel=TARGET),
]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="NAME=SIZE",
        help="a size under any other name, such as N=1e9; repeatable",
        rich_help_panel=TARGET,
    ),
]
Extrapolate = Annotated[
    bool,
    typer.Option(
        "--extrapolate",
        help="answer even beyond the law's largest extrapolation factor or with a very wide interval",
        rich_help_panel=TARGET,
    ),
]
ContextOption = Annotated[
    str | None, typer.Option(help="refuse unless the law was fitted for it", rich_help_panel=TARGET)
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON", rich_help_panel=OUTPUT)]
PointsFile = Annotated[
    Path | None,
    typer.Option(
        "--points",
        metavar="FILE",
        help="YAML file for the runs that a refusal suggests; beside the output unless given, if any",
        rich_help_panel=OUTPUT,
    ),
]
Resamples = Annotated[
    int,
    typer.Option("--bootstrap", metavar="COUNT", help="resamples for the intervals", rich_help_panel=FIT),
]
Seed = Annotated[int, typer.Option(min=0, help="seed of the resamples", rich_help_panel=FIT)]
Plots = Annotated[
    Path | None,
    typer.Option("--plots", metavar="DIR", help="write the plots to this folder", rich_help_panel=OUTPUT),
]


def require_suffix(suffix: str) -> Callable[[Path | None], Path | None]:
    """A callback that rejects an output with another suffix, so that no command overwrites a table."""

    def require(path: Path | None) -> Path | None:
        if path is not None and path.suffix != suffix:
            raise typer.BadParameter(f"must end in {suffix}, got {path}")
        return path

    return require


def output_option(help_text: str, suffix: str | None = None) -> Any:
    """The option -o/--output of a command; a file must have the suffix."""
    return typer.Option(
        "--output",
        "-o",
        help=help_text,
        callback=require_suffix(suffix) if suffix else None,
        rich_help_panel=OUTPUT,
    )


class LawCommand(TyperCommand):
    """A command whose help lists options by subject, and which accepts options by their former names."""

    FORMER_NAMES: ClassVar = {"--out": "--output", "--over": "--tuned"}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments after replacing options that only exist under a new name."""
        known = {option for param in self.params for option in param.opts}
        former = {old: new for old, new in self.FORMER_NAMES.items() if old not in known and new in known}
        for index, arg in enumerate(args):
            name, sign, value = arg.partition("=")
            args[index] = former.get(name, name) + sign + value
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section of the help for each `rich_help_panel`."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], TABLE: [], FIT: [], TARGET: []}
        for param in self.get_params(ctx):
            kind = "Arguments" if param.param_type_name == "argument" else "Options"
            if record := param.get_help_record(ctx):
                sections.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors of a command into one line and exit code 2, refusals into the next runs and exit code 3."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with options_in_errors():
                command(*args, **kwargs)
        except Refusal as refusal:
            as_json = bool(kwargs.get("as_json")) or kwargs.get("trainer") == "json"
            _print_refusal(refusal, as_json, _points_path(kwargs))
            _note_earlier_output(command.__name__, kwargs.get("out"))
            raise typer.Exit(REFUSED) from None
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            print_error(PROGRAM, one_line(error))
            _note_earlier_output(command.__name__, kwargs.get("out"))
            raise typer.Exit(BAD_INPUT) from None

    return wrapped


def _note_earlier_output(command: str, out: Path | None) -> None:
    """Tell the user that an existing output file is not from this command, which wrote nothing."""
    if command in ("fit", "loss") and out is not None and out.is_file():
        typer.echo(f"note: {out} is from an earlier fit and was left unchanged", err=True)


def _points_path(options: Mapping[str, Any]) -> Path | None:
    """The file of --points, or one beside the output."""
    given, out = options.get("points"), options.get("out")
    if given is not None or out is None:
        return given
    return out.with_name(f"{out.stem}.points.yaml")


def _print_refusal(refusal: Refusal, as_json: bool, path: Path | None) -> None:
    from hyperp.analysis.queries.points_file import save_for_user

    points = refusal.points if refusal.own_points is None else refusal.own_points
    if as_json:
        typer.echo(json.dumps({"refused": refusal.reason, "next": points}, indent=2))
    typer.echo(f"{PROGRAM}: refused: {refusal.reason}", err=True)
    hidden = [n for n in (*CONTEXT, "seeds", "factor") if n not in CONFIG_GROUPS.values()]
    for point in () if as_json else points:
        known = [f"{n}={v}" for n, v in point.items() if n not in hidden and not isinstance(v, list)]
        rates = {n: ", ".join(f"{rate:.4g}" for rate in v) for n, v in point.items() if isinstance(v, list)}
        words = [*known, *(f"{n}={text}" for n, text in rates.items() if text)]
        typer.echo(f"run next: {' '.join(words)}", err=True)
    try:
        if path is not None and (
            line := save_for_user(refusal.points, refusal.own_points, path, refusal.reason)
        ):
            typer.echo(line, err=True)
    except ValueError as error:
        typer.echo(f"note: {error}", err=True)


def parse_sizes(
    at: Sequence[str] | None = None, given: Mapping[str, str | None] | None = None, option: str = "--at"
) -> dict[str, float]:
    """Sizes from the options of the standard sizes and from --at.

    Raises:
        ValueError: a text that is no size, or a size given twice.
    """
    sizes: dict[str, float] = {}
    for name, text in (given or {}).items():
        if text is None:
            continue
        value = _float_or_nan(text)
        if not (value >= 1 and value == value // 1 and value < 2**62):
            raise ValueError(f"{name} must be a whole number of at least 1, such as 5.2e5, got {text!r}")
        sizes[name] = int(value)
    for condition in at or []:
        name, _, text = condition.partition("=")
        value = _float_or_nan(text)
        if not (name and 0 < value < float("inf")):
            raise ValueError(
                f"{option} must be NAME=SIZE with a positive size, such as N=1e9, got {condition!r}"
            )
        if name in sizes:
            raise ValueError(f"{name} must be given once, got {sizes[name]:.15g} and {text}")
        sizes[name] = int(value) if value == value // 1 and value < 2**62 else value
    return sizes


def _float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def split_names(text: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def option_arguments(options: Mapping[str, str | Sequence[str] | bool | None]) -> list[str]:
    """The command-line arguments that give these options, without those that have no value."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is True:
            arguments.append(name)
        elif value:
            values = [value] if isinstance(value, str) else value
            arguments += [text for one in values for text in (name, one)]
    return arguments


def named_numbers(words: Sequence[str], option: str, example: str) -> dict[str, float]:
    """Numbers by name from texts such as "depth=-0.5", which were given to `option`.

    Raises:
        ValueError: a text that is no NAME=NUMBER, with the example, or a name given twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in found:
            raise ValueError(f"{option} {name} must be given once, got {found[name]:g} and {value}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"{option} must be such as {example}, got {word!r}") from None
    return found


def parse_priors(conditions: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of an exponent by covariate, from texts such as "tokens=-0.32:0.15".

    Raises:
        ValueError: another text, or a covariate given twice.
    """
    priors: dict[str, tuple[float, float]] = {}
    for condition in conditions or []:
        name, _, numbers = condition.partition("=")
        if name in priors:
            raise ValueError(f"--prior {name} must be given once, got {condition!r} too")
        try:
            mean, sd = (float(number) for number in numbers.split(":"))
        except ValueError:
            raise ValueError(f"--prior must be such as tokens=-0.32:0.15, got {condition!r}") from None
        priors[name] = (mean, sd)
    return priors


def load_runs(
    runs: Path,
    mapping: Sequence[str] | None,
    where: Sequence[str] | None,
    sizes: Sequence[str] = (),
    loss: bool = True,
) -> "tuple[Runs, dict[str, str]]":
    """The validated table, and the conditions of --where as a dict. Guesses of columns are told at once."""
    from hyperp.analysis.table.read import parse_map
    from hyperp.analysis.table.spellings import read_lines
    from hyperp.analysis.table.validate import parse_where, read_runs
    from hyperp.expression import columns_in

    rows, names = parse_where(where or []), parse_map(mapping or [])
    computed = [column for source in names.values() for column in columns_in(source)]
    _check_map(names, [*sizes, *rows, *computed])
    extra = [name for name in sizes if name not in (*COVARIATES, *NOT_COVARIATES)]
    table = read_runs(runs, names, extra, rows, loss)
    for line in read_lines(table.guesses):
        typer.echo(line, err=True)
    return replace(table, told=True), rows


def parse_rows(mapping: list[str] | None, where: list[str] | None) -> dict[str, dict[str, str]]:
    """The arguments mapping and where of a Python function, from --map and --where."""
    from hyperp.analysis.table.read import parse_map
    from hyperp.analysis.table.validate import parse_where

    return {"mapping": parse_map(mapping or []), "where": parse_where(where or [])}


def _check_map(mapping: Mapping[str, str], asked: Sequence[str]) -> None:
    """Reject a name that nothing reads, and the rate or the loss alone under a second name."""
    from hyperp.expression import columns_in

    known = (*COVARIATES, *NOT_COVARIATES, "base_lr")
    for name, source in mapping.items():
        if name not in (*known, *asked):
            raise ValueError(
                f"--map {name}={source}: NAME must be one of {', '.join(known)}, or a column that another "
                f"option names, got {name}"
            )
        columns = columns_in(source)
        column = columns[0] if len(columns) == 1 else source
        if column in ("lr", "loss") and column not in mapping and name != "base_lr":
            raise ValueError(
                f"--map {name}={source}: {column} must not be read under a second name, unless "
                f"--map {column}=COLUMN names another column for it"
            )
