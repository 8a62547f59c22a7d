"""Time optimizer steps over several processes with and without overlap, interleaved, and print ratios.

    python tests/benchmarks/bench_sharded.py [--ranks 2] [--how fsdp] [--optimizer muonh] [--rounds 15]
    torchrun --nproc-per-node 8 tests/benchmarks/bench_sharded.py --device cuda --width 1536 --layers 12

Every round makes one step in each of these ways, with the same optimizer:

- whole groups: one exchange for each kind of parameter in a group, finished before anything is computed;
- chunks: chunks of at most LARGEST_CHUNK, each finished as soon as it is started;
- overlapped: the same chunks, one under way while another is updated, as the library does.

A time is that of the slowest rank. A ratio is the median over rounds of the ratio within a round, printed
with its quartiles.
"""

import argparse
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from hyperp.optim import GroupedOptimizer, build
from hyperp.optim.distributed import sharded

OPTIMIZERS = ("sso", "muonsphere", "muonh", "muon")


def decoder_matrices(width: int, layers: int) -> nn.Sequential:
    """The matrices of a decoder: four of attention and three of the MLP in each layer, and a head."""
    shapes = [(width, width)] * 4 + [(width, 4 * width)] * 2 + [(4 * width, width)]
    modules = [nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes)) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(8 * width, width), *modules, nn.Linear(width, 8 * width, bias=False))


@contextmanager
def exchanges_waiting_at_once() -> Iterator[None]:
    """Make every asynchronous exchange wait for its end as soon as it is started."""
    real = {name: getattr(dist, name) for name in ("all_to_all_single", "broadcast")}

    def waited(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            work = function(*args, **kwargs)
            work.wait()
            return work

        return wrapper

    for name, function in real.items():
        setattr(dist, name, waited(function))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def seconds_of_slowest_rank(step: Callable[[], Any], device: str) -> float:
    """Seconds that the slowest rank takes for a step."""
    dist.barrier()
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    taken = torch.tensor(time.perf_counter() - begin, device=device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def time_round(optimizer: GroupedOptimizer, device: str) -> dict[str, float]:
    """Seconds of one step in each of the ways."""
    usual = dict(sharded.LARGEST_CHUNK)
    with exchanges_waiting_at_once():
        sharded.LARGEST_CHUNK.update(dict.fromkeys(usual, 2**62))
        whole = seconds_of_slowest_rank(optimizer.step, device)
        sharded.LARGEST_CHUNK.update(usual)
        chunked = seconds_of_slowest_rank(optimizer.step, device)
    return {
        "whole groups": whole,
        "chunks": chunked,
        "overlapped": seconds_of_slowest_rank(optimizer.step, device),
    }


def time_rounds(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Make all rounds on this rank; returns the seconds of each round by way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = arguments.device
    model = decoder_matrices(arguments.width, arguments.layers).to(device)
    if arguments.how == "fsdp":
        fully_shard(model, mesh=init_device_mesh(device, (dist.get_world_size(),)))
    group = dist.group.WORLD if arguments.how == "ddp" else None
    optimizer = build(model, arguments.optimizer, lr=0.01, process_group=group, unembedding=[model[-1]])
    optimizer.project_()
    rounds = []
    for _ in range(arguments.rounds + 1):  # the first round warms up
        for parameter in model.parameters():
            gradient = torch.randn_like(parameter)
            if arguments.how == "ddp":
                dist.broadcast(gradient, 0)
            parameter.grad = gradient
        rounds.append(time_round(optimizer, device))
    return rounds[1:]


def print_report(arguments: argparse.Namespace, rounds: list[dict[str, float]]) -> None:
    """Print the median time of each way, and the ratio of the overlapped time to it."""
    print(
        f"torch {torch.__version__}, {vars(arguments)}, {dist.get_world_size()} ranks, {dist.get_backend()}"
    )
    for name in rounds[0]:
        ratios = [times["overlapped"] / times[name] for times in rounds]
        low, _, high = quantiles(ratios, n=4)
        milliseconds = 1e3 * median(times[name] for times in rounds)
        share = f"{median(ratios):.2f} of it ({low:.2f} to {high:.2f})"
        print(f"{name:14s} {milliseconds:8.1f} ms; overlapped takes {share}")


def run_spawned(rank: int, ranks: int, port: int, arguments: argparse.Namespace) -> None:
    """Run as one of the processes that this script has spawned."""
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), **addresses})
    run_in_group(arguments)


def run_in_group(arguments: argparse.Namespace) -> None:
    """Join the group that the environment describes, measure, and print the report on rank 0."""
    if arguments.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if arguments.device == "cuda" else "gloo")
    rounds = time_rounds(arguments)
    if dist.get_rank() == 0:
        print_report(arguments, rounds)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the processes, unless torchrun has started them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ranks", type=int, default=2, help="processes to start; torchrun has started its own"
    )
    parser.add_argument("--how", choices=("fsdp", "ddp"), default="fsdp")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muonh")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        run_in_group(arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(run_spawned, args=(arguments.ranks, port, arguments), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
