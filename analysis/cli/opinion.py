"""The command `hyperp-law opinion`."""

from pathlib import Path
from typing import Annotated

import typer

from hyperp.analysis.cli.options import TARGET, AsJson, Size, parse_sizes

RUN, CONFIG = "The run", "A trainer's configuration"


def opinion(
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="of the hidden matrices: muonh, adamw, ...")
    ] = None,
    tokens: Size = None,
    batch_tokens: Size = None,
    width: Size = None,
    depth: Size = None,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="parameters without embeddings, the active ones of a mixture of experts; 12 depth width^2 "
            "unless given",
            rich_help_panel=TARGET,
        ),
    ] = None,
    sequence_length: Size = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="linear, cosine, wsd, ...; compared with the laws'", rich_help_panel=TARGET
        ),
    ] = None,
    parametrization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="standard, mup, completep, hyperp, ...; compared with the laws'",
            rich_help_panel=TARGET,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="the peak rate that you plan for the hidden matrices", rich_help_panel=TARGET
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", help="what you plan for the hidden matrices", rich_help_panel=TARGET),
    ] = None,
    law: Annotated[
        list[Path] | None,
        typer.Option("--law", metavar="LAW", help="your own law.json; repeatable", rich_help_panel=TARGET),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="'NAME=VALUE ...'",
            help="a run whose best rate is known, from which muP and other rules start, such as "
            "'width=1024 lr=0.01'; the middle of your own law unless given",
            rich_help_panel=TARGET,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask published laws for a second opinion on a learning rate.

    Evaluates a registry of published laws at your run. Each row says how many times the run lies beyond the
    sizes behind that law, what else does not match, and the ratio to your own law and to the rate you plan.
    Laws of another optimizer stand apart, because their rates mean another step. Then the spread, and what
    the laws agree on, in words.

    \b
    Examples:
      hyperp-law opinion --optimizer muonh --tokens 1e13 --batch-tokens 33.6e6 --width 2560 --depth 26
      hyperp-law opinion --optimizer muonh --tokens 5.2e5 --law law.json --lr 0.02
      hyperp-law opinion --optimizer adamw --width 8192 --reference 'width=1024 lr=0.01'
    """
    from hyperp.analysis import api
    from hyperp.analysis.report.text.opinion import show_opinion

    if optimizer is None:
        raise ValueError("--optimizer must be given, such as muonh")
    named = {"tokens": tokens, "batch_tokens": batch_tokens, "width": width, "depth": depth}
    sizes = parse_sizes(None, named | {"params": params, "sequence_length": sequence_length})
    found = api.opinion(
        optimizer,
        schedule=schedule,
        parametrization=parametrization,
        laws=law or [],
        lr=lr,
        weight_decay=weight_decay,
        reference=parse_reference(reference),
        **sizes,
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_opinion(found)


def parse_reference(text: str | None) -> dict[str, float] | None:
    """The sizes and the rate in a text such as "width=1024 lr=0.01".

    Raises:
        ValueError: a word that is no NAME=VALUE, or a name given twice.
    """
    if text is None:
        return None
    found: dict[str, float] = {}
    for word in text.replace(",", " ").split():
        name, _, value = word.partition("=")
        if name in found:
            raise ValueError(f"--reference {name} must be given once, got {text!r}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--reference must be such as 'width=1024 lr=0.01', got {word!r}") from None
    return found
