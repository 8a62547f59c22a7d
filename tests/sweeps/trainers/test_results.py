"""Numbers that a command left, read from files that the real libraries wrote."""

import json
import math
import os
import subprocess
import sys

import pytest

from hyperp.sweeps.plan.command_section import ResultSource
from hyperp.sweeps.trainers.results import NoResultError, read_result

ROWS = [{"step": 1, "eval": {"loss": 3.0}}, {"step": 2, "eval": {"loss": 2.0}}, {"step": 3}]


def source(**fields) -> ResultSource:
    return ResultSource.model_validate(fields)


@pytest.mark.parametrize(("pick", "expected"), [("last", 2.0), ("first", 3.0), ("min", 2.0), ("max", 3.0)])
def test_json_lines_json_and_csv(tmp_path, pick, expected):
    lines, table, one = tmp_path / "a.jsonl", tmp_path / "a.csv", tmp_path / "a.json"
    lines.write_text("a line of text\n" + "\n".join(map(json.dumps, ROWS)) + '\n{"step": 4, "ev')
    table.write_text("step,eval.loss\n1,3.0\n2,2.0\n3,\n")
    one.write_text(json.dumps(ROWS[1]))
    for path in (lines, table):
        found = read_result(source(file=str(path), key="eval.loss", pick=pick), str(path), tmp_path / "log")
        assert found == expected
    assert read_result(source(file=str(one), key="eval.loss"), str(one), tmp_path / "log") == 2.0


def test_a_glob_takes_the_last_file_by_name_and_not_a_number_is_kept(tmp_path):
    for i, value in enumerate((1.0, math.nan)):
        (tmp_path / f"log{i}.jsonl").write_text(json.dumps({"loss": value}))
    place = str(tmp_path / "log*.jsonl")
    assert math.isnan(read_result(source(file=place, key="loss"), place, tmp_path))
    (tmp_path / "log1.jsonl").write_text('{"loss": 1.0}\n{"loss": NaN}\n{"loss": 0.5}')
    assert math.isnan(read_result(source(file=place, key="loss", pick="min"), place, tmp_path))
    assert read_result(source(file=place, key="loss"), place, tmp_path) == 0.5


def test_what_is_missing_is_named_with_what_is_there(tmp_path):
    path, log = tmp_path / "a.jsonl", tmp_path / "output.log"
    path.write_text('{"step": 1, "train": {"loss": 3}}')
    log.write_text("step 1\nall done\n\n")
    for made, place, words in (
        (source(file=str(path), key="val"), str(path), ("no number val in 1 rows", "step, train.loss")),
        (source(file="b.jsonl", key="val"), str(tmp_path / "b.jsonl"), ("no file", "a.jsonl, output.log")),
        (source(output="loss (?P<value>.+)"), "", ("'loss (?P<value>.+)'", "the last line is 'all done'")),
        (source(wandb=str(tmp_path), key="val"), str(tmp_path), ("no offline run of W&B",)),
    ):
        with pytest.raises(NoResultError) as error:
            read_result(made, place, log)
        assert all(word in str(error.value) for word in words), error.value


def test_the_output(tmp_path):
    log = tmp_path / "output.log"
    log.write_text("step 1 | loss 3.5\nstep 2 | loss 2.5e0\n")
    assert read_result(source(output=r"loss (?P<value>\S+)$"), "", log) == 2.5


WANDB_SCRIPT = """
import sys, wandb
with wandb.init(project="p", dir=sys.argv[1], mode="offline") as run:
    for step, loss in enumerate((3.0, 2.0, 2.5)):
        run.log({"val/loss": loss, "lr": 0.1}, step=step)
"""


def test_an_offline_run_of_wandb(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    # In a process of its own, since the file is whole only once wandb's service has ended with it.
    subprocess.run([sys.executable, "-c", WANDB_SCRIPT, tmp_path], check=True, capture_output=True)
    made = source(wandb=str(tmp_path), key="val/loss", pick="min")
    assert read_result(made, str(tmp_path), tmp_path / "log") == 2.0
    with pytest.raises(NoResultError, match="no number nothing"):
        read_result(source(wandb=str(tmp_path), key="nothing"), str(tmp_path), tmp_path / "log")


def test_event_files_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

    with SummaryWriter(str(tmp_path)) as writer:
        for step, loss in enumerate((3.0, 2.0, 2.5)):
            writer.add_scalar("val/loss", loss, step)
    made = source(tensorboard=str(tmp_path), tag="val/loss")
    assert read_result(made, str(tmp_path), tmp_path / os.devnull) == 2.5
    with pytest.raises(NoResultError, match="no scalar other; it has val/loss"):
        read_result(source(tensorboard=str(tmp_path), tag="other"), str(tmp_path), tmp_path)
