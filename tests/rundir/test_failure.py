"""The failures that ranks write, and which of them the record of their run takes."""

import random
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hyperp.rundir import failure
from hyperp.rundir.failure import (
    RANK_LOST,
    Failure,
    describe_failure,
    failure_cause,
    first_failing_rank,
    read_failures,
    report_failure,
    track_first_failure,
)
from hyperp.rundir.record import CAUSES

GLOO = (
    "[/b/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4533. "
    "This is typically caused by a remote worker crashing. Check its logs."
)
NCCL = "NCCL error in: NCCLUtils.cpp:94, {}, NCCL version 2.27"


def met(rank: int, ranks: int, time: float, lost: bool = False) -> Failure:
    return Failure(rank, ranks, f"met by {rank}", RANK_LOST if lost else "raised", f"trace {rank}", time)


def leave(run_dir, found) -> None:
    for one in found:
        failure.write_json(run_dir / failure.ERROR_FILE.format(rank=one.rank), vars(one))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (dist.DistBackendError(NCCL.format("remote process exited or there was a network error")), True),
        (dist.DistNetworkError("Connection reset by peer"), True),
        (dist.DistStoreError("wait timeout after 60000ms"), True),
        (dist.DistBackendError(NCCL.format("unhandled cuda error")), False),
        (RuntimeError("Connection closed by peer"), False),
        (RuntimeError("read [a file] of gloo/transport"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_only_a_backend_says_that_a_rank_was_lost(error, lost):
    assert (failure_cause(error) == RANK_LOST) == lost
    assert failure_cause(error) in CAUSES


def test_a_backends_text_is_kept_short():
    assert describe_failure(RuntimeError(GLOO)).reason == "Connection closed by peer [127.0.0.1]:4533"
    long = describe_failure(dist.DistNetworkError("x" * 1000))
    assert len(long.reason) == failure.MAX_REASON_LENGTH


def test_words_come_in_the_order_of_ranks(tmp_path):
    numbers = list(range(23))
    random.Random(0).shuffle(numbers)
    leave(tmp_path, [met(rank, 23, time=0.0) for rank in numbers])
    (tmp_path / "error.5.json").write_text("{")
    assert [one.rank for one in read_failures(tmp_path)] == [rank for rank in range(23) if rank != 5]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(0, 11))
def test_what_the_first_met_itself_is_the_cause(order, also, first):
    """A rank that only lost the others is never the cause, even if it is the first by its clock."""
    others = [rank for rank in order if rank != first]
    found = [met(rank, 12, 1.0 + rank if rank in also else 0.1, lost=rank not in also) for rank in others]
    found.append(met(first, 12, time=0.5))
    assert failure.first_failure(found).rank == first


def test_the_record_takes_the_word_of_the_first_and_its_trace(tmp_path):
    leave(tmp_path, [met(2, 12, 3.0, lost=True), met(10, 12, 1.0), met(11, 12, 2.0)])
    (taken,) = track_first_failure(tmp_path, met(0, 12, 0.0, lost=True))
    assert (taken.reason, taken.cause, taken.traceback) == ("rank 10: met by 10", "raised", "trace 10")
    assert first_failing_rank(tmp_path) == 10


def test_what_the_main_rank_has_met_and_shared_is_its_own(tmp_path):
    own = met(0, 3, time=1.0)
    leave(tmp_path, [replace(own, rank=1, time=0.9), met(2, 3, 0.5, lost=True)])
    assert list(track_first_failure(tmp_path, own)) == [own]


def test_a_lost_rank_is_named_as_soon_as_all_others_have_left_word(tmp_path, monkeypatch):
    failures = track_first_failure(tmp_path, met(0, 4, time=1.0, lost=True))
    assert next(failures).reason == "another process of the run was lost (met by 0)"
    leave(tmp_path, [met(rank, 4, time=2.0, lost=True) for rank in (1, 3)])
    named = "another process of the run was lost: rank 2 (met by 0)"
    assert [one.reason for one in failures] == [named]
    monkeypatch.setattr(failure, "REPORT_SECONDS", 0.1)
    assert len(list(track_first_failure(tmp_path / "none", met(0, 4, time=1.0, lost=True)))) == 1


def test_a_rank_keeps_its_first_word_and_a_run_of_one_process_leaves_none(tmp_path):
    for text in ("a", "b"):
        report_failure(tmp_path, RuntimeError(text), rank=1, ranks=2)
    assert [one.reason for one in read_failures(tmp_path)] == ["RuntimeError: a"]
    failure.remove_errors(tmp_path)
    assert report_failure(tmp_path, torch.OutOfMemoryError("x"), rank=0, ranks=1).cause == "out_of_memory"
    assert not list(tmp_path.iterdir())
