"""Logs of one run each with a configuration beside: JSON lines, CSV and Ray Tune's folders."""

import json

import pytest

from hyperp.analysis import import_runs
from tests.paths import ROOT

RAY = ROOT / "tests" / "data" / "imports" / "ray_tune"


def write_run(folder, lr, losses, config="config.json", log="metrics.jsonl", end="\n"):
    folder.mkdir(parents=True)
    settings = {"optim": {"lr": lr}, "model": {"n_embd": 64}}
    text = (
        json.dumps(settings) if config.endswith("json") else f"optim: {{lr: {lr}}}\nmodel: {{n_embd: 64}}\n"
    )
    (folder / config).write_text(text)
    lines = [json.dumps({"step": 10 * i, "val_loss": loss, "time": i}) for i, loss in enumerate(losses)]
    (folder / log).write_text("\n".join(lines) + end)


def test_a_row_for_each_log_with_its_configuration(tmp_path):
    write_run(tmp_path / "a", 0.01, [4, 3.5, 3.6])
    write_run(tmp_path / "b", 0.02, [4, 3.4, float("nan")], config="config.yaml")
    write_run(tmp_path / "c", 0.04, [4, 3.9], end='\n{"step": 20, "val_l')
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").write_text('{"step": 0, "val_loss": 4}\n')
    found = import_runs(str(tmp_path / "*" / "metrics.jsonl"))
    assert found.frame[["lr", "width", "status"]].values.tolist() == [
        [0.01, 64, "finished"],
        [0.02, 64, "diverged"],
        [0.04, 64, "lost"],
    ]
    assert found.frame["loss"].tolist()[::2] == [3.6, 3.9]
    assert found.record.columns == {"loss": "val_loss", "lr": "optim.lr", "width": "model.n_embd"}
    assert found.record.left_out == {"logs without a configuration beside": 1, "other metrics (time)": 1}
    told = " ".join(found.record.remarks)
    for words in ("config.json (logs: 2)", "config.yaml (logs: 1)", "keep no status", "within a line: 1;"):
        assert words in told
    lowest = import_runs([tmp_path / "a" / "metrics.jsonl"], format="logs", at="min")
    assert lowest.frame["loss"].tolist() == [3.5]
    assert lowest.record.at == "min"


def test_logs_in_csv_and_a_configuration_under_another_name_one_folder_up(tmp_path):
    for lr in (0.01, 0.02):
        logs = tmp_path / str(lr) / "logs"
        logs.mkdir(parents=True)
        (logs.parent / "my.yaml").write_text(f"lr: {{value: {lr}, desc: null}}\n")
        (logs / "log.csv").write_text(f"iter,eval_loss\n0,4\n5,{3 + lr}\n")
    found = import_runs(str(tmp_path / "*/logs/log.csv"), config="my.yaml", at="step=5")
    assert found.frame["lr"].tolist() == [0.01, 0.02]
    assert found.frame["loss"].tolist() == [3.01, 3.02]
    with pytest.raises(ValueError, match="holds no runs; left out: logs without a configuration beside: 2"):
        import_runs(str(tmp_path / "*/logs/log.csv"))


def test_a_malformed_line_within_a_log_or_a_configuration_is_named(tmp_path):
    write_run(tmp_path / "a", 0.01, [4])
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 1, character 11 is not JSON"):
        import_runs(str(tmp_path / "*" / "metrics.jsonl"))
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 0, "loss": 3}\n')
    (tmp_path / "a" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: must be a JSON object"):
        import_runs(str(tmp_path / "*" / "metrics.jsonl"))


def test_trials_of_ray_tune_as_it_wrote_them():
    found = import_runs(RAY)
    assert (found.record.format, found.record.at) == ("ray", "last")
    assert found.frame.sort_values("lr")[["lr", "width", "status"]].values.tolist() == [
        [0.01, 64, "finished"],
        [0.02, 64, "finished"],
        [0.1, 64, "failed"],
    ]
    assert found.frame.sort_values("lr")["loss"].tolist() == pytest.approx([1.99, 1.98, 2.9])
    assert found.record.columns == {"loss": "val_loss", "lr": "optim.lr", "width": "d_model"}


def test_trials_of_ray_tune_without_the_states_of_the_experiment(tmp_path):
    for trial in RAY.glob("trial_*"):
        (tmp_path / trial.name).mkdir()
        for path in trial.iterdir():
            (tmp_path / trial.name / path.name).write_bytes(path.read_bytes())
    result = tmp_path / "trial_1" / "result.json"
    result.write_text(result.read_text().replace('"done": false', '"done": true'))
    found = import_runs(tmp_path)
    assert found.frame.sort_values("lr")["status"].tolist() == ["lost", "finished", "failed"]
    assert found.record.remarks[0].startswith("trials without a state of their own: 3;")
