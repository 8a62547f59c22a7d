"""Tokens per second of training, share of the device's peak, and the optimizer's share of a step.

    python tests/benchmarks/bench_throughput.py --out reports/throughput        # one GPU, minutes
    python tests/benchmarks/bench_throughput.py --device cpu --depth 2 --width 256 --context 128 --batch 2048

The models are those of arXiv 2603.28743: width 128 x depth, heads of 128, 4 key-value heads; a vocabulary of
32,000, batches of 0.5M tokens. Tokens are random, so nothing waits for data. The peak is the vendor's for
dense bfloat16; FLOPs are those of `hyperp.flops`, which do not discount the causal mask.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Corpus
from hyperp.files import write_json
from hyperp.flops import flops_per_token
from hyperp.training.trainer import Trainer, resolve_device

VOCABULARY = 32_000
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in dense bfloat16, by vendor's data sheet
WARM_UP, ROUNDS = 2, 3


def random_corpus(tokens: int) -> Corpus:
    """A corpus of uniformly random ids."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, tokens, dtype=np.uint16)
    return Corpus("tokens", ids, ids[: tokens // 8], VOCABULARY, 1.0, "0" * 64)


def configuration(args: argparse.Namespace, optimizer: str, depth: int) -> Config:
    """A run of one depth and optimizer, on the device of the arguments."""
    words = [
        "model=hyperp_paper",
        f"optim={optimizer}",
        f"scale.granularity={args.granularity}",
        f"scale.sparsity={args.sparsity}",
        f"scale.depth={depth}",
        f"scale.width={args.width or 128 * depth}",
        f"scale.batch_tokens={args.batch}",
        f"scale.tokens={args.batch * 100}",
        f"model.context={args.context}",
        f"data.held_out_tokens={args.context}",
        f"runtime.micro_batch_tokens={min(args.micro_batch, args.batch)}",
        f"runtime.device={args.device}",
        f"runtime.compile={args.compile}",
        "runtime.monitor_every=0",
    ]
    return resolve(compose(words))


def replace_optimizer(trainer: Trainer, config: Config) -> None:
    """Train the same model, compiled once, with another optimizer."""
    trainer.config = config
    trainer.optimizer.state.clear()
    trainer.optimizer = trainer._build_optimizer()
    trainer.optimizer.project_()
    trainer.peak_lrs = [group["lr"] for group in trainer.optimizer.param_groups]


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, including all that it starts on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(trainer: Trainer) -> dict[str, float]:
    """Seconds of a whole step, median, least and largest, and the median of the optimizer's part of it."""
    steps, updates = [], []
    inner = trainer.optimizer.step

    def timed(closure: Callable[[], Any] | None = None) -> None:
        updates.append(seconds(lambda: inner(closure), trainer.device))

    trainer.optimizer.step = timed
    for _ in range(WARM_UP + ROUNDS):
        steps.append(seconds(trainer.train_step, trainer.device))
    timed_steps = steps[WARM_UP:]
    return {
        "step": float(np.median(timed_steps)),
        "least": min(timed_steps),
        "largest": max(timed_steps),
        "optimizer": float(np.median(updates[WARM_UP:])),
    }


def name_and_peak(device: torch.device) -> tuple[str, float | None]:
    """The device's name, and its peak in FLOP/s if it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return name, next((peak for key, peak in PEAKS.items() if key in name), None)


def report_row(trainer: Trainer, optimizer: str) -> dict[str, Any]:
    """Measure one model and optimizer, as a row of the report."""
    scale, found = trainer.config.scale, measure(trainer)
    flops = flops_per_token(scale, trainer.shape) * scale.batch_tokens
    name, peak = name_and_peak(trainer.device)
    model = found["step"] - found["optimizer"]
    memory = (
        torch.cuda.max_memory_allocated(trainer.device) / 2**30 if trainer.device.type == "cuda" else None
    )
    return {
        "device": name,
        "torch": torch.__version__,
        "optimizer": optimizer,
        "depth": scale.depth,
        "width": scale.width,
        "granularity": scale.granularity,
        "sparsity": scale.sparsity,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "batch_tokens": scale.batch_tokens,
        "tokens_per_second": scale.batch_tokens / found["step"],
        "seconds_per_step": found["step"],
        "least_seconds_per_step": found["least"],
        "largest_seconds_per_step": found["largest"],
        "optimizer_share": found["optimizer"] / found["step"],
        "model_flops_per_second": flops / model,
        "model_share_of_peak": flops / model / peak if peak else None,
        "memory_gib": memory,
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = [
        "optimizer",
        "depth",
        "width",
        "tokens/s",
        "step",
        "optimizer's share",
        "model FLOP/s",
        "of peak",
        "memory",
    ]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "--:|" * (len(names) - 1)]
    for r in rows:
        share = "unknown" if r["model_share_of_peak"] is None else f"{r['model_share_of_peak']:.1%}"
        memory = "" if r["memory_gib"] is None else f"{r['memory_gib']:.1f} GiB"
        speed = f"{r['tokens_per_second']:,.0f}"
        model = f"{r['model_flops_per_second']:.3g}"
        times = [f"{r['seconds_per_step']:.3f} s", f"{r['optimizer_share']:.1%}"]
        cells = [r["optimizer"], str(r["depth"]), str(r["width"]), speed, *times, model, share, memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it and the figures to --out if that is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--depth", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--width", type=int, help="128 x depth if not given")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=524_288, help="tokens")
    parser.add_argument("--micro-batch", type=int, default=32_768, help="tokens of one forward pass")
    parser.add_argument("--optimizers", nargs="+", default=["muonh", "sso"])
    parser.add_argument("--granularity", type=int, default=1)
    parser.add_argument("--sparsity", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for the JSON file with the figures")
    parser.add_argument("--name", default="throughput", help="of that file, without .json")
    args = parser.parse_args()
    device, rows = resolve_device(args.device), []
    for depth in args.depth:
        trainer = None
        for optimizer in args.optimizers:
            config = configuration(args, optimizer, depth)
            if trainer is None:
                trainer = Trainer(config, random_corpus(args.batch * 2 + args.context))
            else:
                replace_optimizer(trainer, config)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            rows.append(report_row(trainer, optimizer))
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                command = vars(args) | {"out": str(args.out)}
                write_json(args.out / f"{args.name}.json", {"command": command, "rows": rows})
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
