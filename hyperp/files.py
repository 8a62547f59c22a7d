"""Files that a reader sees whole or not at all, and a lock that one process holds."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class HeldError(RuntimeError):
    """Another process holds the lock."""


@contextmanager
def replacing(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file in the folder of `path` that takes its place when the block ends without error.

    `durable` waits for the disk first, so that a crash of the machine leaves the old file or the new one.
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
    """Write strict JSON, atomically; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as file:
        json.dump(value, file, indent=1, allow_nan=False)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote; only under a lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, what: str) -> Iterator[IO[str]]:
    """Hold an exclusive lock on the file `path`, which the end of the process gives up, however it ends.

    Yields the open file: a child process that it is passed to holds the lock too, until both have closed it.
    Raises HeldError at once if another process has it; `what` names the thing in its text.
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
    """Write who holds a lock into its file, which is open to append."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock `path`. For a moment it is held by this one, if by no other."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
