"""Time the sphere optimizers side by side, interleaved in one run, and print ratios of step times.

    python tests/benchmarks/bench_optim.py [--quick] [--threads 1] [--rounds 7]
    python tests/benchmarks/bench_optim.py --device cuda --model 12 --out depth12.json

In every round, every optimizer makes one step in turn. A ratio is the median over rounds of the ratio within
a round, printed with the least and the largest. The bisection is the solver that arXiv 2601.08393 describes,
one matrix after the other. It uses the matrix sign and the top pair of SSO, and differs only in how it finds
lambda. torch.optim.Muon computes its matrix sign in bfloat16, whatever the dtype of the parameters. MuonH is
timed in float32, its default on a CPU, and in bfloat16, which compares like with like. --model times one step
on all hidden matrices of the model of that depth in the family of arXiv 2603.28743, without the bisection.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hyperp.optim import SSO, AdamW, GroupedOptimizer, Muon, MuonH, MuonSphere
from hyperp.optim.linalg.msign import unit_frobenius
from hyperp.optim.rule import State, register_rule
from hyperp.optim.sso import SSORule

Shapes = list[tuple[int, int, int]]  # (number, d_out, d_in)
FULL: dict[str, Shapes] = {
    "256 x 256, 16": [(16, 256, 256)],
    "512 x 2048, 8": [(8, 512, 2048)],
    "1024 x 1024, 4": [(4, 1024, 1024)],
}
QUICK: dict[str, Shapes] = {
    "64 x 64, 16": [(16, 64, 64)],
    "128 x 512, 8": [(8, 128, 512)],
    "256 x 256, 4": [(4, 256, 256)],
}
PULL = 0.1  # part of each gradient along its weight, which makes |h(0)| 0.1 to 0.3, as in training


@register_rule
@dataclass(frozen=True)
class BisectionRule(SSORule):
    """SSO with lambda bracketed by doubling from 1e-3, at most ten times, then bisected, at most twenty."""

    name = "sso_bisection"
    signs: ClassVar[list[int]] = []  # matrix signs that each matrix took in each step

    def direction(self, M: Tensor, u: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """Solve one matrix after the other, until its |h| is at most 2e-4."""
        return torch.cat([self.solve_matrix(*one) for one in zip(unit_frobenius(M), u, v, strict=True)]), {}

    def solve_matrix(self, M: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Phi of one matrix, as a batch of one matrix."""
        theta = torch.outer(u, v)
        self.signs.append(0)

        def evaluate(multiplier: float) -> tuple[Tensor, float]:
            self.signs[-1] += 1
            phi = self.sign((M + multiplier * theta)[None])
            return phi, float((theta * phi).sum())

        phi, h = evaluate(0.0)
        near, far = 0.0, math.copysign(1e-3, -h)
        for _ in range(10):
            if evaluate(far)[1] * h <= 0:
                break
            near, far = far, 2 * far
        for _ in range(20):
            middle = (near + far) / 2
            phi, h_middle = evaluate(middle)
            if abs(h_middle) <= 2e-4:
                break
            near, far = (near, middle) if h_middle * h <= 0 else (middle, far)
        return phi


def bisection_optimizer(parameters: list[nn.Parameter]) -> GroupedOptimizer:
    """An optimizer that follows `BisectionRule`."""
    return GroupedOptimizer(parameters, 0.01, algorithm="sso_bisection")


CANDIDATES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "MuonSphere": lambda p: MuonSphere(p, 0.01),
    "SSO": lambda p: SSO(p, 0.01),
    "bisection": bisection_optimizer,
    "torch Muon": lambda p: torch.optim.Muon(p, 0.01, weight_decay=0.0),
    "Muon": lambda p: Muon(p, 0.01),
    "MuonH": lambda p: MuonH(p, 0.01),
    "MuonH bf16": lambda p: MuonH(p, 0.01, msign_dtype="bfloat16"),
    "AdamW": lambda p: AdamW(p, 0.01),
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
}
RATIOS = {  # label: numerator, denominator, aim
    "SSO / MuonSphere": ("SSO", "MuonSphere", "at most 2.2"),
    "bisection / SSO": ("bisection", "SSO", "at least 4"),
    "MuonH / torch Muon": ("MuonH", "torch Muon", "at most 1.0"),
    "Muon / torch Muon": ("Muon", "torch Muon", "at most 1.0"),
    "AdamW / torch fused": ("AdamW", "torch AdamW fused", "no aim"),
    "MuonH bf16 / torch Muon": ("MuonH bf16", "torch Muon", "at most 1.0"),
}


class Runner:
    """One optimizer with parameters of its own; all runners get the same gradients."""

    def __init__(self, name: str, starts: list[Tensor]):
        self.parameters = [nn.Parameter(start.clone()) for start in starts]
        self.optimizer = CANDIDATES[name](self.parameters)
        if isinstance(self.optimizer, GroupedOptimizer):
            self.optimizer.project_()

    def time_step(self, noises: list[Tensor]) -> float:
        """Make one step; returns its seconds."""
        for parameter, noise in zip(self.parameters, noises, strict=True):
            weight = parameter.detach()
            parameter.grad = noise / noise.norm() + PULL * weight / weight.norm()
        synchronize(noises[0].device)
        begin = time.perf_counter()
        self.optimizer.step()
        synchronize(noises[0].device)
        return time.perf_counter() - begin

    def vectors_beyond_momentum(self) -> float:
        """State of one matrix beyond its momentum, in vectors as long as its longer side."""
        state = self.optimizer.state[self.parameters[0]]
        beyond = sum(value.nbytes for key, value in state.items() if "momentum" not in key)
        return beyond / (4 * max(self.parameters[0].shape))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def model_shapes(depth: int) -> Shapes:
    """The hidden matrices of the family of arXiv 2603.28743: width 128 x depth, 2 x depth heads of 128."""
    width, queries, keys = 128 * depth, 2 * depth * 128, 4 * 128
    return [
        (depth, queries, width),
        (2 * depth, keys, width),
        (depth, width, queries),
        (depth, 2 * depth, width),  # the gates of attention
        (2 * depth, 4 * width, width),
        (depth, width, 4 * width),
    ]


def time_candidates(
    shapes: Shapes, rounds: int, device: str, names: list[str]
) -> tuple[dict[str, list[float]], dict[str, Runner]]:
    """Seconds of each candidate in each round, and the runners."""
    generator = torch.Generator(device).manual_seed(0)

    def gaussian(m: int, n: int) -> Tensor:
        return torch.randn(m, n, generator=generator, device=device)

    def gradient(m: int, n: int) -> Tensor:
        spectrum = torch.linspace(0.05, 1, min(m, n), device=device) ** 2
        return gaussian(m, min(m, n)) * spectrum @ gaussian(min(m, n), n)

    every = [(m, n) for count, m, n in shapes for _ in range(count)]
    starts = [gaussian(m, n) / math.sqrt(n) for m, n in every]
    runners = {name: Runner(name, starts) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        noises = [gradient(m, n) for m, n in every]
        for name, runner in runners.items():
            taken = runner.time_step(noises)
            if number:  # the first round warms up
                seconds[name].append(taken)
    return seconds, runners


def print_ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print each candidate's time and each ratio with its aim; returns both as figures."""
    print("ms a step: " + ", ".join(f"{name} {1e3 * median(taken):.1f}" for name, taken in seconds.items()))
    found = {}
    for name, (above, below, aim) in RATIOS.items():
        if above in seconds and below in seconds:
            ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
            middle, low, high = median(ratios), min(ratios), max(ratios)
            print(f"  {name:24s} {middle:6.2f}  ({low:.2f} to {high:.2f})  aim: {aim}")
            found[name] = {"median": middle, "least": low, "largest": high, "aim": aim}
    return {"ms": {name: 1e3 * median(taken) for name, taken in seconds.items()}, "ratios": found}


def main() -> None:
    """Print the times and ratios for every shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small matrices: seconds instead of minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--model", type=int, metavar="DEPTH", help="time a step on the matrices of a model instead"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, float32 parameters")
    sets, names = QUICK if arguments.quick else FULL, list(CANDIDATES)
    if arguments.model:
        names = [name for name in names if name != "bisection"]
        sets = {f"depth {arguments.model}, all hidden": model_shapes(arguments.model)}
    figures = {}
    for label, shapes in sets.items():
        BisectionRule.signs.clear()
        print(f"\n{label} matrices; ", end="")
        seconds, runners = time_candidates(shapes, arguments.rounds, arguments.device, names)
        figures[label] = print_ratios(seconds)
        if BisectionRule.signs:
            vectors = runners["SSO"].vectors_beyond_momentum()
            print(
                f"  matrix signs: {fmean(BisectionRule.signs):.1f} in the mean for the bisection, 2 for SSO"
            )
            print(f"  SSO beyond the momentum: {vectors:.1f} vectors a matrix; aim: at most 16", flush=True)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"torch": torch.__version__, "device": arguments.device, **figures}, indent=1)
        )


if __name__ == "__main__":
    main()
