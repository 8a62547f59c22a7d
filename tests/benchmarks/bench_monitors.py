"""The cost of the stability monitors: of one measurement, and as a share of training at every 50 steps.

    python tests/benchmarks/bench_monitors.py [--threads 1] [--rounds 9] [--every 50] [--device cpu]

Each round times a few plain steps and then one that is measured, of the same trainer; the cost is their
difference. Figures are medians over rounds, with the least and the largest.
"""

import argparse
import time
from statistics import median

import torch

from hyperp.config import compose, resolve
from hyperp.training.trainer import Trainer

MODELS = {
    "default (width 32, depth 2)": (),
    "width 256, depth 4": ("scale.width=256", "scale.depth=4", "scale.tokens=1e7"),
    "experts (width 64, depth 2, k 4, S 4)": ("model=moe", "scale.granularity=4", "scale.sparsity=4"),
}
PLAIN = 4  # steps in each round that are not measured


def seconds(trainer: Trainer, measured: bool) -> float:
    """Seconds of one step, with or without a measurement of the monitors."""
    trainer.stability.every = 1 if measured else 0
    start = time.perf_counter()
    trainer.train_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(words: tuple[str, ...], rounds: int, every: int) -> tuple[float, list[float]]:
    """Milliseconds of a plain step, and for each round the share that measuring every `every` steps adds."""
    trainer = Trainer(resolve(compose(words)))
    trainer.stability.steps = 0  # so that no step is the last
    for measured in (True, False, True):
        seconds(trainer, measured)
    steps, shares = [], []
    for _ in range(rounds):
        plain = median(seconds(trainer, False) for _ in range(PLAIN))
        steps.append(plain)
        shares.append((seconds(trainer, True) - plain) / (every * plain))
    return 1e3 * median(steps), shares


def main() -> None:
    """Print a line for each model and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    cases = [(model, optimizer) for model in MODELS for optimizer in ("muonh", "sso", "adamw")]
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads; aim: below 3%")
    runtime = (f"runtime.threads={options.threads}", f"runtime.device={options.device}")
    for name, optimizer in cases:
        words = (f"optim={optimizer}", *MODELS[name], *runtime)
        step, shares = measure(words, options.rounds, options.every)
        low, middle, high = (f"{100 * share:.2f}" for share in (min(shares), median(shares), max(shares)))
        text = f"step {step:8.2f} ms, monitors every {options.every}: {middle}% ({low} to {high})"
        print(f"{name:38s} {optimizer:6s} {text}", flush=True)


if __name__ == "__main__":
    main()
