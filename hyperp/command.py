"""`hyperp-train`: train one run, or with -m every run of a sweep, one after another.

It is a Hydra application with two modes beside it: --factors prints learning rates, --prepare tokenises text.
"""

import argparse
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

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
from hyperp.suggestions import compose_with_hint, parse_overrides
from hyperp.terminal import BAD_INPUT, FAILED, STOPPED, closed_pipe_is_no_error, one_line, print_error

PROGRAM = "hyperp-train"
LINE_SECONDS = 30.0  # between two lines where there is no terminal for a bar


@hydra.main(version_base="1.3", config_path="pkg://hyperp.conf", config_name="train")
def app(cfg: DictConfig) -> float | None:
    """Train one run: what Hydra calls. Returns the held-out loss, nats per token, for Hydra's sweepers."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_in_sweep(resolve(cfg)).loss
    try:
        reject_plan(cfg)
        config = resolve(cfg)
        # This imports torch, which a wrong configuration need not wait for.
        from hyperp.distributed.ranks import join_process_group

        with join_process_group(config.runtime.timeout):
            record = run_one(config)
    except (ValueError, OSError, HeldError) as error:
        exit_bad_input(error)  # here, since Hydra prints a line of its own about an error that leaves the job
    if record.status != "finished":
        exit_process(FAILED)
    if _is_distributed():
        exit_process(0)
    return record.loss


def _is_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def exit_process(code: int) -> NoReturn:
    """Exit. One of several processes skips the clean-up, in which torch may abort after FSDP2 over gloo."""
    if _is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_bad_input(error: Exception) -> NoReturn:
    """Print in one line what is wrong with the input, once on each node, and exit."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print_error(PROGRAM, one_line(error))
    exit_process(BAD_INPUT)


def reject_plan(cfg: DictConfig) -> None:
    """Raise ValueError for a plan of many runs, of which this command trains one, and for another trainer."""
    blocks = list(cfg.sweep.get("blocks", {}))
    if blocks:
        raise ValueError(
            f"sweep.blocks is a plan of many runs ({', '.join(map(str, blocks))}): "
            "run it with -m, or with hyperp-sweep run; sweep=none trains one run"
        )
    trainer = cfg.trainer.get("name", "hyperp")
    if trainer != "hyperp":
        raise ValueError(f"trainer.name must be hyperp here, got {trainer}: hyperp-sweep run does its runs")


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
        print("this run is done already; remove its folder to train it again")
    elif main and any((run_dir / name).exists() for name in ("checkpoint.pt", "checkpoint")):
        print("resuming from the last checkpoint")
    with progress_bar(config) if main else nullcontext() as report:
        record = train(config, run_dir, report, corpus)
    if main:
        print_record(record, run_dir)
    return record


def run_in_sweep(config: Config):
    """Train one run of a sweep. A failure becomes a record, so that the other runs go on."""
    from hyperp.training.train import train_or_record_failure

    run_dir = Path(config.runtime.root) / config.run_id()
    with progress_bar(config) as report:
        record = train_or_record_failure(config, run_dir, report)
    print_record(record, run_dir)
    return record


@contextmanager
def progress_bar(config: Config):
    """Yield a `report` for `train`: it draws a bar on a terminal and prints a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(config.run_id(), total=config.scale.steps, status="")
        last = time.monotonic()

        def report(step: int, steps: int, loss: float, tokens_per_second: float) -> None:
            nonlocal last
            status = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
            progress.update(task, completed=step, total=steps, status=status)
            if not console.is_terminal and time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                print(f"{config.run_id()}: step {step} of {steps}, {status}", file=sys.stderr, flush=True)

        yield report


def print_record(record, run_dir: Path) -> None:
    """Print how a run ended: its sizes, its loss or the reason why it has none, and where its record is."""
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


class ModeParser(argparse.ArgumentParser):
    """The options of one mode of hyperp-train. Wrong ones raise ValueError, so that errors are one line."""

    def __init__(self, mode: str, **texts: Any):
        super().__init__(
            prog=f"{PROGRAM} {mode}", formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for options that are wrong or missing."""
        raise ValueError(f"{message}; see {self.prog} --help")


def print_factors(arguments: list[str]) -> None:
    """Print the learning rate of every role with its factors, and what else the rule multiplies."""
    parser = ModeParser(
        "--factors",
        description="Print the learning rate of every role (embedding, hidden, ...) and the factors for\n"
        "batch, depth, tokens and width by which the parametrization multiplies base_lr, then what it\n"
        "multiplies besides: residual branches, logits, weight decay and epsilon. Trains nothing.",
        epilog="examples:\n"
        "  hyperp-train --factors\n"
        "  hyperp-train --factors scale.depth=8 base_lr=0.02\n"
        "  hyperp-train --factors optim=adamw parametrization=mup++\n"
        "  hyperp-train --factors optim=adamw parametrization=completep scale.width=4096 scale.depth=32",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="overrides as for a run, see hyperp-train -h",
    )
    overrides = parser.parse_args(arguments).overrides
    from hyperp.parametrization import factors_table, multipliers_text
    from hyperp.roles import ROLES

    config = resolve(compose_with_hint(overrides, compose))
    print(factors_table(config.parametrization, config.scale, config.base_lr, ROLES))
    print(f"\n{multipliers_text(config.parametrization, config.scale, ROLES)}")


def prepare_tokens(arguments: list[str]) -> None:
    """Tokenise text files to the memory-mapped file that data=tokens reads."""
    parser = ModeParser(
        "--prepare",
        description="Tokenise text files to one file of token ids, which data=tokens reads. Trains nothing.",
        epilog="examples:\n"
        "  hyperp-train --prepare --files 'corpus/**/*.txt' --tokenizer tokenizer.json -o corpus.bin\n"
        "  hyperp-train --prepare --files corpus --tiktoken gpt2 -o corpus.bin\n"
        "  hyperp-train data=tokens data.path=corpus.bin",
    )
    parser.add_argument(
        "--files", nargs="+", required=True, help="files, folders or patterns such as 'text/**/*.txt'"
    )
    parser.add_argument(  # argparse takes its former name, --out, as an abbreviation
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the .bin to write, with a description in .json beside it",
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tokenizer", type=Path, help="a tokenizer.json of the tokenizers library")
    kind.add_argument("--tiktoken", help="an encoding of the tiktoken library, such as gpt2")
    parser.add_argument(
        "--separator", type=int, help="token id between documents (default: the tokenizer's end-of-text id)"
    )
    args = parser.parse_args(arguments)
    from hyperp.data.tokenize import tokenize_files

    out = args.output
    made = tokenize_files(args.files, out, args.tokenizer, args.tiktoken, args.separator)
    print(f"{out}: {made['tokens']:,} tokens of {made['vocab_size']:,} ids from {made['bytes']:,} bytes")
    print(f"train on it with: hyperp-train data=tokens data.path={out}")


def run_hydra(arguments: list[str]) -> None:
    """Hand the command line to Hydra. Raises ValueError, with a hint, for overrides that do not compose."""
    register_schema()
    if "-m" in arguments or "--multirun" in arguments:
        if _is_distributed():
            raise ValueError(
                f"-m must be without torchrun (WORLD_SIZE={os.environ['WORLD_SIZE']}): its runs are of one "
                "process each; hyperp-sweep submit launcher=slurm gives a run launcher.gpus=N"
            )
        for plugin in entry_points(group="hyperp.hydra"):
            plugin.load()()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        words = [word for word in arguments if word[:1] == "~" or ("=" in word and word[:1] != "-")]
        overrides = [one.input_line for one in parse_overrides(words) if not one.is_sweep_override()]
        compose_with_hint([str(line) for line in overrides], compose)  # raises the error again, with a hint
        raise ValueError(one_line(error)) from None


MODES = {"--factors": print_factors, "--prepare": prepare_tokens}


def main() -> None:
    """Entry point. Exit 0 finished, 1 diverged or failed, 2 bad input (one line on standard error)."""
    arguments = sys.argv[1:]
    try:
        with closed_pipe_is_no_error():
            mode = next((word for word in arguments if word in MODES), None)
            if mode:
                MODES[mode]([word for word in arguments if word != mode])
            elif "--version" in arguments:
                print(f"{PROGRAM} {__version__}")
            else:
                run_hydra(arguments)
    except (ValueError, OSError, YAMLError) as error:
        exit_bad_input(error)
    except KeyboardInterrupt:
        text = "stopped; the same command resumes from the last checkpoint, if there is one"
        print(f"{PROGRAM}: {text}", file=sys.stderr)
        sys.exit(STOPPED)
