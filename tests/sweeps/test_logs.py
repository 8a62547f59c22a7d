"""`hyperp-sweep logs` on runs of one process and of several, from the files that they leave."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hyperp import files
from hyperp.rundir.failure import ERROR_FILE, RANK_LOST, Failure
from hyperp.sweeps.logs import other_logs, read_logs
from hyperp.sweeps.slurm import submissions
from hyperp.sweeps.slurm.submissions import Submission

COMMAND = Path(sys.executable).with_name("hyperp-sweep")
ID, RANKS = "0123456789ab", 12


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a run of twelve processes; each printed, and its job printed outside of the run."""
    run_dir, folder = tmp_path / ID, tmp_path / "slurm" / "a"
    run_dir.mkdir()
    folder.mkdir(parents=True)
    for rank in range(RANKS):
        (run_dir / (f"output.{rank}.log" if rank else "output.log")).write_text(f"printed by {rank}")
        (folder / f"7_{rank}_log.err").write_text(f"outside {rank}")
    submissions.append_submission(
        tmp_path, Submission("a", "2026-01-01T00:00:00+00:00", "slurm/a", "7", [[ID]])
    )
    return run_dir


def leave(run_dir, *found):
    for one in found:
        files.write_json(run_dir / ERROR_FILE.format(rank=one.rank), vars(one))


def names(found):
    return [path.name for path in found]


def word(rank, **values):
    return replace(Failure(rank, RANKS, "x", "raised", f"trace {rank}", 1.0), **values)


def test_the_main_process_is_shown_and_the_others_named_in_order(run_dir):
    found = read_logs(run_dir.parent, ID, None)
    assert list(found.values()) == ["printed by 0", "outside 0"]
    rest = other_logs(run_dir.parent, ID, found)
    assert names(rest) == [f"output.{rank}.log" for rank in range(1, RANKS)]


def test_the_process_that_failed_first_is_shown_too(run_dir):
    leave(run_dir, word(10), word(2, time=2.0), word(3, cause=RANK_LOST, time=0.0))
    (run_dir / "error.txt").write_text("trace of the record")
    found = read_logs(run_dir.parent, ID, None)
    wanted = ["printed by 0", "printed by 10", "trace of the record", "outside 0", "outside 10"]
    assert list(found.values()) == wanted
    (run_dir / "error.txt").unlink()  # the main process was killed before it could write
    assert list(read_logs(run_dir.parent, ID, None).values())[2] == "trace 10"


def test_one_process_is_shown_alone_with_what_it_met(run_dir):
    leave(run_dir, word(10), word(2, time=2.0))
    (run_dir / "error.txt").write_text("trace of the record")
    assert list(read_logs(run_dir.parent, ID, 2).values()) == ["printed by 2", "trace 2", "outside 2"]
    found = read_logs(run_dir.parent, ID, 10)
    assert list(found.values()) == ["printed by 10", "trace of the record", "outside 10"]
    assert list(read_logs(run_dir.parent, ID, 0).values()) == ["printed by 0", "outside 0"]


def test_the_process_that_was_lost_is_shown(run_dir):
    leave(run_dir, *(word(rank, cause=RANK_LOST) for rank in range(RANKS) if rank != 11))
    found = read_logs(run_dir.parent, ID, None)
    assert "printed by 11" in found.values()
    assert "trace 0" in found.values()  # nothing else says where the run was
    assert "trace 0" not in read_logs(run_dir.parent, ID, 11).values()
    (run_dir / ERROR_FILE.format(rank=0)).unlink()
    (run_dir / ERROR_FILE.format(rank=1)).unlink()
    assert "trace 2" in read_logs(run_dir.parent, ID, None).values()
    (run_dir / "error.txt").write_text("trace of the record")
    found = read_logs(run_dir.parent, ID, None)
    assert [text for text in found.values() if "trace" in text] == ["trace of the record"]


def test_the_command_says_what_other_logs_there_are(run_dir):
    root = run_dir.parent
    for rank in range(3, RANKS):
        (run_dir / f"output.{rank}.log").unlink()
    done = subprocess.run([COMMAND, "logs", root, ID], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"==> {run_dir / 'output.log'} <==", "printed by 0"]
    assert lines[-1] == "==> 2 more of its other processes (--rank N): output.1.log, output.2.log <=="
    words = [COMMAND, "logs", root, ID, "--rank", "14"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said_there = "of the logs output.log, output.1.log, output.2.log"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"hyperp-sweep: error: --rank must be {said_there}, got 14\n"
