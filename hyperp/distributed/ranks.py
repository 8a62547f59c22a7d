"""The ranks (processes) that train one run together: which one this is, and how they agree on values.

torchrun and submitit's TorchDistributedEnvironment set the same variables for every process (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). `join_process_group` joins the group that they describe;
all other code calls `current_ranks`, which is a single rank where there is no group.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `size`; rank 0 is the main one, which alone writes the run's files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run's files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one rank."""
        return self.size > 1

    def total(self, value: Tensor) -> Tensor:
        """Sum `value` over all ranks, in place; every rank gets the same bits."""
        if self.is_distributed:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Average `value` over all ranks, in place."""
        return self.total(value).div_(self.size) if self.is_distributed else value

    def largest(self, number: int) -> int:
        """The largest of the ranks' `number`s. It is exchanged between hosts, so no device waits for it."""
        if not self.is_distributed:
            return number
        maximum = torch.tensor(number)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
        return int(maximum)

    def share(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and broadcast its result or exception to every rank."""
        if not self.is_distributed:
            return work()
        shared: list[Any] = [None, None]  # result, exception
        if self.is_main:
            try:
                shared[0] = work()
            except Exception as error:
                shared[1] = error
        dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        if shared[1] is not None:
            raise shared[1]
        return shared[0]


def current_ranks() -> Ranks:
    """The ranks of the group that this process has joined; a single rank if it has joined none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def environment_ranks() -> Ranks:
    """The ranks that the environment describes, whether this process has joined their group or not.

    Raises ValueError if WORLD_SIZE is set and another variable is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must be set beside WORLD_SIZE={os.environ['WORLD_SIZE']}, as torchrun does"
        )
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join_process_group(timeout: float) -> Iterator[Ranks]:
    """Join the group that the environment describes, if it describes one, and leave it at the end.

    `timeout` is how many seconds a rank waits for the others before it fails.
    """
    ranks = environment_ranks()
    if not ranks.is_distributed:
        yield ranks
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()
