"""Which value of a metric's course is taken, and which metric is the loss."""

import math

import pytest

from hyperp.analysis.imports.logged import At, LoggedRun, Logs, Point, history_of
from hyperp.analysis.imports.rows import rows_of_logs

COURSE = [Point(0, 4.0), Point(10, 3.0), Point(20, 3.5)]


def logged(course=COURSE, status=None, metrics=("loss",), **settings) -> LoggedRun:
    return LoggedRun("a", settings, metrics, lambda _: course, status)


@pytest.mark.parametrize(
    ("text", "value"), [("last", 3.5), ("min", 3.0), ("step=10", 3.0), ("step=15", None)]
)
def test_one_value_of_a_course(text, value):
    assert At.parse(text).pick(COURSE) == value
    assert str(At.parse(text)) == text
    assert At.parse(text).pick([]) is None


def test_the_last_of_two_values_at_one_step_counts():
    assert At("step", 1).pick([Point(1, 4.0), Point(1, 3.0)]) == 3.0


@pytest.mark.parametrize("text", ["first", "step=", "step=-1", "step=1.5", "min "])
def test_other_places_are_refused(text):
    with pytest.raises(ValueError, match=r"at must be last, min or step=N, got"):
        At.parse(text)


@pytest.mark.parametrize("at", ["last", "min", "step=10"])
@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_run_that_ends_in_a_loss_that_is_not_finite_diverged_wherever_it_is_read(at, end):
    logs = Logs([logged([*COURSE, Point(30, end)], "finished"), logged(COURSE, "crashed")])
    frame = rows_of_logs(logs, None, At.parse(at), ()).frame
    assert frame["status"].tolist() == ["diverged", "failed"]


def test_finished_runs_without_the_value_are_counted_and_others_kept():
    logs = Logs([logged([], "finished"), logged([], "killed"), logged()], left_out={"cut": 2})
    rows = rows_of_logs(logs, None, At("step", 20), ())
    assert rows.frame["status"].tolist() == ["failed", "finished"]
    assert dict(rows.left_out) == {"cut": 2, "finished runs without a value of loss at step=20": 1}


def test_the_metric_is_named_by_the_user_the_source_or_its_name():
    run = logged(metrics=("train/loss", "val/loss", "acc"))
    rows = rows_of_logs(Logs([run]), None, At(), ())
    assert rows.metric == "val/loss"
    assert dict(rows.left_out) == {"other metrics (acc, train/loss)": 2}
    assert rows_of_logs(Logs([run]), "acc", At(), ()).metric == "acc"
    assert rows_of_logs(Logs([run], metric="acc"), None, At(), ()).metric == "acc"
    with pytest.raises(ValueError, match=r"metric=.*no run logged it; there are train/loss, val/loss, acc"):
        rows_of_logs(Logs([run]), "bits", At(), ())
    with pytest.raises(ValueError, match=r"may be loss or val_loss; say metric='loss' or metric='val_loss'"):
        rows_of_logs(Logs([logged(metrics=("loss", "val_loss"))]), None, At(), ())
    with pytest.raises(ValueError, match=r"no metric is called a loss; .* there are acc"):
        rows_of_logs(Logs([logged(metrics=("acc",))]), None, At(), ())


def test_settings_are_chosen_by_key_and_never_replace_a_result():
    run = logged(loss="cross entropy", lr="0.1", note="x", flag=True)
    frame = rows_of_logs(Logs([run]), None, At(), ()).frame
    assert frame.iloc[0].to_dict() == {
        "run_id": "a",
        "config.loss": "cross entropy",
        "lr": 0.1,
        "note": "x",
        "flag": True,
        "status": "finished",
        "loss": 3.5,
    }
    assert list(rows_of_logs(Logs([run]), None, At(), ["lr"]).frame) == ["run_id", "lr", "status", "loss"]
    with pytest.raises(ValueError, match=r"config_keys=.*no run has this setting; did you mean lr"):
        rows_of_logs(Logs([run]), None, At(), ["l_r"])


def test_rows_become_a_course_with_nan_as_text_and_without_gaps():
    rows = [{"step": 1, "loss": 3}, {"step": 2, "other": 1}, {"step": 3, "loss": "NaN"}, {"loss": "x"}]
    first, last = history_of(rows, "loss", "step")
    assert first == (1, 3)
    assert (last.step, math.isnan(last.value)) == (3, True)
    assert [point.step for point in history_of(rows, "loss", None)] == [0, 2]


def test_a_source_without_runs_says_what_was_left_out():
    with pytest.raises(ValueError, match="source holds no runs; left out: logs without a line: 3"):
        rows_of_logs(Logs([], left_out={"logs without a line": 3}), None, At(), ())
