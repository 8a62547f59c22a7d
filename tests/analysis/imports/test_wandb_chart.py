"""The CSV of a W&B chart, whose settings come from the run table."""

import csv

import pytest

from hyperp.analysis import import_runs

COLUMNS = [f"{run} - val/loss{end}" for run in ("calm - sea", "b", "c") for end in ("", "__MIN", "__MAX")]
CHART = [
    ["Step", *COLUMNS],
    ["0", *("4", "4", "4"), *("4.5", "4.5", "4.5"), *("1", "1", "1")],
    ["10", *("3.5", "3.5", "3.5"), *("", "", ""), *("1", "1", "1")],
    ["20", *("3.6", "3.6", "3.6"), *("NaN", "NaN", "NaN"), *("1", "1", "1")],
]
TABLE = "Name,State,lr,val/loss\ncalm - sea,finished,0.01,9\nb,finished,0.02,9\nd,crashed,0.04,9\n"


@pytest.fixture
def chart(tmp_path):
    with (tmp_path / "chart.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(CHART)
    (tmp_path / "runs.csv").write_text(TABLE)
    return tmp_path / "chart.csv"


def test_courses_come_from_the_chart_and_settings_from_the_run_table(chart):
    found = import_runs(chart, config=str(chart.with_name("runs.csv")))
    assert found.record.format == "wandb-chart"
    assert found.frame[["run_id", "lr", "status"]].values.tolist() == [
        ["calm - sea", 0.01, "finished"],
        ["b", 0.02, "diverged"],
    ]
    assert found.frame["loss"][0] == 3.6
    assert found.record.left_out == {
        "columns of ranges": 6,
        "runs of the chart that the run table does not have": 1,
        "runs of the run table that the chart does not have": 1,
    }
    at_step = import_runs(chart, config=str(chart.with_name("runs.csv")), at="step=10")
    assert at_step.frame[["run_id", "loss"]].values.tolist()[0] == ["calm - sea", 3.5]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "is a W&B chart, which has no settings; .* --config RUNS.csv"),
        ("ID,lr\nb,0.01\n", "lacks the column Name"),
        ("Name,lr\nb,0.01\nb,0.02\n", "must have each Name once, got 'b' twice"),
    ],
)
def test_a_chart_needs_the_run_table(chart, table, message):
    path = chart.with_name("runs.csv")
    if table is not None:
        path.write_text(table)
    with pytest.raises(ValueError, match=message):
        import_runs(chart, config=None if table is None else str(path))
