"""What the stability monitors cost: a look beside the training steps around it, and its share at every 50.

    python tests/benchmarks/bench_monitors.py [--threads 1] [--rounds 9] [--every 50] [--device cpu]

Each round times a few plain steps and then one that is looked at, of the same trainer; a look is the
difference, and a figure the median over rounds with the least and the largest.
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
PLAIN = 4  # steps beside each look


def seconds(trainer: Trainer, looked_at: bool) -> float:
    """Of one step; the monitors look if the step's number is a multiple of `every`."""
    trainer.stability.every = 1 if looked_at else 0
    start = time.perf_counter()
    trainer.train_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(words: tuple[str, ...], rounds: int, every: int) -> tuple[float, list[float]]:
    """Milliseconds of a plain step, and the share that a look every `every` steps adds, of every round."""
    trainer = Trainer(resolve(compose(words)))
    trainer.stability.steps = 0  # so that no step is the last
    for looked_at in (True, False, True):
        seconds(trainer, looked_at)
    steps, shares = [], []
    for _ in range(rounds):
        plain = median(seconds(trainer, False) for _ in range(PLAIN))
        steps.append(plain)
        shares.append((seconds(trainer, True) - plain) / (every * plain))
    return 1e3 * median(steps), shares


def main() -> None:
    """Print a line a model and optimizer."""
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
        told = f"step {step:8.2f} ms, monitors every {options.every}: {middle}% ({low} to {high})"
        print(f"{name:38s} {optimizer:6s} {told}", flush=True)


if __name__ == "__main__":
    main()
