"""Atomic writes, so that a reader sees a whole file or none, and locks that one process holds."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class HeldError(RuntimeError):
    """Another process holds a lock that this one needs."""


@contextmanager
def replacing(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, and rename it to `path` if the block ends without an error.

    `durable` waits until the file is on disk before that, so that a crash of the machine leaves the old file
    or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as strict JSON, atomically, and make the folder if need be. Raises ValueError for nan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as file:
        json.dump(value, file, indent=1, allow_nan=False)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that were killed while writing. Hold a lock on the folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, what: str) -> Iterator[IO[str]]:
    """Hold an exclusive lock on the file `path`. It is released when the process ends, however it ends.

    Yields the open file. A child process that gets this file holds the lock too, until both have closed it.
    Raises HeldError at once if another process holds the lock; `what` names the locked thing in its text.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise HeldError(f"{what} is held by {holder}") from None
        write_holder(file)
        yield file


def write_holder(file: IO[str]) -> None:
    """Write the id and host of this process into the file of a lock, so that others can name its holder."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock `path`. To find out, this process holds it for a moment."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
