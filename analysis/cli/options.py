"""What the commands of hyperp-law share: options, their parsing, and how a command ends."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperp.analysis.errors import Refusal
from hyperp.analysis.vocabulary import GROUPS, METHODS, NO_SIZES
from hyperp.run_table import CONTEXT, COVARIATES
from hyperp.terminal import BAD_INPUT, REFUSED, one_line, print_error

if TYPE_CHECKING:  # pulls in pandas, which a recommendation does without
    from hyperp.analysis.table.validate import Runs

PROGRAM = "hyperp-law"
RUNS_HELP = "runs.parquet, another Parquet or CSV file, or a folder holding runs.parquet"
WINDOW_HELP = "half-width in octaves of the parabola's window about the optimum, for two-stage"
RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help=RUNS_HELP)]
LawArgument = Annotated[Path, typer.Argument(metavar="LAW", help="the law.json that `hyperp-law fit` wrote")]
Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="only these rows; repeatable")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=COLUMN",
        help="the column, or COLUMN*NUMBER, that holds lr, loss, tokens, ... in a foreign table; repeatable",
    ),
]
SliceBy = Annotated[
    list[str] | None,
    typer.Option("--slice", metavar="COLUMN", help="a column of sizes that tells curves apart; repeatable"),
]
Fix = Annotated[
    list[str] | None, typer.Option("--fix", metavar="COVARIATE=EXPONENT", help="hold an exponent; repeatable")
]
Over = Annotated[str, typer.Option(help="what was tuned: lr, or lr and one more column, as lr,batch_tokens")]
Window = Annotated[float, typer.Option(help=WINDOW_HELP)]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help=f"how optima are found: {', '.join(METHODS)}; {METHODS[0]} unless given", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Size = Annotated[str | None, typer.Option(metavar="N", help="size at the target, such as 520000 or 5.2e5")]
At = Annotated[
    list[str] | None,
    typer.Option("--at", metavar="NAME=SIZE", help="a size under any other name, such as N=1e9; repeatable"),
]
Decorator = Callable[[Callable[..., None]], Callable[..., None]]
Extrapolate = Annotated[
    bool, typer.Option(help="answer beyond the law's reach too, or where it hardly knows")
]


def ends_in(suffix: str) -> Callable[[Path | None], Path | None]:
    """A check that an output has its own ending, so that it never overwrites a table or is misread later."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix != suffix:
            raise typer.BadParameter(f"must end in {suffix}, got {path}")
        return path

    return check


SaveAnswer = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="also write the answer as JSON, for the report", callback=ends_in(".json")
    ),
]
PointsFile = Annotated[
    Path | None,
    typer.Option("--points", metavar="FILE", help="where a refusal writes the runs that would help, as YAML"),
]


def answer(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input becomes one line and exit 2, a refusal its reason, the points to run and exit 3."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Refusal as refusal:
            _show_refusal(refusal, bool(kwargs.get("as_json")), _points_path(kwargs))
            _say_left(command.__name__, kwargs.get("out"))
            raise typer.Exit(REFUSED) from None
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            print_error(PROGRAM, one_line(error))
            _say_left(command.__name__, kwargs.get("out"))
            raise typer.Exit(BAD_INPUT) from None

    return wrapped


def _say_left(command: str, out: Path | None) -> None:
    """No answer was written, but an older one may lie there."""
    if command in ("fit", "loss") and out is not None and out.is_file():
        typer.echo(f"note: {out} is from an earlier fit and was left as it is", err=True)


def _points_path(options: Mapping[str, Any]) -> Path | None:
    """--points, or a file beside -o."""
    given, out = options.get("points"), options.get("out")
    if given is not None or out is None:
        return given
    return out.with_name(f"{out.stem}.points.yaml")


def _show_refusal(refusal: Refusal, as_json: bool, path: Path | None) -> None:
    from hyperp.analysis.queries.points_file import WORDS, run_command, save_points

    if as_json:
        typer.echo(json.dumps({"refused": refusal.reason, "next": refusal.next_points}, indent=2))
    typer.echo(f"{PROGRAM}: refused: {refusal.reason}", err=True)
    for point in () if as_json else refusal.next_points:
        rates = ", ".join(f"{rate:.4g}" for rate in point["lr"])
        hidden = [n for n in (*CONTEXT, "lr", "seeds", "factor") if n not in GROUPS.values()]
        known = " ".join(f"{n}={v}" for n, v in point.items() if n not in hidden)
        typer.echo(f"run next: {known}" + (f" lr={rates}" if rates else ""), err=True)
    try:
        if path is not None and save_points(refusal.next_points, path, refusal.reason):
            typer.echo(f"wrote {path}; run it with: {run_command(path)}\n{WORDS}", err=True)
    except ValueError as error:
        typer.echo(f"note: {error}", err=True)


def sizes_of(
    at: Sequence[str] | None = None, given: Mapping[str, str | None] | None = None, option: str = "--at"
) -> dict[str, float]:
    """Sizes from the options, those of `at` by name; ValueError names one that is no size."""
    sizes: dict[str, float] = {}
    for name, text in (given or {}).items():
        if text is None:
            continue
        value = _float(text)
        if not (value >= 1 and value == value // 1 and value < 2**62):
            raise ValueError(f"{name} must be a whole number of at least 1, such as 5.2e5, got {text!r}")
        sizes[name] = int(value)
    for condition in at or []:
        name, _, text = condition.partition("=")
        value = _float(text)
        if not (name and 0 < value < float("inf")):
            raise ValueError(
                f"{option} must be NAME=SIZE with a positive size, such as N=1e9, got {condition!r}"
            )
        if name in sizes:
            raise ValueError(f"{name} is given twice, as {sizes[name]:.15g} and {text}; once is allowed")
        sizes[name] = int(value) if value == value // 1 and value < 2**62 else value
    return sizes


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def names_of(text: str) -> list[str]:
    """A comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def words_of(options: Mapping[str, str | Sequence[str] | bool | None]) -> list[str]:
    """Options as they were typed, to record a command; those without a value are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value:
            words += [word for one in ([value] if isinstance(value, str) else value) for word in (name, one)]
    return words


def fixed_of(conditions: Sequence[str] | None) -> dict[str, float]:
    """["depth=-0.5"] as a dict; ValueError for anything else, and for a name given twice."""
    fixed: dict[str, float] = {}
    for condition in conditions or []:
        name, _, value = condition.partition("=")
        if name in fixed:
            raise ValueError(f"--fix gives {name} twice, as {fixed[name]:g} and {value}")
        try:
            fixed[name] = float(value)
        except ValueError:
            raise ValueError(f"--fix must be such as depth=-0.5, got {condition!r}") from None
    return fixed


def method_of(text: str | None) -> Any:
    """--method, or the default one."""
    from hyperp.analysis.optima.methods import DEFAULT_METHOD

    return DEFAULT_METHOD if text is None else text


def load(
    runs: Path,
    mapping: Sequence[str] | None,
    where: Sequence[str] | None,
    sizes: Sequence[str] = (),
    loss: bool = True,
) -> "tuple[Runs, dict[str, str]]":
    """The checked table, and --where as a dict."""
    from hyperp.analysis.table.read import parse_map
    from hyperp.analysis.table.validate import parse_where, read_runs

    rows, names = parse_where(where or []), parse_map(mapping or [])
    _check_map(names, [*sizes, *rows])
    extra = [name for name in sizes if name not in (*COVARIATES, *NO_SIZES)]
    return read_runs(runs, names, extra, rows, loss), rows


def _check_map(mapping: Mapping[str, str], asked: Sequence[str]) -> None:
    """ValueError for a name that nothing reads, and for the rate or the loss under a second name."""
    known = (*COVARIATES, *NO_SIZES, "base_lr")
    for name, source in mapping.items():
        if name not in (*known, *asked):
            raise ValueError(
                f"--map {name}={source}: nothing reads {name}; the name must be one of {', '.join(known)}, "
                "or a column that another option names"
            )
        column = source.split("*")[0].strip()
        if column in ("lr", "loss") and column not in mapping and name != "base_lr":
            raise ValueError(
                f"--map {name}={source}: {column} is read as {column} already; "
                f"say which column holds {column} too, --map {column}=COLUMN"
            )
