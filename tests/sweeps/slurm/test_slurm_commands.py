"""The Slurm side without a Slurm: launcher options, the output of Slurm's commands, jobs.json."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hyperp.rundir.record import CAUSES
from hyperp.sweeps.launch import under_way
from hyperp.sweeps.plan.plan import make_plan
from hyperp.sweeps.slurm import commands, submissions
from hyperp.sweeps.slurm.job import count_stops
from hyperp.sweeps.slurm.submissions import Submission
from hyperp.sweeps.slurm.submit import (
    SlurmLauncher,
    _submitit_parameters,
    check_rank_batches,
    read_slurm_launcher,
)

COMMAND = Path(sys.executable).with_name("hyperp-sweep")


def launcher(*words: str) -> SlurmLauncher:
    return read_slurm_launcher(make_plan(["launcher=slurm", *words]))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90m", 90), ("4h", 240), ("2d", 2880), ("01:00:01", 61), ("1-12:00:00", 2160)],
)
def test_time_limits(text, minutes):
    assert launcher(f"launcher.time='{text}'").minutes == minutes


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("launcher.time=soon", r"launcher\.time.*90m.*, got 'soon'"),
        ("launcher.time=0", r"launcher\.time must be at least 1m, got '0'"),
        ("launcher.memory=8", r"launcher\.memory.*8"),
        ("launcher.memory=many", r"launcher\.memory.* got 'many'"),
        ("launcher.cpus=0", r"launcher\.cpus.*got 0"),
        ("launcher.grace=14400", r"launcher\.grace must .*launcher\.time=4h, got 14400"),
    ],
)
def test_wrong_words_are_refused_by_name(word, message):
    with pytest.raises(ValueError, match=message):
        launcher(word)


def test_what_a_launcher_says_reaches_sbatch():
    words = ["launcher.partition=gpu", "launcher.gpus=2", "launcher.memory=8G", "launcher.time=4h"]
    made = launcher(*words, "launcher.setup=[module load cuda]", "+launcher.parameters.constraint=a100")
    asked = _submitit_parameters("hyperp-1", made)
    assert (asked["name"], asked["slurm_partition"], asked["slurm_gpus_per_node"]) == ("hyperp-1", "gpu", 2)
    assert (asked["timeout_min"], asked["slurm_signal_delay_s"]) == (240, 120)
    assert asked["slurm_setup"] == ["module load cuda"]
    extra = asked["slurm_additional_parameters"]
    assert (extra["mem"], extra["constraint"], extra["requeue"]) == ("8G", "a100", True)
    never = _submitit_parameters("hyperp-1", launcher("+launcher.parameters.no_requeue=true"))
    assert "requeue" not in never["slurm_additional_parameters"]


# JobID, JobName, State, ExitCode, ReqMem, MaxRSS, NodeList, as Slurm 22.05 prints them.
COMPLETED = ["1|a|COMPLETED|0:0|1G||n1", "1.0|python|COMPLETED|0:0||3M|n1"]
KILLED = ["1|a|FAILED|9:0|1G||n1", "1.batch|batch|FAILED|9:0||3M|n1", "1.0|python|CANCELLED|0:9||3M|n1"]
POLLED = ["1|a|FAILED|9:0|200M||n1", "1.0|python|CANCELLED by 0|0:9||501600K|n1"]
OUT_OF_MEMORY = ["1|a|OUT_OF_MEMORY|0:125|200M||n1", "1.0|python|OUT_OF_MEMORY|0:125||9M|n1"]
ENDS = [
    (COMPLETED, "its job ended without a record", "exited"),
    (KILLED, "killed by signal 9", "killed"),
    (POLLED, "out of memory: 490 MB of 200", "out_of_memory"),
    (OUT_OF_MEMORY, "out of memory", "out_of_memory"),
    (["1|a|FAILED|3:0|1G||n1", "1.batch|batch|FAILED|3:0|||n1"], "exit code 3", "exited"),
    (["1|a|TIMEOUT|0:0|1G||n1", "1.0|python|CANCELLED by 0|0:15||3M|n1"], "time limit reached", "timed_out"),
    (["1|a|NODE_FAIL|1:0|1G||n1"], "node failure on n1", "node_failed"),
    (["1|a|CANCELLED by 1000|0:0|1G||n1"], "cancelled", "cancelled"),
]


@pytest.mark.parametrize(("lines", "why", "cause"), ENDS)
def test_why_a_job_ended(lines, why, cause):
    names: list[str] = list(commands.ACCOUNT_FIELDS)
    rows = [dict(zip(names, line.split("|"), strict=True)) for line in lines]
    job = commands._job_from_steps("1", rows)
    assert (job.end_reason, job.cause) == (why, cause)
    assert job.cause in CAUSES


SACCT = """#!/bin/sh
echo asked >> {folder}/asked
if [ "$(wc -l < {folder}/asked)" -lt 3 ]; then
    {early}
else
    printf '1|a|FAILED|9:0|200M||n1\\n1.0|python|CANCELLED by 0|0:9||501600K|n1\\n'
fi
"""


@pytest.fixture(params=["echo '1|a|RUNNING|0:0|200M||n1'", ":"], ids=["still running", "not there"])
def late_accounting(request, tmp_path, monkeypatch):
    """Put a sacct on the PATH that knows of the job's end from the third call on; returns a counter."""
    program = tmp_path / "sacct"
    program.write_text(SACCT.format(folder=tmp_path, early=request.param))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lambda: len((tmp_path / "asked").read_text().split())


def test_the_accounting_is_asked_until_it_has_heard_that_a_job_failed(late_accounting):
    assert commands.accounted_jobs(["1"], failed=["1"])["1"].end_reason == "out of memory: 490 MB of 200"
    assert late_accounting() == 3


def test_the_accounting_is_asked_once_of_other_jobs_and_not_for_ever(late_accounting, monkeypatch):
    commands.accounted_jobs(["1"])
    assert late_accounting() == 1
    monkeypatch.setattr(commands, "LATE_SECONDS", -1.0)
    commands.accounted_jobs(["1"], failed=["1"])
    assert late_accounting() == 2


def test_submissions_are_noted_before_they_are_answered(tmp_path):
    one = Submission("hyperp-a", "2026-01-01T00:00:00+00:00", "slurm/hyperp-a", None, [["r1"], ["r2"]])
    assert submissions.read_submissions(tmp_path) == []
    submissions.append_submission(tmp_path, one)
    assert submissions.read_submissions(tmp_path) == [one]
    assert one.job_id(1) is None
    submissions.record_job_id(tmp_path, "hyperp-a", "12")
    (noted,) = submissions.read_submissions(tmp_path)
    assert [noted.job_id(task) for task in (0, 1)] == ["12_0", "12_1"]
    single = Submission("hyperp-b", one.submitted, "slurm/hyperp-b", "13", [["r3", "r4"]])
    assert single.job_id(0) == "13"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"schema": 1, "submissions": [{"name": 3}]})])
def test_a_damaged_list_of_submissions_is_named(tmp_path, text):
    (tmp_path / "jobs.json").write_text(text)
    with pytest.raises(ValueError, match=r"jobs\.json .*submitted"):
        submissions.read_submissions(tmp_path)


def test_stops_are_counted_only_where_nothing_was_done_in_between(tmp_path):
    assert [count_stops(tmp_path, step) for step in (0, 0, 0, 7, 7, 0)] == [1, 2, 3, 1, 2, 1]
    (tmp_path / "stops.json").write_text("{")
    assert count_stops(tmp_path, 0) == 1


SEVERAL = ["launcher=slurm", "launcher.nodes=2", "launcher.processes=3", "model.context=64"]
OF_RUN = r"processes of the run, got {} \(launcher\.nodes=2 times launcher\.processes=3\)"
UNSHARED = [
    (
        ["scale.batch_tokens=512", "scale.tokens=5120"],
        rf"scale\.batch_tokens must be a multiple of model\.context=64 times the 6 {OF_RUN.format(512)}",
    ),
    (
        ["scale.batch_tokens=768", "scale.tokens=7680", "runtime.micro_batch_tokens=384"],
        rf"runtime\.micro_batch_tokens must divide the 128 tokens of each of the 6 {OF_RUN.format(384)}",
    ),
]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["launcher.gpus=3"], "launcher.nodes=1 times launcher.gpus=3"),
        (["launcher.gpus=3", "launcher.processes=3"], "launcher.nodes=1 times launcher.processes=3"),
        (["launcher.nodes=3"], "launcher.nodes=3 times 1 process"),
    ],
)
def test_of_processes_the_field_that_was_set_is_named(words, named, tmp_path):
    plan = make_plan([f"runtime.root={tmp_path}", "launcher=slurm", "launcher.gpus=0", *words])
    with pytest.raises(ValueError, match=rf"times the 3 processes of the run, got .* \({named}\)"):
        check_rank_batches(plan.points, read_slurm_launcher(plan))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["submit", "launcher=slurm", "launcher.tim=4h"], r".*launcher\.tim.*"),
        *(
            ([command, *SEVERAL, *words], message)
            for command in ("plan", "submit")
            for words, message in UNSHARED
        ),
        (["run", "launcher=slurm"], r"launcher\.name.*local.*"),
        (["auto", "+experiment=demo"], r"--until must .*, got ''"),
        (["logs", "nowhere", "0123456789ab"], r"ROOT must be .*, got nowhere, which is no folder"),
    ],
)
def test_bad_input_is_one_line_exit_two_and_nothing_written(args, message, tmp_path):
    done = subprocess.run([COMMAND, *args], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(f"hyperp-sweep: error: {message}\n", done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_slurm_that_does_not_answer_leaves_auto_waiting(tmp_path, monkeypatch, capsys):
    plan = make_plan(["seed=0,1", f"runtime.root={tmp_path}"])
    ids = [[point.run_id] for point in plan.points]
    submissions.append_submission(tmp_path, Submission("a", "2026-01-01T00:00:00+00:00", "slurm/a", "7", ids))
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue there
    assert under_way(plan)
    assert "asking again" in capsys.readouterr().err
    (tmp_path / submissions.NAME).unlink()  # nothing was submitted, so there is nothing to wait for
    assert not under_way(plan)
