"""How a run failed: what kind of failure an exception is, and which rank of the run failed first.

When one of several ranks fails, the others find their connections to it gone and fail too. Each rank writes
error.N.json, N its rank, before it ends and its own connections close; so rank 0, which writes the record and
error.txt, can read which rank failed first. A rank that was killed writes nothing.
"""

import contextlib
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hyperp.files import write_json

ERROR_FILE = "error.{rank}.json"
RANK_LOST = "rank_lost"  # one of `hyperp.rundir.record.CAUSES`: nobody saw what ended the other rank
REPORT_SECONDS = 2.0  # to wait for the reports of the other ranks, so that a silent one can be named
MAX_REASON_LENGTH = 120  # characters that are kept of a backend's error text

# The CPU allocator raises a plain RuntimeError: c10/core/impl/alloc_cpu.cpp has its name in the text.
CPU_ALLOCATOR = "DefaultCPUAllocator"
# So does gloo, whose errors begin with the place in its source. NCCL has one class for all its errors
# (torch/csrc/distributed/c10d/NCCLUtils.cpp has the texts).
GLOO = re.compile(r"\[[^\]]*\bgloo/[^\]]*\]\s*")
NCCL = ("ncclRemoteError", "remote process", "communicator was aborted", "Watchdog caught collective")


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Failure:
    """What ended one of `ranks` ranks: `reason` in one line, `cause` one of CAUSES, `time` of the epoch."""

    rank: int
    ranks: int
    reason: str
    cause: str
    traceback: str
    time: float

    @property
    def lost(self) -> bool:
        """Whether it is only a consequence: this rank lost its connection to another one."""
        return self.cause == RANK_LOST


FAILURE = TypeAdapter(Failure)


def exception_summary(error: Exception) -> str:
    """The class of an exception and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def failure_cause(error: Exception) -> str:
    """Classify an exception as one of `hyperp.rundir.record.CAUSES`."""
    import torch
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or CPU_ALLOCATOR in text:
        return "out_of_memory"
    network = isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or GLOO.match(text)
    nccl = isinstance(error, dist.DistBackendError) and any(words in text for words in NCCL)
    return RANK_LOST if network or nccl else "raised"


def describe_failure(error: Exception, rank: int = 0, ranks: int = 1) -> Failure:
    """The failure of a rank that an exception has just ended."""
    cause, text = failure_cause(error), exception_summary(error)
    if cause == RANK_LOST:
        text = GLOO.sub("", str(error).splitlines()[0]).partition(". ")[0]
        text = text if len(text) <= MAX_REASON_LENGTH else f"{text[: MAX_REASON_LENGTH - 3]}..."
    return Failure(rank, ranks, text, cause, "".join(traceback.format_exception(error)), time.time())


def report_failure(run_dir: Path, error: Exception, rank: int, ranks: int) -> Failure:
    """Describe the failure of a rank; of several ranks, each also writes its first one to error.N.json."""
    own, path = describe_failure(error, rank, ranks), run_dir / ERROR_FILE.format(rank=rank)
    if ranks > 1 and not path.exists():
        with contextlib.suppress(OSError):  # mostly a full disk
            write_json(path, asdict(own))
    return own


def read_failures(run_dir: Path) -> list[Failure]:
    """The failures that ranks have written, sorted by rank; a file that cannot be read is skipped."""
    found = []
    for path in run_dir.glob(ERROR_FILE.format(rank="*")):
        with contextlib.suppress(OSError, ValidationError):
            found.append(FAILURE.validate_json(path.read_bytes()))
    return sorted(found, key=lambda one: one.rank)


def remove_errors(run_dir: Path) -> None:
    """Remove what an earlier attempt has left: error.N.json of every rank, and error.txt."""
    remove_rank_errors(run_dir)
    (run_dir / "error.txt").unlink(missing_ok=True)


def remove_rank_errors(run_dir: Path) -> None:
    """Remove error.N.json of every rank."""
    for path in run_dir.glob(ERROR_FILE.format(rank="*")):
        path.unlink(missing_ok=True)


def first_failure(found: list[Failure]) -> Failure:
    """The earliest failure with a cause of its own; if there is none, the earliest lost connection."""
    return min(found, key=lambda one: (one.lost, one.time, one.rank))


def track_first_failure(run_dir: Path, own: Failure) -> Iterator[Failure]:
    """The failure that ended a run, as far as rank 0, whose failure is `own`, knows; then, better known.

    If all that is known is that some rank was lost, a second failure follows as soon as that rank can be
    named because all others have reported. The first one does not wait for this, since the launcher may end
    this process too.
    """
    before, deadline = None, time.monotonic() + REPORT_SECONDS
    while True:
        found = list({one.rank: one for one in (*read_failures(run_dir), own)}.values())
        first = first_failure(found)
        if not own.lost and first.reason == own.reason:  # rank 0 failed and raised its error on all ranks
            first = own
        now = _with_rank_in_reason(first, found)
        if now != before:
            yield now
        if not first.lost or silent_rank(found) is not None or time.monotonic() > deadline:
            return
        before = now
        time.sleep(0.05)


def silent_rank(found: list[Failure]) -> int | None:
    """The only rank that has not reported a failure; None if there are several such ranks, or none."""
    silent = set(range(found[0].ranks)) - {one.rank for one in found}
    return silent.pop() if len(silent) == 1 else None


def first_failing_rank(run_dir: Path) -> int | None:
    """The rank that failed first, as far as the reports of the ranks tell."""
    found = read_failures(run_dir)
    if not found:
        return None
    first = first_failure(found)
    return silent_rank(found) if first.lost else first.rank


def _with_rank_in_reason(first: Failure, found: list[Failure]) -> Failure:
    reason = f"rank {first.rank}: {first.reason}" if first.rank else first.reason
    if first.lost:
        rank = silent_rank(found)
        name = "" if rank is None else f": rank {rank}"
        reason = f"another process of the run was lost{name} ({first.reason})"
    return replace(first, reason=reason)
