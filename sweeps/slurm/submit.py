"""The Slurm launcher: submits runs as arrays of jobs, through submitit."""

import os
import re
import shlex
import sys
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from hyperp.config import Config
from hyperp.sweeps.plan.command_run import CommandRun
from hyperp.sweeps.plan.plan import Plan, Point
from hyperp.sweeps.plan.run_config import values_of
from hyperp.sweeps.slurm import commands, submissions
from hyperp.sweeps.slurm.job import RunArguments, Task
from hyperp.sweeps.slurm.submissions import Submission
from hyperp.validation import Strict, invalid_field

FOLDER = "slurm"  # in the sweep's folder, with one for each submission: submitit reads old results
NEVER = 10**6  # time-outs after which submitit would give up; the job decides for itself
# A signal that comes before Python can handle it would end the job, so the shell ignores it.
PYTHON = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""


def _parse_minutes(text: str) -> int:
    """Minutes of `90m`, `4h`, `2d`, `HH:MM:SS`, `D-HH:MM:SS` or `90`, rounded up."""
    short = re.fullmatch(r"(\d+)([mhd]?)", text)
    if short:
        minutes = int(short[1]) * {"": 1, "m": 1, "h": 60, "d": 1440}[short[2]]
    else:
        long = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
        if not long:
            raise ValueError(f"must be such as 90m, 4h, 2d or 1-12:00:00, got {text!r}")
        days, hours, mins, seconds = (int(part or 0) for part in long.groups())
        minutes = days * 1440 + hours * 60 + mins + (seconds > 0)
    if minutes < 1:
        raise ValueError(f"must be at least 1m, got {text!r}")
    return minutes


def _check_duration(text: str) -> str:
    _parse_minutes(text)
    return text


def _check_memory(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d+[KMGT]B?", text):
        raise ValueError(f"must be a whole number with a unit, such as 8G or 500M, got {text!r}")
    return text


class SlurmLauncher(Strict):
    """The `launcher` section; conf/launcher/slurm.yaml says what each field is."""

    name: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    time: Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_check_duration)]
    nodes: int = Field(ge=1)
    processes: int | None = Field(ge=1)
    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory: Annotated[str | None, AfterValidator(_check_memory)]
    array_parallelism: int = Field(ge=1)
    array_size: int = Field(ge=0)
    runs_per_task: int = Field(ge=1)
    side_by_side: bool
    grace: int = Field(ge=1)
    setup: list[str]
    parameters: dict[str, Any]

    @property
    def minutes(self) -> int:
        """The time limit of a job, in minutes."""
        return _parse_minutes(self.time)

    @property
    def ranks(self) -> int:
        """Processes per node that do one run together."""
        return self.processes or (1 if self.runs_per_task > 1 else max(1, self.gpus))

    @property
    def ranks_from(self) -> str:
        """The option that decided `ranks`, as the command line has it."""
        if self.processes is not None:
            return f"launcher.processes={self.processes}"
        return f"launcher.gpus={self.gpus}" if self.runs_per_task == 1 and self.gpus else "1 process"

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return max(1, self.cpus // (self.runs_per_task if self.side_by_side else 1))


def read_slurm_launcher(plan: Plan) -> SlurmLauncher:
    """The launcher of a plan. Raises ValueError, naming the field."""
    try:
        launcher = SlurmLauncher.model_validate(plan.launcher)
    except ValidationError as error:
        raise ValueError(invalid_field(error, "launcher")) from None
    launcher = _for_commands(plan, launcher)
    if launcher.grace >= launcher.minutes * 60:
        raise ValueError(
            f"launcher.grace must be less than launcher.time={launcher.time}, got {launcher.grace} s"
        )
    if launcher.runs_per_task > 1 and launcher.nodes * launcher.ranks > 1:
        raise ValueError(
            "launcher.runs_per_task must be 1 where several processes do a run (launcher.nodes="
            f"{launcher.nodes}, {launcher.ranks_from}), got {launcher.runs_per_task}"
        )
    if launcher.gpus and launcher.ranks not in (1, launcher.gpus):
        raise ValueError(
            f"launcher.processes must be 1 or one for each of launcher.gpus={launcher.gpus}, "
            f"got {launcher.ranks}"
        )
    return launcher


def _for_commands(plan: Plan, launcher: SlurmLauncher) -> SlurmLauncher:
    """The launcher for commands: one process for each node starts them, unless `processes` says otherwise."""
    commands_of_plan = [point.config for point in plan.points if isinstance(point.config, CommandRun)]
    for run in commands_of_plan:
        grace = run.trainer.stop.grace
        if grace >= launcher.grace:
            raise ValueError(
                f"trainer.stop.grace must be less than launcher.grace={launcher.grace} s, in which a run has "
                f"to save and its job to go back into the queue, got {grace:g}"
            )
    if commands_of_plan and launcher.processes is None:
        return launcher.model_copy(update={"processes": 1})
    return launcher


def submit_arrays(root: Path, points: Sequence[Point], launcher: SlurmLauncher) -> list[Submission]:
    """Submit the runs, longest first. The caller holds the lock of the sweep.

    Each array is noted in jobs.json by name before it is submitted, so that nothing is lost if this process
    dies. Raises SlurmError if the cluster refuses an array; the ones before it stay submitted.
    """
    ordered = sorted(points, key=lambda point: -point.flops)
    k, limit = launcher.runs_per_task, commands.max_array_size()
    tasks = [ordered[i : i + k] for i in range(0, len(ordered), k)]
    size = min(launcher.array_size or limit, limit)
    arrays = [tasks[i : i + size] for i in range(0, len(tasks), size)]
    # Slurm applies the limit on jobs at a time to each array.
    share = max(1, launcher.array_parallelism // max(1, len(arrays)))
    launcher = launcher.model_copy(update={"array_parallelism": share})
    return [_submit_array(root, array, launcher) for array in arrays]


def check_rank_batches(points: Sequence[Point], launcher: SlurmLauncher) -> None:
    """Raise ValueError for a batch that the processes of a run cannot share equally."""
    for config in [point.config for point in points if isinstance(point.config, Config)]:
        try:
            config.tokens_per_rank(launcher.nodes * launcher.ranks)
        except ValueError as error:
            raise ValueError(
                f"{error} (launcher.nodes={launcher.nodes} times {launcher.ranks_from})"
            ) from None


def _submit_array(root: Path, tasks: Sequence[Sequence[Point]], launcher: SlurmLauncher) -> Submission:
    name = f"hyperp-{uuid.uuid4().hex[:12]}"
    submission = Submission(
        name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        f"{FOLDER}/{name}",
        None,
        [[point.run_id for point in task] for task in tasks],
    )
    submissions.append_submission(root, submission)
    job = _sbatch(
        root / submission.folder, name, [_run_arguments(task, launcher) for task in tasks], launcher
    )
    submissions.record_job_id(root, name, job)
    return replace(submission, job=job)


def _run_arguments(task: Sequence[Point], launcher: SlurmLauncher) -> list[RunArguments]:
    runs = []
    for point in task:
        config = values_of(point.config)
        config["runtime"]["threads"] = config["runtime"]["threads"] or launcher.threads
        runs.append((config, str(point.run_dir.resolve())))
    return runs


def _sbatch(folder: Path, name: str, tasks: list[list[RunArguments]], launcher: SlurmLauncher) -> str:
    """Submit one array and return its job id. Raises SlurmError with sbatch's message."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        executor = submitit.AutoExecutor(
            folder.resolve(), cluster="slurm", slurm_max_num_timeout=NEVER, slurm_python=PYTHON
        )
        executor.update_parameters(**_submitit_parameters(name, launcher))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large pickles and the like
            several = launcher.nodes * launcher.ranks > 1
            jobs = executor.map_array(Task(launcher.side_by_side, several), tasks)
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise commands.SlurmError(f"not submitted: {lines[-1].strip()}") from None
    return jobs[0].job_id.partition("_")[0]


def _submitit_parameters(name: str, launcher: SlurmLauncher) -> dict[str, Any]:
    """The launcher's options as submitit's parameters."""
    optional = {
        "slurm_partition": launcher.partition,
        "slurm_account": launcher.account,
        "slurm_qos": launcher.qos,
        "slurm_gpus_per_node": launcher.gpus or None,
        "slurm_setup": launcher.setup or None,
    }
    extra: dict[str, Any] = {"chdir": os.getcwd()}  # noqa: PTH109
    if "no_requeue" not in launcher.parameters:  # sbatch would take the last of the two
        extra["requeue"] = True
    if launcher.memory:
        extra["mem"] = launcher.memory
    return {
        "name": name,
        "nodes": launcher.nodes,
        "tasks_per_node": launcher.ranks,
        "cpus_per_task": launcher.cpus,
        "timeout_min": launcher.minutes,
        "slurm_array_parallelism": launcher.array_parallelism,
        "slurm_signal_delay_s": launcher.grace,
        # Slurm signals srun's steps before the time limit; the batch shell would not pass the signal on.
        "slurm_use_srun": True,
        "slurm_additional_parameters": extra | launcher.parameters,
    } | {key: value for key, value in optional.items() if value is not None}
