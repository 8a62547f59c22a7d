"""The command `hyperp-law opinion`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperp.analysis.cli.options import TARGET, AsJson, Size, named_numbers, parse_sizes

CONFIG = "A trainer's configuration"


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
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="a nanochat or Megatron command line, a torchtitan TOML file, TrainingArguments of "
            "transformers (JSON or YAML), or your own configuration with --keys",
            rich_help_panel=CONFIG,
        ),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="nanochat, torchtitan, megatron, hf or own; found out from the file unless given",
            rich_help_panel=CONFIG,
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="MAP",
            help="a YAML file that says what the keys of your own configuration are, such as "
            "`batch_tokens: train.batch * train.seq`",
            rich_help_panel=CONFIG,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit with 1 if a rule is broken", rich_help_panel=CONFIG)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask published laws for a second opinion on a learning rate.

    Evaluates a registry of published laws at your run. Each row says how many times the run lies beyond the
    sizes behind that law, what else does not match, and the ratio to your own law and to the rate you plan.
    Laws of another optimizer stand apart, because their rates mean another step. Then the spread, and what
    the laws agree on, in words.

    With --config, the run is what a trainer's configuration says, and options go before it. Rules that it
    breaks are named first: a batch in sequences, one rate for all groups, weight decay on a sphere, an
    embedding treated as a hidden matrix, a warm-up or a schedule that does not fit the run, tied embeddings.

    \b
    Examples:
      hyperp-law opinion --optimizer muonh --tokens 1e13 --batch-tokens 33.6e6 --width 2560 --depth 26
      hyperp-law opinion --optimizer muonh --tokens 5.2e5 --law law.json --lr 0.02
      hyperp-law opinion --optimizer adamw --width 8192 --reference 'width=1024 lr=0.01'
      hyperp-law opinion --config pretrain.sh
      hyperp-law opinion --config llama3_8b.toml --batch-tokens 4194304 --width 4096 --depth 32 --strict
      hyperp-law opinion --config mine.yaml --keys map.yaml
    """
    from hyperp.analysis import api_opinion
    from hyperp.analysis.report.text.opinion import show_diagnosis, show_opinion

    named = {"tokens": tokens, "batch_tokens": batch_tokens, "width": width, "depth": depth}
    sizes = parse_sizes(None, named | {"params": params, "sequence_length": sequence_length})
    given: dict[str, Any] = sizes | {
        "schedule": schedule,
        "parametrization": parametrization,
        "laws": law or [],
        "lr": lr,
    }
    words = None if reference is None else reference.replace(",", " ").split()
    scaled = None if words is None else named_numbers(words, "--reference", "'width=1024 lr=0.01'")
    given |= {"weight_decay": weight_decay, "reference": scaled}
    if config is None:
        for option, value in {"--trainer": trainer, "--keys": keys, "--strict": strict or None}.items():
            if value is not None:
                raise ValueError(f"{option} must come with --config, got {value} without it")
        if optimizer is None:
            raise ValueError("--optimizer must be given, such as muonh, or --config FILE that says it")
        found = api_opinion.opinion(optimizer, **given)
        typer.echo(found.model_dump_json(indent=2)) if as_json else show_opinion(found)
        return
    seen = api_opinion.doctor(config, trainer=trainer, keys=keys, optimizer=optimizer, **given)
    typer.echo(seen.model_dump_json(indent=2)) if as_json else show_diagnosis(seen)
    if strict and seen.findings:
        raise typer.Exit(1)
