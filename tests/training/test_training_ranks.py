"""One run by several processes: the same curve as by one, for every optimizer; one writer; checkpoints that
fit another number of ranks; the death of a rank.

Real torch.distributed groups over gloo, of spawned processes, and torchrun's.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Corpus
from hyperp.distributed.ranks import current_ranks
from hyperp.rundir.failure import MAX_REASON_LENGTH, first_failing_rank
from hyperp.rundir.record import load
from hyperp.training.train import Stopped, train
from hyperp.training.trainer import Trainer
from tests.ranks import exit_codes_of_ranks, free_port, run_on_ranks

torch.set_num_threads(1)
BIN = Path(sys.executable).parent
SMALL = [
    "scale.width=16",
    "scale.batch_tokens=64",
    "scale.tokens=384",
    "model.context=8",
    "model.head_size=8",
    "data.held_out_tokens=64",
    "runtime.threads=1",
    "runtime.log_every=1",
    "runtime.monitor_every=0",
    "precision=float32",
    "parametrization=raw",
    "parametrization.init_unembedding_std=0.2",
    "base_lr=0.02",
]
MOE = [
    "model=moe",
    "scale.granularity=2",
    "scale.sparsity=3",
    "model.balance_weight=0.1",
    "model.shared_expert=false",
]
OPTIMIZERS = ("sso", "muonsphere", "muonh", "adamh", "muon", "adamw")


def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    steps = rng.integers(-3, 4, 40_000).cumsum() % 61
    ids = steps.astype(np.uint16)
    return Corpus("text", ids[:36_000], ids[36_000:], 61, 1.0, "0" * 64)


@cache
def composed(*words: str) -> Config:
    return resolve(compose([*SMALL, *words]))


def config(root: Path, *words: str) -> Config:
    made = composed(*words)
    return replace(made, runtime=replace(made.runtime, root=str(root)))


def cases() -> dict[str, list[str]]:
    """The overrides of every case, by name."""
    found = {}
    for optimizer in OPTIMIZERS:
        for kind in ("dense", "moe"):
            found[f"{optimizer} {kind}"] = [f"optim={optimizer}", *(MOE if kind == "moe" else [])]
    found["micro-batches"] = [*MOE, "runtime.micro_batch_tokens=8"]
    return found


def configs(root: Path, parallel: str) -> list[Config]:
    """The configurations of all cases, composed once, since that takes longer than the training."""
    return [
        config(root / name.replace(" ", "-"), *words, f"runtime.parallel={parallel}")
        for name, words in cases().items()
    ]


def run_all(configs: list[Config]) -> None:
    """Do all runs in the process group of this process; rank 0 logs the curves."""
    for made in configs:
        ended = train(made, Path(made.runtime.root) / "run", corpus=corpus())
        assert ended.status == "finished", (made.runtime.root, ended.reason)


def curve(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ended = load(run_dir)
    assert ended is not None
    assert ended.loss is not None
    return [row["loss"] for row in rows if "loss" in row] + [ended.loss]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    run_all(configs(root, "ddp"))
    return root


@pytest.mark.parametrize(("size", "parallel"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_ranks_train_what_one_process_trains(alone, tmp_path, size, parallel):
    run_on_ranks(size, run_all, configs(tmp_path, parallel))
    for name in cases():
        folder = Path(name.replace(" ", "-")) / "run"
        one, many = curve(alone / folder), curve(tmp_path / folder)
        assert many == pytest.approx(one, rel=1e-5, abs=0.0), name
        ended = load(tmp_path / folder)
        assert ended is not None
        assert ended.environment["processes"] == str(size)
        assert ended.environment["parallel"] == parallel
        left = {path.name for path in (tmp_path / folder).iterdir()}
        assert left == {"config.yaml", "metrics.jsonl", "record.json"}


def stop_at(root: Path, words: list[str], step: int, rank: int) -> None:
    """Train until `rank` alone is asked to stop at `step`."""
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return current_ranks().rank == rank and calls == step

    with pytest.raises(Stopped, match=f"step {step}"):
        train(config(root, *words), root / "run", corpus=corpus(), stop=stop)


def go_on(root: Path, words: list[str], resumed: int = 1) -> None:
    ended = train(config(root, *words), root / "run", corpus=corpus())
    assert ended.status == "finished"
    assert ended.resumed == resumed


@pytest.mark.parametrize(("first", "then"), [((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp"))])
@pytest.mark.parametrize("case", ["sso moe", "adamw moe"])
def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path, case, first, then):
    words = cases()[case]
    for (size, parallel), work, more in ((first, stop_at, (5, 0)), (then, go_on, ())):
        arguments = (tmp_path, [*words, f"runtime.parallel={parallel}"], *more)
        if size == 1:
            work(*arguments)
        else:
            run_on_ranks(size, work, *arguments)
        saved = {path.name for path in (tmp_path / "run").glob("checkpoint*")}
        assert saved == (set() if work is go_on else {"checkpoint.pt"} if size == 1 else {"checkpoint"})
    assert curve(tmp_path / "run") == pytest.approx(
        curve(alone / case.replace(" ", "-") / "run"), rel=1e-5, abs=0.0
    )


def test_a_damaged_part_of_a_checkpoint_is_named(tmp_path):
    words = [*cases()["sso moe"], "runtime.parallel=fsdp"]
    run_on_ranks(2, stop_at, tmp_path, words, 5, 0)
    part = max(tmp_path.glob("run/checkpoint/5/*.distcp"))
    part.write_bytes(part.read_bytes()[:100])
    ended = train(config(tmp_path, *words), tmp_path / "run", corpus=corpus())
    assert ended.status == "failed"
    assert ended.reason is not None
    assert "checkpoint must be whole" in ended.reason


def stop_and_go_on(root: Path, cases_of: dict[str, list[str]]) -> None:
    """Stop every run and resume it, in one process group."""
    for name, words in cases_of.items():
        stop_at(root / name, words, step=3, rank=1)
        go_on(root / name, words)
        whole = train(config(root / "whole", *words), root / "whole" / name, corpus=corpus())
        assert whole.resumed == 0


def test_the_same_number_of_ranks_goes_on_to_the_same_bits(tmp_path):
    wanted = {}
    for parallel in ("ddp", "fsdp"):
        for optimizer in ("sso", "muonh"):
            wanted[f"{optimizer}-{parallel}"] = [*cases()[f"{optimizer} moe"], f"runtime.parallel={parallel}"]
    run_on_ranks(2, stop_and_go_on, tmp_path, wanted)
    for name in wanted:
        assert curve(tmp_path / name / "run") == curve(tmp_path / "whole" / name), name


def warn_of_nothing(root: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        made = config(root / parallel, f"runtime.parallel={parallel}", "runtime.checkpoint_every=3")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ended = train(made, root / parallel / "run", corpus=corpus())
        assert ended.status == "finished", ended.reason


def test_several_processes_warn_of_nothing(tmp_path):
    run_on_ranks(2, warn_of_nothing, tmp_path)


def fail_on(root: Path, rank: int, killed: bool) -> None:
    """Let one rank raise, or be killed, at its third step; the others lose their connections to it."""
    if current_ranks().rank == rank:
        step = Trainer.train_step

        def broken(self: Trainer) -> torch.Tensor:
            if self.step == 2 and killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.step == 2:
                raise RuntimeError("the device fell off the bus")
            return step(self)

        Trainer.train_step = broken
    try:
        ended = train(config(root), root / "run", corpus=corpus())
    except RuntimeError:
        os._exit(1)
    assert ended.status == "failed"
    os._exit(1)


@pytest.mark.parametrize(("size", "rank"), [(2, 0), (2, 1), (4, 3)])
def test_the_record_names_what_the_failing_rank_met(tmp_path, size, rank):
    assert exit_codes_of_ranks(size, fail_on, tmp_path, rank, False) == [1] * size
    ended = load(tmp_path / "run")
    assert ended is not None
    assert ended.status == "failed"
    assert ended.reason == f"rank {rank}: " * (rank > 0) + "RuntimeError: the device fell off the bus"
    assert ended.cause == "raised"
    assert first_failing_rank(tmp_path / "run") == rank
    assert "in broken" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize(("size", "rank"), [(2, 1), (4, 3)])
def test_the_record_says_that_a_rank_was_killed(tmp_path, size, rank):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "error.txt").write_text("of an earlier try")
    (tmp_path / "run" / "error.9.json").write_text("{}")
    assert exit_codes_of_ranks(size, fail_on, tmp_path, rank, True) == [1] * rank + [-signal.SIGKILL]
    ended = load(tmp_path / "run")
    assert ended is not None
    assert (ended.status, ended.cause) == ("failed", "rank_lost")
    pattern = rf"another process of the run was lost: rank {rank} \([^()]{{5,{MAX_REASON_LENGTH}}}\)"
    assert re.fullmatch(pattern, str(ended.reason)), ended.reason
    assert first_failing_rank(tmp_path / "run") == rank
    assert "in train_step" in (tmp_path / "run" / "error.txt").read_text()
    go_on(tmp_path, [], 0)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "metrics.jsonl", "record.json"}


def torchrun(size: int, root: Path, *words: str) -> subprocess.Popen[str]:
    """Start hyperp-train under torchrun."""
    options = ["--nproc-per-node", str(size), "--master-port", str(free_port()), "--no-python"]
    command = [BIN / "torchrun", *options, BIN / "hyperp-train", *SMALL, f"runtime.root={root}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), env=environment, text=True, stdout=pipe, stderr=pipe)


def ranks_of(launcher: int) -> list[int]:
    """The process ids of the ranks that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in children.read_text().split()]


def test_a_killed_rank_ends_the_job_and_the_run_goes_on(tmp_path):
    words = [
        "scale.tokens=8192",
        "runtime.timeout=60",
        "runtime.parallel=fsdp",
        "runtime.checkpoint_every=10",
    ]
    job = torchrun(2, tmp_path, *words)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoint/*/progress.pt")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(ranks_of(job.pid)[1], signal.SIGKILL)
    printed = job.communicate(timeout=120)
    assert job.returncode != 0, printed
    again = torchrun(2, tmp_path, *words)
    printed = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    (run_dir,) = tmp_path.iterdir()
    ended = load(run_dir)
    assert ended is not None
    assert (ended.status, ended.resumed, ended.steps) == ("finished", 1, 128)
    assert printed[0].count("finished") == 1
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 129))
