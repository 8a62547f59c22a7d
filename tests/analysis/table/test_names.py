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
    ],
)
def test_a_column_of_states_is_read_and_said(column, words):
    runs = read_runs(CURVE.assign(**{column: words}))
    assert runs.notes == [f"column {column} is read as status"]
    assert runs.mapping == {"status": column}
    assert (runs.frame["status"] == "finished").tolist() == [True, True, True, False, False]
    assert runs.notes[0] in check(CURVE.assign(**{column: words})).warnings


@pytest.mark.parametrize(
    "columns",
    [
        {"State": ["CA", "NY", "CA", "NY", "CA"]},
        {"State": "finished", "status": ["finished"] * 4 + ["diverged"]},
        {"State": "failed", "run state": "finished"},
    ],
)
def test_other_columns_of_that_name_are_left_alone(columns):
    runs = read_runs(CURVE.assign(**columns))
    assert runs.notes == []
    assert "status" not in runs.mapping


def test_a_known_column_in_another_spelling_is_named_if_it_varies():
    frame = CURVE.assign(**{"Batch Tokens": [1, 1, 1, 2, 2], "Seed": 0, "Width": [1, 2, 3, 4, 5]})
    assert [note.split()[1:3] for note in read_runs(frame).notes] == [["Width", "is"], ["Batch", "Tokens"]]
    notes = read_runs(frame, {"width": "Width", "batch_tokens": "Batch Tokens*2"}).notes
    assert notes == []
    with pytest.raises(ValueError, match=r"lacks the column\(s\) lr; .*'lr': 'LR'"):
        read_runs(CURVE.rename(columns={"lr": "LR"}))


def test_close_names_look_past_case_and_separators():
    columns = ["learning_rate", "Learning Rate (peak)", "loss", "val/loss"]
    assert close_names("learningrate", columns)[0] == "learning_rate"
    assert close_names("VAL_LOSS", columns)[0] == "val/loss"
    assert close_names("qqq", columns) == []


def test_a_column_with_one_word_that_is_no_state_is_named_with_it():
    frame = CURVE.assign(State=["finished", "finished", "finished", "requeued", "crashed"])
    runs = read_runs(frame)
    assert "status" not in runs.mapping
    (note,) = runs.notes
    assert note.startswith("column State is not read as status")
    assert "requeued" in note
