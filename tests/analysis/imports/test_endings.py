"""Runs that ended before their time, in sources that keep no status."""

import json

import pytest

from hyperp.analysis import import_runs
from hyperp.analysis.imports.endings import planned_steps


def write_log(folder, settings, steps, loss=3.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [json.dumps({"step": step, "val_loss": loss}) for step in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def statuses(folder):
    found = import_runs(str(folder / "*" / "metrics.jsonl"))
    return found.frame["status"].tolist(), " ".join(found.record.remarks)


WHOLE, CUT = range(100, 501, 100), range(100, 201, 100)


@pytest.mark.parametrize(
    "size",
    [{"tokens": 1e6}, {"tokens": 1e6, "batch_size": 8}, {"max_steps": 500}, {"train": {"steps": 500}}, {}],
)
def test_a_log_that_stops_before_one_as_long_is_not_of_a_finished_run(tmp_path, size):
    write_log(tmp_path / "a", {"lr": 0.01, **size}, WHOLE)
    write_log(tmp_path / "b", {"lr": 0.02, **size}, CUT)
    write_log(tmp_path / "c", {"lr": 0.04, **size}, range(100, 401, 100))  # without its last line
    found, told = statuses(tmp_path)
    assert found == ["finished", "lost", "lost"]
    assert "or of another as long: 2 (" in told
    assert "b/metrics.jsonl at step 200 of 500" in told


def test_a_run_that_did_not_reach_its_own_steps_is_not_finished(tmp_path):
    write_log(tmp_path / "a", {"lr": 0.01, "max_steps": 1000}, WHOLE)
    write_log(tmp_path / "b", {"lr": 0.02, "max_steps": 500}, range(0, 500, 100))  # 499 is its last step
    write_log(tmp_path / "c", {"lr": 0.04, "max_steps": 300}, [299])
    found, told = statuses(tmp_path)
    assert found == ["lost", "finished", "finished"]
    assert "a/metrics.jsonl at step 500 of 1000" in told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tokens": 1e6, "batch_size": 8}, {"tokens": 1e6, "batch_size": 16}),
        ({"tokens": 1e6, "seq_len": 128}, {"tokens": 1e6, "seq_len": 256}),
        ({"tokens": 1e6}, {"tokens": 5e5}),
        ({"max_steps": 500}, {"max_steps": 200}),
        ({"n_embd": 64}, {"n_embd": 128}),
    ],
)
def test_runs_of_other_lengths_are_not_compared(tmp_path, one, other):
    write_log(tmp_path / "a", {"lr": 0.01, **one}, WHOLE)
    write_log(tmp_path / "b", {"lr": 0.01, **other}, CUT)
    found, told = statuses(tmp_path)
    assert found == ["finished", "finished"]
    assert "as long" not in told


def test_logs_as_long_that_are_less_dense_are_whole(tmp_path):
    write_log(tmp_path / "a", {"lr": 0.01, "tokens": 1e6}, range(0, 500))
    write_log(tmp_path / "b", {"lr": 0.02, "tokens": 1e6}, range(0, 500, 100))
    assert statuses(tmp_path)[0] == ["finished", "finished"]


def test_a_run_that_blew_up_and_stopped_is_diverged(tmp_path):
    write_log(tmp_path / "a", {"lr": 0.01, "max_steps": 500}, WHOLE)
    write_log(tmp_path / "b", {"lr": 0.5, "max_steps": 500}, CUT, loss=float("nan"))
    assert statuses(tmp_path)[0] == ["finished", "diverged"]


def test_steps_of_something_else_than_the_run_are_not_its_own():
    assert planned_steps({"warmup.steps": 10, "eval_steps": 5, "save.steps": 7}) is None
    assert planned_steps({"warmup_steps": 10, "trainer.max_steps": "500", "max_iters": -1}) == 500
    assert planned_steps({"max_steps": 500, "train.steps": 400}) is None


def test_event_files_that_stop_early_are_not_of_finished_runs(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    for name, steps in (("a", WHOLE), ("b", CUT)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in steps:
                writer.add_scalar("val_loss", 3.0, step)
        (tmp_path / name / "config.json").write_text(json.dumps({"lr": 0.01, "tokens": 1e6}))
    found = import_runs(tmp_path, format="tensorboard")
    assert found.frame["status"].tolist() == ["finished", "lost"]
