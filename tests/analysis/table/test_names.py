"""Known columns under another name, and states of runs in the words of other tools."""

import pandas as pd
import pytest

from hyperp.analysis import check, read_runs
from hyperp.near_names import close_names

CURVE = pd.DataFrame({"lr": [0.005, 0.01, 0.02, 0.04, 0.08], "loss": [3.6, 3.5, 3.52, 3.4, 3.3]})


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("State", ["finished", "finished", "finished", "crashed", "running"]),
        ("state", ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "PRUNED"]),
        ("run_status", ["FINISHED", "FINISHED", "FINISHED", "KILLED", "SCHEDULED"]),
        ("State", ["COMPLETED", "COMPLETED", "COMPLETED", "CANCELLED by 1000", "OUT_OF_ME+"]),
        ("trial.state", ["TERMINATED", "TERMINATED", "TrialState.COMPLETE", "ERROR", "PAUSED"]),
    ],
)
def test_a_column_of_states_is_read_and_said(column, words):
    runs = read_runs(CURVE.assign(**{column: words}))
    assert runs.notes == [f"read status from {column}"]
    assert runs.mapping == {"status": column}
    assert (runs.frame["status"] == "finished").tolist() == [True, True, True, False, False]
    assert runs.notes[0] in check(CURVE.assign(**{column: words})).warnings


@pytest.mark.parametrize(
    "columns",
    [
        {"State": ["CA", "NY", "CA", "NY", "CA"]},
        {"State": "finished", "status": ["finished"] * 4 + ["diverged"]},
    ],
)
def test_other_columns_of_that_name_are_left_alone(columns):
    runs = read_runs(CURVE.assign(**columns))
    assert runs.notes == []
    assert "status" not in runs.mapping


def test_a_known_column_that_no_guess_reads_is_named_if_it_varies():
    frame = CURVE.assign(**{"Base LR": [1, 1, 1, 2, 2], "Metric": "nats", "Sparsity": [1, 2, 3, 4, 5]})
    assert [note.split()[1:3] for note in read_runs(frame).notes] == [["Base", "LR"], ["Sparsity", "is"]]
    assert read_runs(frame, {"base_lr": "Base LR", "sparsity": "Sparsity*2"}).notes == []


def test_close_names_look_past_case_and_separators():
    columns = ["learning_rate", "Learning Rate (peak)", "loss", "val/loss"]
    assert close_names("learningrate", columns)[0] == "learning_rate"
    assert close_names("VAL_LOSS", columns)[0] == "val/loss"
    assert close_names("qqq", columns) == []


def test_a_status_that_nobody_knows_is_not_finished_and_said():
    frame = CURVE.assign(State=pd.Series(["finished", "finished", "exploded", None, "crashed"]))
    runs = read_runs(frame)
    assert runs.frame["status"].tolist() == ["finished", "finished", "lost", "lost", "failed"]
    assert runs.notes[1] == "2 rows have no known status (exploded) or no status, and count as not finished"
    assert read_runs(frame.rename(columns={"State": "status"})).notes == runs.notes[1:]
