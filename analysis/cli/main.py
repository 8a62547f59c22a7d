"""The command hyperp-law. Its exit codes: 0 answered, 1 `validate` failed, 2 bad input, 3 refused."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hyperp import __version__
from hyperp.analysis.cli.diagnostics import coordinates, transfer
from hyperp.analysis.cli.fit import fit
from hyperp.analysis.cli.importing import import_command
from hyperp.analysis.cli.isoflop import isoflop
from hyperp.analysis.cli.loss import leverage, loss
from hyperp.analysis.cli.opinion import opinion
from hyperp.analysis.cli.options import (
    FIT,
    OUTPUT,
    PROGRAM,
    TARGET,
    AsJson,
    At,
    ContextOption,
    Extrapolate,
    LawArgument,
    LawCommand,
    Level,
    Map,
    MethodOption,
    PointsFile,
    RunsArgument,
    Size,
    SliceBy,
    Tuned,
    Where,
    Window,
    exit_codes,
    load_runs,
    option_arguments,
    output_option,
    parse_sizes,
    split_names,
)
from hyperp.analysis.vocabulary import DEFAULT_METHOD, LEVEL, WINDOW
from hyperp.terminal import run_app

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyperp-law {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Turn a table of runs into a law of the learning rate, a recommendation and the runs to do next.

    \b
      hyperp-law check runs/demo/runs.parquet               what the table holds
      hyperp-law fit runs/demo/runs.parquet --by tokens -o law.json
      hyperp-law recommend law.json --tokens 5.2e5          the rate, with its interval
      hyperp-law next law.json --tokens 5.2e5 -o next.yaml  the runs that would narrow it
      hyperp-law report law.json -o report                  tables and plots
      hyperp-law opinion --config pretrain.sh               what published laws and rules say of a run

    Exit codes: 0 answered, 1 a validation or --strict failed, 2 bad input, 3 refused because the
    data cannot tell.
    """


def check(
    runs: RunsArgument,
    by: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS", help="sizes beyond the standard ones, such as N,D", rich_help_panel=FIT
        ),
    ] = "",
    over: Tuned = "lr",
    where: Where = None,
    slice_by: SliceBy = None,
    mapping: Map = None,
    method: MethodOption = DEFAULT_METHOD,
    window: Window = WINDOW,
    level: Level = LEVEL,
    as_json: AsJson = False,
) -> None:
    """Describe a table of runs and which exponents it identifies.

    \b
    Example:
      hyperp-law check runs/demo/runs.parquet
    """
    from hyperp.analysis import api
    from hyperp.analysis.report.text.slices import show_check

    columns, held, tuned = split_names(by), slice_by or [], split_names(over)
    table, rows = load_runs(runs, mapping, where, [*columns, *held, *tuned[1:]])
    found = api.check(
        table, by=columns, over=tuned, where=rows, slice_by=held, method=method, window=window, level=level
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_check(found)


def recommend(
    law: LawArgument,
    tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    batch_tokens: Size = None,
    granularity: Size = None,
    sparsity: Size = None,
    at: At = None,
    optimizer: ContextOption = None,
    parametrization: ContextOption = None,
    schedule: ContextOption = None,
    extrapolate: Extrapolate = False,
    points: PointsFile = None,  # noqa: ARG001, for `exit_codes`
    as_json: AsJson = False,
    hydra: Annotated[
        bool,
        typer.Option(
            "--hydra",
            help="print overrides for hyperp-train and hyperp-sweep, as --for hyperp",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TRAINER",
            help="print what a trainer takes: megatron, torchtitan, nanochat, hf, hyperp or json",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    sequence_length: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="tokens in a sequence, for a trainer whose batch counts sequences",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Recommend the learning rate for a target scale.

    Prints the rate with its prediction interval and every factor. Sizes that are the same in all slices of
    the law may be left out.

    --for prints the rate as your trainer takes it, for each parameter group that the law or its
    parametrization knows, with batch, steps and schedule: arguments as a bash array (megatron, nanochat),
    TOML (torchtitan) or YAML (hf). A comment says of each number where it comes from; what the trainer has no
    setting for is listed at the end.

    \b
    Examples:
      hyperp-law recommend law.json --tokens 5.2e5
      hyperp-law recommend law.json --tokens 5.2e5 --for megatron --sequence-length 128
      hyperp-train $(hyperp-law recommend law.json --tokens 5.2e5 --hydra)
    """
    from hyperp.analysis import api
    from hyperp.analysis.queries.trainer_text import text_for_trainer

    trainer = _one_form(trainer, as_json, hydra)
    length = parse_sizes(None, {"sequence_length": sequence_length}).get("sequence_length")
    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    named = parse_sizes(at, sizes)
    fitted = api.load_law(law)
    found = fitted.recommend(
        optimizer=optimizer,
        parametrization=parametrization,
        schedule=schedule,
        extrapolate=extrapolate,
        **named,
    )
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    if trainer is not None:
        typer.echo(text_for_trainer(found, trainer, None if length is None else int(length), fitted))
    else:
        from hyperp.analysis.report.text.recommendation import show_recommendation

        show_recommendation(fitted, found)
    if trainer == "hyperp":
        typer.echo(
            f"note: the fitted runs had lr = {found.rate_factor:g} base_lr, so this is base_lr for their "
            "parametrization and settings, with every exponent that the law fits set to zero",
            err=True,
        )


def _one_form(trainer: str | None, as_json: bool, hydra: bool) -> str | None:
    """The trainer that one of --for, --json and --hydra names. Raises ValueError for two that differ."""
    asked = {"--for": trainer, "--json": "json" if as_json else None, "--hydra": "hyperp" if hydra else None}
    given = {option: name for option, name in asked.items() if name is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"{' and '.join(given)} cannot be combined, got {', '.join(given.values())}")
    return next(iter(given.values()), None)


def next_command(
    law: LawArgument,
    out: Annotated[Path, output_option("the YAML file of points to write", ".yaml")],
    slices: Annotated[int, typer.Option(metavar="COUNT", help="how many new slices to choose")] = 2,
    among: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE,...",
            help="choose among these slices only, such as tokens=1e6 or tokens=1e6,width=128; repeatable",
        ),
    ] = None,
    tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    batch_tokens: Size = None,
    granularity: Size = None,
    sparsity: Size = None,
    at: At = None,
    value: Annotated[
        bool,
        typer.Option(
            "--value",
            help="print what each slice is expected to save in loss at the target, and whether that is worth "
            "its FLOPs",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    gain: Annotated[
        float | None,
        typer.Option(
            "--gain",
            metavar="EXPONENT",
            help="for --value: the loss of the run at the target falls as this power of its compute; 0.05 "
            "unless given (arXiv 2001.08361)",
            rich_help_panel=TARGET,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the next runs, which narrow the interval most.

    They shrink the prediction interval at the target most for their cost. The target is 8 times the largest
    fitted size unless given. Slices of the law without an optimum come first, with the rates that would
    bracket it.

    A slice has three rates, an octave apart, where the law knows the shape of its basin and the optimum to
    half an octave; more where the optimum is less certain, and rates as close as those of the law's slices
    where the shape is not known. A slice is worth its FLOPs if it saves more loss than they would when added
    to one run at the target.

    \b
    Examples:
      hyperp-law next law.json --tokens 2e11 -o points.yaml
      hyperp-law next law.json --tokens 2e11 --value -o points.yaml
    """
    from hyperp.analysis import api
    from hyperp.analysis.queries.points_file import save_for_user
    from hyperp.analysis.report.text.next_runs import require_value, show_next_runs, show_value
    from hyperp.analysis.table.own_columns import in_own_columns

    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    fitted = api.load_law(law)
    offers = [parse_sizes(one.split(","), option="--among") for one in among or []]
    found = fitted.next_runs(slices, offers, gain, **parse_sizes(at, sizes))
    if value:
        require_value(fitted, found)
    own = in_own_columns(found.points, fitted.mapping)
    wrote = save_for_user(found.points, own, out, f"new slices for {law}")
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    elif wrote:
        show_next_runs(fitted, found)
        if value:
            show_value(fitted, found)
        typer.echo(wrote)
    else:
        raise ValueError(
            "--among offers no new slice: each is already in the law, or differs in a size that the law "
            "holds fixed"
        )


def validate(
    law: LawArgument,
    runs: RunsArgument,
    where: Where = None,
    mapping: Map = None,
    out: Annotated[Path | None, output_option("write the result as JSON, for the report", ".json")] = None,
    as_json: AsJson = False,
) -> None:
    """Test the recommended rate against others at a target scale.

    The rate passes if, against every other rate, the mean loss difference over common seeds (recommended
    minus other) is at most the standard deviation of that mean over seeds.

    \b
    Example:
      hyperp-law validate runs/demo/law.json runs/demo_check/runs.parquet
    """
    from hyperp.analysis import api
    from hyperp.analysis.files import write_text
    from hyperp.analysis.report.text.recommendation import show_validation

    fitted = api.load_law(law)
    table, rows = load_runs(runs, mapping, where, [*fitted.ranges, *fitted.held])
    found = api.validate(fitted, table, where=rows)
    if out is not None:
        write_text(found.model_dump_json(indent=2) + "\n", out)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_validation(found)
    if not found.passed:
        typer.echo(found.verdict, err=True)
        raise typer.Exit(1)


def report(
    law: LawArgument,
    out: Annotated[Path, output_option("the folder to write; created if it does not exist")],
    check: Annotated[
        Path | None,
        typer.Option(metavar="RUNS", help="runs at a target scale; the report includes their `validate`"),
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
    """Write a report of a law with tables and plots.

    Writes report.md, and every plot as PNG, SVG and CSV. With a target size, the report includes the
    recommendation for it. If the table that the law was fitted to still exists unchanged, the report also
    shows what the stability monitors measured in its runs.

    \b
    Example:
      hyperp-law report runs/demo/law.json -o reports/demo --tokens 5.2e5
    """
    from hyperp.analysis import api

    sizes = {"tokens": tokens, "width": width, "depth": depth, "batch_tokens": batch_tokens}
    sizes |= {"granularity": granularity, "sparsity": sparsity}
    named = parse_sizes(None, sizes)
    target = parse_sizes(at, sizes)
    arguments = ["hyperp-law", "report", str(law), "-o", str(out)]
    arguments += option_arguments({"--check": None if check is None else str(check)})
    arguments += option_arguments({f"--{name.replace('_', '-')}": str(size) for name, size in named.items()})
    arguments += option_arguments({"--at": at, "--extrapolate": extrapolate})
    fitted, command = api.load_law(law), shlex.join(arguments)
    runs = None if check is None else load_runs(check, None, None)[0]
    for path in api.write_report(fitted, out, check=runs, extrapolate=extrapolate, command=command, **target):
        typer.echo(f"wrote {path}")


COMMANDS = (
    import_command,
    check,
    fit,
    recommend,
    next_command,
    opinion,
    validate,
    report,
    loss,
    leverage,
    isoflop,
    transfer,
    coordinates,
)
NAMES = {import_command: "import", next_command: "next"}  # words of Python or its library
for command in COMMANDS:
    failures = {validate: ", 1 the rate did not pass", opinion: ", 1 --strict and a rule is broken"}
    failed = failures.get(command, "")
    app.command(
        NAMES.get(command),
        cls=LawCommand,
        epilog=f"Exit codes: 0 answered{failed}, 2 bad input, 3 refused because the data cannot tell.",
    )(exit_codes(command))


def main() -> None:
    """Entry point of hyperp-law; see `hyperp.terminal.run_app` for how it ends."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
