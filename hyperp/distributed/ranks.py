"""The processes that train one run together: who they are, and what they have to agree on.

torchrun and submitit's TorchDistributedEnvironment tell a process its place by the same variables (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). `join_process_group` joins the group; everything else asks
`current_ranks`, which is a single process where there is no group.
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

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; rank 0 is the main one, which alone writes the run's files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place; every rank gets the same bits."""
        if self.is_distributed:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        return self.total(value).div_(self.size) if self.is_distributed else value

    def largest(self, number: int) -> int:
        """The largest of one small number a rank. Goes from host to host: no device waits for it."""
        if not self.is_distributed:
            return number
        told = torch.tensor(number)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def share(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main rank, on all of them; what it raises there, all raise."""
        if not self.is_distributed:
            return work()
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told[0] = work()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[1] is not None:
            raise told[1]
        return told[0]


def current_ranks() -> Ranks:
    """The group that this process has joined; one process alone without any."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def environment_ranks() -> Ranks:
    """What the environment says of this process, whether it has joined a group or not.

    Raises ValueError for variables that make no sense together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    missing = [name for name in PLACE if name not in os.environ]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must be set beside WORLD_SIZE={os.environ['WORLD_SIZE']}, as torchrun does"
        )
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join_process_group(timeout: float) -> Iterator[Ranks]:
    """Join the group that the environment names, if it names one, and leave it at the end.

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
