"""The command `hyperp-law import`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperp.analysis.cli.options import TABLE, AsJson, Map, output_option


def import_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="a table, a W&B chart, a database, a folder, log files or a quoted pattern of them, or "
            "entity/project of W&B",
        ),
    ],
    out: Annotated[Path, output_option("the Parquet file to write", ".parquet")],
    mapping: Map = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="the metric that is the loss", rich_help_panel=TABLE),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at", metavar="last|min|step=N", help="which of its values to take", rich_help_panel=TABLE
        ),
    ] = "last",
    config_key: Annotated[
        list[str] | None,
        typer.Option(
            "--config-key",
            metavar="KEY",
            help="keep only these settings, such as optim.lr; repeatable; all unless given",
            rich_help_panel=TABLE,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="the name of the configuration beside each log, or the run table of a W&B chart",
            rich_help_panel=TABLE,
        ),
    ] = None,
    kind: Annotated[
        Any,
        typer.Option(
            "--format",
            parser=str,
            metavar="NAME",
            help="table, wandb-chart, wandb, tensorboard, logs, mlflow, optuna or ray; recognised by content "
            "unless given",
            show_default=False,
            rich_help_panel=TABLE,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import runs from other tools as a table.

    The table has a row for each run. Read are tables (CSV, JSON lines, Parquet, the run table of W&B), charts
    and projects of W&B, event folders of TensorBoard, logs of one run each with a configuration beside,
    databases of MLflow and Optuna, and result folders of Ray Tune. Columns are guessed as `hyperp-law fit`
    guesses them. What was taken as what is printed, and stored in the metadata of the file; whatever was left
    out is counted.

    \b
    Examples:
      hyperp-law import wandb.csv -o runs.parquet
      hyperp-law import 'logs/*/metrics.jsonl' --metric val_loss -o runs.parquet
      hyperp-law import study.db --map tokens=steps*65536 -o runs.parquet
      hyperp-law import entity/project --at step=1000 -o runs.parquet
    """
    from hyperp.analysis.imports.importing import import_runs
    from hyperp.analysis.table.read import parse_map

    if any(Path(source).resolve() == out.resolve() for source in sources):
        raise ValueError(f"-o must be another file than SOURCE, got {out}")
    found = import_runs(
        sources,
        format=kind,
        mapping=parse_map(mapping or []),
        metric=metric,
        at=at,
        config_keys=config_key or (),
        config=config,
    )
    found.save(out)
    for line in found.notes():
        typer.echo(line, err=True)
    if as_json:
        typer.echo(found.record.model_dump_json(indent=2))
        return
    for line in found.left_out():
        typer.echo(line)
    typer.echo(f"wrote {out}: {found.headline()}")
