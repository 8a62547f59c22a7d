"""`hyperp-train`: a Hydra application for one run (or, with -m, for every run of a sweep)."""

import argparse
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hyperp import __version__
from hyperp.config import Config, compose, register_schema, resolve
from hyperp.files import HeldError
from hyperp.rundir.record import load_or_set_aside
from hyperp.terminal import one_line

BAD_INPUT = 2
LINE_SECONDS = 30.0  # between two lines where there is no terminal for a bar


@hydra.main(version_base="1.3", config_path="pkg://hyperp.conf", config_name="train")
def app(cfg: DictConfig) -> float | None:
    """The task that Hydra calls for each run. Returns the held-out loss, nats per token, for its sweepers."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_in_sweep(resolve(cfg)).loss
    try:
        refuse_plan(cfg)
        config = resolve(cfg)
        from hyperp.distributed.ranks import (
            join_process_group,  # imports torch, which a wrong configuration need not wait for
        )

        with join_process_group(config.runtime.timeout):
            record = run_one(config)
    except (ValueError, OSError, HeldError) as error:
        refuse(error)  # here, since Hydra prints a line of its own about an error that leaves the job
    code = int(record.status != "finished")
    if code or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave(code)
    return record.loss


def leave(code: int) -> NoReturn:
    """Exit; at once where there are other processes: torch may abort one that ends after FSDP2 over gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def refuse(error: Exception) -> NoReturn:
    """Say in one line what is wrong with the input, once on each node, and exit."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"hyperp-train: error: {one_line(error)}", file=sys.stderr)
    leave(BAD_INPUT)


def refuse_plan(cfg: DictConfig) -> None:
    """Raise ValueError for the plan of a sweep: one run of it alone is hardly what was meant."""
    blocks = list(cfg.sweep.get("blocks", {}))
    if blocks:
        raise ValueError(
            f"sweep.blocks is a plan of many runs ({', '.join(map(str, blocks))}): "
            "run it with -m, or with hyperp-sweep run; sweep=none trains one run"
        )


def run_one(config: Config):
    """Train with a progress bar and print how the run ended. A ValueError of `train` is bad input."""
    from hyperp.data.corpus import load_corpus
    from hyperp.distributed.ranks import current_ranks
    from hyperp.training.train import train

    run_dir, main = Path(config.runtime.root) / config.run_id(), current_ranks().is_main
    ended, corpus = load_or_set_aside(run_dir) if main else None, load_corpus(config.data)
    if ended is not None and ended.status != "failed":
        before = ended.environment.get("corpus_sha256", corpus.digest)
        if before != corpus.digest:
            raise ValueError(
                f"data.source={config.data.source} is not the text that {run_dir} was trained on (SHA-256 "
                f"{before[:12]}, now {corpus.digest[:12]}); remove that folder to train again"
            )
        print("already done; remove its folder to do it again")
    elif main and any((run_dir / name).exists() for name in ("checkpoint.pt", "checkpoint")):
        print("going on from the last checkpoint")
    with progress_bar(config) if main else nullcontext() as report:
        record = train(config, run_dir, report, corpus)
    if main:
        print_record(record, run_dir)
    return record


def run_in_sweep(config: Config):
    """Train one point of a sweep, alone: what happens becomes a record, so that the other points go on."""
    from hyperp.training.train import train_or_record_failure

    run_dir = Path(config.runtime.root) / config.run_id()
    with progress_bar(config) as report:
        record = train_or_record_failure(config, run_dir, report)
    print_record(record, run_dir)
    return record


@contextmanager
def progress_bar(config: Config):
    """Yield a `report` for `train` that draws a bar on a terminal, and prints lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(config.run_id(), total=config.scale.steps, news="")
        last = time.monotonic()

        def report(step: int, steps: int, loss: float, tokens_per_second: float) -> None:
            nonlocal last
            news = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
            progress.update(task, completed=step, total=steps, news=news)
            if not console.is_terminal and time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                print(f"{config.run_id()}: step {step} of {steps}, {news}", file=sys.stderr, flush=True)

        yield report


def print_record(record, run_dir: Path) -> None:
    """One paragraph on how a run ended."""
    s = record.scale
    print(
        f"{record.status} {record.run_id}: {record.optimizer}, {record.parametrization}, width {s['width']}, "
        f"depth {s['depth']}, {s['tokens']:,} tokens, lr {record.lr:.4g}, seed {record.seed}"
    )
    if record.loss is None:
        print(f"  {record.reason}")
    else:
        speed = f"{record.tokens_per_second:,.0f} tokens/s" if record.tokens_per_second else "no speed"
        print(f"  held-out loss {record.loss:.4f} nats/token, {record.bits_per_byte:.4f} bits/byte, {speed}")
    print(f"  {run_dir / 'record.json'}")


def print_factors(words: list[str]) -> None:
    """Print the learning rate of every role and its factors; trains nothing, needs no data."""
    from hyperp.parametrization import factors_table
    from hyperp.roles import ROLES

    config = resolve(compose(words))
    print(factors_table(config.parametrization, config.scale, config.base_lr, ROLES))


def prepare(words: list[str]) -> None:
    """Tokenise text files to the memory-mapped file that data=tokens reads."""
    parser = argparse.ArgumentParser(prog="hyperp-train --prepare", description=prepare.__doc__)
    parser.add_argument(
        "--files", nargs="+", required=True, help="files, folders or patterns such as 'text/**/*.txt'"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .bin to write; OUT with .json beside it")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tokenizer", type=Path, help="a tokenizer.json of the tokenizers library")
    kind.add_argument("--tiktoken", help="an encoding of the tiktoken library, such as gpt2")
    parser.add_argument(
        "--separator", type=int, help="id put between documents (default: the end-of-text id)"
    )
    args = parser.parse_args(words)
    from hyperp.data.tokenize import tokenize_files

    made = tokenize_files(args.files, args.out, args.tokenizer, args.tiktoken, args.separator)
    print(f"{args.out}: {made['tokens']:,} tokens of {made['vocab_size']:,} ids from {made['bytes']:,} bytes")
    print(f"train on it with: hyperp-train data=tokens data.path={args.out}")


def main() -> None:
    """Entry point. Exit 0 finished, 1 diverged or failed, 2 bad input (one line on standard error)."""
    words = sys.argv[1:]
    try:
        if "--version" in words:
            print(f"hyperp-train {__version__}")
        elif "--factors" in words:
            print_factors([word for word in words if word != "--factors"])
        elif "--prepare" in words:
            prepare([word for word in words if word != "--prepare"])
        else:
            register_schema()
            if "-m" in words or "--multirun" in words:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    raise ValueError(
                        f"-m must be without torchrun (WORLD_SIZE={os.environ['WORLD_SIZE']}): its runs are "
                        "of one process each; hyperp-sweep submit launcher=slurm gives a run launcher.gpus=N"
                    )
                for plugin in entry_points(group="hyperp.hydra"):
                    plugin.load()()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
            app()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, YAMLError, HydraException, OmegaConfBaseException) as error:
        refuse(error)
    except KeyboardInterrupt:
        print(
            "hyperp-train: stopped; the same command goes on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        sys.exit(130)
