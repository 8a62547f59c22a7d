"""How a run failed: what kind of failure an exception is, and which process of the run met the first one.

Of several processes that do a run, one fails and the others find their connections to it gone. Each leaves
error.N.json, N its rank, before it ends, and with it those connections; so the main one, which writes the
record and error.txt, finds the word of whoever failed first. A process that was killed leaves none.
"""

import contextlib
import json
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hyperp.files import write_json

ERROR_FILE = "error.{rank}.json"
RANK_LOST = "rank_lost"  # one of `hyperp.rundir.record.CAUSES`: nobody saw what ended the other rank
REPORT_SECONDS = 2.0  # for the others to leave word, so that who is silent can be named
MAX_REASON_LENGTH = 120  # of what is kept of a backend's text

# The CPU allocator raises a plain RuntimeError: c10/core/impl/alloc_cpu.cpp has its name in the text.
CPU_ALLOCATOR = "DefaultCPUAllocator"
# So does gloo, whose errors begin with the place in its source; NCCL's have one class for all that it meets
# (torch/csrc/distributed/c10d/NCCLUtils.cpp has the texts).
GLOO = re.compile(r"\[[^\]]*\bgloo/[^\]]*\]\s*")
NCCL = ("ncclRemoteError", "remote process", "communicator was aborted", "Watchdog caught collective")


@dataclass(frozen=True)
class Failure:
    """What one rank of `ranks` met: `reason` in one line, `cause` one of CAUSES, `time` of the epoch."""

    rank: int
    ranks: int
    reason: str
    cause: str
    traceback: str
    time: float

    @property
    def lost(self) -> bool:
        """Whether it met the end of another rank, and nothing of its own."""
        return self.cause == RANK_LOST


def exception_summary(error: Exception) -> str:
    """The class of an exception and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def failure_cause(error: Exception) -> str:
    """One of `hyperp.rundir.record.CAUSES`."""
    import torch
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or CPU_ALLOCATOR in text:
        return "out_of_memory"
    network = isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or GLOO.match(text)
    nccl = isinstance(error, dist.DistBackendError) and any(words in text for words in NCCL)
    return RANK_LOST if network or nccl else "raised"


def describe_failure(error: Exception, rank: int = 0, ranks: int = 1) -> Failure:
    """What a rank met, now."""
    cause, text = failure_cause(error), exception_summary(error)
    if cause == RANK_LOST:
        text = GLOO.sub("", str(error).splitlines()[0]).partition(". ")[0]
        text = text if len(text) <= MAX_REASON_LENGTH else f"{text[: MAX_REASON_LENGTH - 3]}..."
    return Failure(rank, ranks, text, cause, "".join(traceback.format_exception(error)), time.time())


def report_failure(run_dir: Path, error: Exception, rank: int, ranks: int) -> Failure:
    """What a rank met; where there are others it leaves word of it, unless it has before."""
    met, path = describe_failure(error, rank, ranks), run_dir / ERROR_FILE.format(rank=rank)
    if ranks > 1 and not path.exists():
        with contextlib.suppress(OSError):  # a full disk, mostly
            write_json(path, asdict(met))
    return met


def read_failures(run_dir: Path) -> list[Failure]:
    """What ranks have left word of, by rank; a file that cannot be read is passed over."""
    found = []
    for path in run_dir.glob(ERROR_FILE.format(rank="*")):
        try:
            found.append(Failure(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda one: one.rank)


def remove_errors(run_dir: Path) -> None:
    """Remove what an earlier try has left, its traceback too."""
    remove_rank_errors(run_dir)
    (run_dir / "error.txt").unlink(missing_ok=True)


def remove_rank_errors(run_dir: Path) -> None:
    """Remove what ranks have left word of."""
    for path in run_dir.glob(ERROR_FILE.format(rank="*")):
        path.unlink(missing_ok=True)


def first_failure(found: list[Failure]) -> Failure:
    """The first that met something of its own; without any, the first that met another's end."""
    return min(found, key=lambda one: (one.lost, one.time, one.rank))


def track_first_failure(run_dir: Path, own: Failure) -> Iterator[Failure]:
    """The failure of a run of which the main rank met its `own`.

    Where all that is known is that a rank was lost, a second one follows as soon as that one can be named:
    all others have left word. The first does not wait, since the launcher may end this process too.
    """
    before, deadline = None, time.monotonic() + REPORT_SECONDS
    while True:
        found = list({one.rank: one for one in (*read_failures(run_dir), own)}.values())
        first = first_failure(found)
        if not own.lost and first.reason == own.reason:  # which the main rank has shared with all
            first = own
        now = _in_words(first, found)
        if now != before:
            yield now
        if not first.lost or silent_rank(found) is not None or time.monotonic() > deadline:
            return
        before = now
        time.sleep(0.05)


def silent_rank(found: list[Failure]) -> int | None:
    """The one rank that has left no word, if there is one such."""
    left = set(range(found[0].ranks)) - {one.rank for one in found}
    return left.pop() if len(left) == 1 else None


def first_failing_rank(run_dir: Path) -> int | None:
    """The rank that failed first, as far as the ranks have left word."""
    found = read_failures(run_dir)
    if not found:
        return None
    first = first_failure(found)
    return silent_rank(found) if first.lost else first.rank


def _in_words(first: Failure, found: list[Failure]) -> Failure:
    reason = f"rank {first.rank}: {first.reason}" if first.rank else first.reason
    if first.lost:
        rank = silent_rank(found)
        name = "" if rank is None else f": rank {rank}"
        reason = f"another process of the run was lost{name} ({first.reason})"
    return replace(first, reason=reason)
