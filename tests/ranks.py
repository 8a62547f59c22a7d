"""Run functions on several ranks, in a real process group over gloo."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes

from hyperp.distributed.ranks import join_process_group
from tests.forked import context


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _rank(rank: int, size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    with join_process_group(60) as ranks:
        try:
            work(*arguments)
        except Exception:
            traceback.print_exc()  # before the others report that they lost their connection to this one
            raise
        ranks.largest(0)  # no rank leaves while another still waits for its data
    sys.stdout.flush()
    os._exit(0)  # torch sometimes aborts a process that ends after FSDP2 over gloo


def run_on_ranks(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` on `size` ranks of one group; an exception on one of them is raised here."""
    _start(size, work, arguments, join=True)


def exit_codes_of_ranks(size: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call `work` on `size` ranks of one group and return their exit codes; negative for a signal."""
    started = _start(size, work, arguments, join=False)
    assert started is not None
    codes = []
    for process in filter(None, started.processes):
        process.join(120)
        codes.append(process.exitcode)
    return codes


def _start(
    size: int, work: Callable[..., None], arguments: tuple[Any, ...], join: bool
) -> ProcessContext | None:
    given = (size, free_port(), work, arguments)
    return start_processes(_rank, given, nprocs=size, join=join, start_method=context.get_start_method())
