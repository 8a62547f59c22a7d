"""What an import takes as what, leaves out and stores, whatever the source."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from hyperp.analysis import fit_law, import_runs, read_runs
from hyperp.analysis.imports.importing import KEY, import_record
from tests.analysis.law_command import one_line, run
from tests.paths import ROOT

RUN_TABLE = """Name,State,Runtime,optim.lr,d_model,train_tokens,val/loss,tags
calm-sea-1,finished,900,0.005,64,1000000,3.61,a
calm-sea-2,finished,910,0.01,64,1000000,3.52,
calm-sea-3,crashed,90,0.02,64,1000000,4.1,
calm-sea-4,finished,905,0.02,64,1000000,NaN,
calm-sea-5,killed,905,,64,1000000,Infinity,
calm-sea-6,finished,905,,64,1000000,3.4,
calm-sea-7,finished,905,0.04,,1000000,3.4,
calm-sea-8,vanished,905,0.04,64,1000000,,
"""


@pytest.fixture
def run_table(tmp_path):
    path = tmp_path / "wandb.csv"
    path.write_text(RUN_TABLE)
    return path


def test_a_run_table_of_wandb_is_taken_and_told(run_table, tmp_path):
    found = import_runs(run_table)
    assert found.record.columns == {
        "lr": "optim.lr",
        "loss": "val/loss",
        "width": "d_model",
        "tokens": "train_tokens",
        "status": "State",
    }
    assert found.record.left_out == {"runs without width": 1, "finished runs without a learning rate": 1}
    assert found.record.runs == {"finished": 3, "failed": 2, "lost": 1}
    (unknown,) = found.record.remarks
    assert unknown.startswith("1 row has no known status (vanished)")
    assert not {"optim.lr", "val/loss", "d_model", "State"} & set(found.frame.columns)
    found.save(tmp_path / "made" / "runs.parquet")
    stored = pq.read_schema(tmp_path / "made" / "runs.parquet").metadata[KEY]
    assert json.loads(stored)["columns"]["lr"] == "optim.lr"
    assert import_record(tmp_path / "made" / "runs.parquet") == found.record
    again = read_runs(tmp_path / "made" / "runs.parquet")
    assert again.notes == []
    assert again.frame["loss"].isna().sum() == 2


def test_a_law_is_the_same_before_and_after_an_import(make_ladder, tmp_path):
    frame = make_ladder().rename(columns={"lr": "config.lr", "tokens": "D", "loss": "eval/loss"})
    frame.drop(columns="status").to_csv(tmp_path / "runs.csv", index=False)
    import_runs(tmp_path / "runs.csv").save(tmp_path / "runs.parquet")
    direct, imported = (fit_law(tmp_path / name, by="tokens") for name in ("runs.csv", "runs.parquet"))
    pd.testing.assert_frame_equal(direct.summary(), imported.summary())


def test_a_mapping_goes_before_guesses_and_two_candidates_for_what_no_law_needs_are_no_error(tmp_path):
    rows = "max_lr,learning_rate,loss,n_params,num_params,steps\n0.1,0.2,3.5,5,6,7\n0.2,0.2,3.4,5,6,7\n"
    (tmp_path / "runs.csv").write_text(rows)
    with pytest.raises(ValueError, match="column lr may be max_lr or learning_rate"):
        import_runs(tmp_path / "runs.csv")
    found = import_runs(tmp_path / "runs.csv", mapping={"lr": "max_lr", "tokens": "steps*1000"})
    assert found.record.columns == {"lr": "max_lr", "tokens": "steps*1000"}
    assert found.record.remarks[0].startswith("parameters is not read: column parameters may be n_params")
    assert found.frame["tokens"].tolist() == [7000, 7000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "min"}, "at is for runs that were logged step by step"),
        ({"config_keys": ["lr"]}, "config_keys is for runs that were logged step by step"),
        ({"format": "excel"}, r"format must be one of table, .*, got 'excel'"),
        ({"format": "ray"}, "format ray must have a folder, got"),
        ({"format": "optuna"}, "format optuna must have an SQLite file of optuna, got"),
        ({"format": "mlflow"}, "format mlflow must have an SQLite file of mlflow, got"),
        ({"mapping": {"lr": "rate"}}, "no column 'rate' at character 1"),
        ({"metric": "bits"}, "no column 'bits'"),
    ],
)
def test_options_that_do_not_fit_are_refused(run_table, options, message):
    with pytest.raises(ValueError, match=message):
        import_runs(run_table, **options)


def test_mixed_columns_are_stored_as_text(tmp_path):
    (tmp_path / "runs.jsonl").write_text(
        '{"lr": 0.1, "loss": 3, "x": 1}\n{"lr": 0.2, "loss": 3, "x": "auto"}\n'
    )
    import_runs(tmp_path / "runs.jsonl").save(tmp_path / "runs.parquet")
    assert read_runs(tmp_path / "runs.parquet").frame["x"].tolist() == ["1", "auto"]


def test_the_command_tells_on_stderr_and_counts_on_stdout(run_table, tmp_path):
    out = tmp_path / "runs.parquet"
    result = run("import", run_table, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == "format table: a row for each run"
    assert "read lr from optim.lr" in result.stderr.splitlines()
    assert result.stdout.splitlines() == [
        "left out: runs without width: 1",
        "left out: finished runs without a learning rate: 1",
        f"wrote {out}: 6 runs (2 failed, 3 finished, 1 lost)",
    ]
    as_json = json.loads(run("import", run_table, "-o", out, "--json").stdout)
    assert as_json["left_out"] == {"runs without width": 1, "finished runs without a learning rate": 1}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["absent.csv"], "SOURCE=absent.csv does not exist"),
        (["TABLE", "--at", "first"], "--at is for runs"),
        (["TABLE", "OTHER.jsonl"], "OTHER.jsonl matches no file"),
        (["TABLE", "--map", "lr"], "--map must be NAME=COLUMN"),
        (["EMPTY"], "holds no runs of Ray Tune, TensorBoard or MLflow"),
        (["none/*.jsonl"], "SOURCE=none/*.jsonl matches no file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run_table, tmp_path, words, text):
    (tmp_path / "empty").mkdir()
    places = {"TABLE": run_table, "EMPTY": tmp_path / "empty"}
    out = tmp_path / "runs.parquet"
    one_line(run("import", *(places.get(word, word) for word in words), "-o", out), 2, text)
    assert not out.exists()


def test_the_source_is_never_overwritten(tmp_path):
    frame = pd.DataFrame({"lr": [0.1, 0.2], "loss": [3.0, 2.9]})
    frame.to_parquet(tmp_path / "runs.parquet")
    result = run("import", tmp_path / "runs.parquet", "-o", tmp_path / "runs.parquet")
    one_line(result, 2, "-o must be another file than SOURCE")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "runs.parquet"), frame)


def test_the_readme_shows_what_the_command_prints(tmp_path, monkeypatch):
    page = (ROOT / "analysis" / "README.md").read_text()
    shown = page.partition("$ hyperp-law import tests/data/imports/ray_tune -o runs.parquet\n")[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    result = run("import", "tests/data/imports/ray_tune", "-o", "runs.parquet")
    assert result.stderr + result.stdout == shown.partition("```")[0]


def test_an_imported_table_is_an_answer(run_table):
    found = import_runs(run_table)
    assert str(found) == "6 runs (2 failed, 3 finished, 1 lost)"
    assert "read lr from optim.lr" in found._repr_html_()
