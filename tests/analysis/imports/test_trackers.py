"""Files that the libraries of TensorBoard, Optuna, MLflow and W&B write, each read with that library."""

import json
import sys

import pytest

from hyperp.analysis import import_runs
from hyperp.analysis.imports.logged import At, Point
from hyperp.analysis.imports.packages import required
from hyperp.analysis.imports.wandb_api import run_of_api
from tests.analysis.law_command import one_line, run


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Two runs with HParams, one of which diverges, and one with a configuration beside."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    root = tmp_path_factory.mktemp("events")
    for name, lr, end in (("a", 0.01, 3.5), ("b", 0.02, float("nan")), ("c", 0.04, 3.75)):
        writer = SummaryWriter(str(root / name))
        for step, loss in enumerate((4.0, 3.25, end)):
            writer.add_scalar("val/loss", loss, step * 10)
            writer.add_scalar("train/lr", 0.0, step * 10)
        if name != "c":
            writer.add_hparams({"lr": lr, "d_model": 64, "opt": "muon"}, {"best": end}, run_name="session")
        writer.close()
    (root / "c" / "hparams.yaml").write_text("lr: 0.04\nd_model: 128\n")
    return root


def test_events_of_tensorboard(events):
    found = import_runs(events)
    assert found.record.format == "tensorboard"
    assert found.frame[["lr", "width", "status"]].values.tolist() == [
        [0.01, 64, "finished"],
        [0.02, 64, "diverged"],
        [0.04, 128, "finished"],
    ]
    assert found.frame["loss"].tolist()[::2] == [3.5, 3.75]
    assert found.record.left_out == {"other metrics (best, train/lr)": 2}
    assert import_runs(events, at="min").frame["loss"].tolist() == [3.25, 3.25, 3.25]


def test_events_without_settings_are_counted(events, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "bare")) as writer:
        writer.add_scalar("loss", 3.0, 0)
    with pytest.raises(ValueError, match=r"left out: folders of events without settings .*: 1"):
        import_runs(tmp_path)


def test_trials_of_optuna(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="width-64")
    for lr in (0.01, 0.02, 0.04, 0.08):
        study.enqueue_trial({"lr": lr})

    def objective(trial) -> float:
        lr = trial.suggest_float("lr", 0.001, 1.0, log=True)
        for step in range(3):
            trial.report(4 - step / 4, step)
        trial.set_user_attr("val_loss", 3 + lr)
        if lr == 0.04:
            raise optuna.TrialPruned
        return 3.5 + lr

    study.optimize(objective, n_trials=3)
    before = (tmp_path / "study.db").read_bytes()
    found = import_runs(tmp_path / "study.db").frame
    assert (tmp_path / "study.db").read_bytes() == before
    assert found["status"].tolist() == ["finished", "finished", "failed", "planned"]
    assert found["lr"].tolist()[:3] == [0.01, 0.02, 0.04]
    assert found["loss"].tolist()[:2] == [3.51, 3.52]
    assert import_runs(tmp_path / "study.db", at="step=1").frame["loss"].tolist()[:2] == [3.75, 3.75]
    assert import_runs(tmp_path / "study.db", metric="val_loss").frame["loss"].tolist()[:2] == [3.01, 3.02]


def test_a_study_of_optuna_that_maximises_is_refused(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=storage, study_name="accuracy", direction="maximize")
    with pytest.raises(ValueError, match="study accuracy must minimise one value, a loss, got maximize"):
        import_runs(tmp_path / "study.db")


@pytest.fixture(params=["sqlite", "files"])
def store(request, tmp_path, monkeypatch):
    """The address of a store that MLflow wrote three runs to, and what the import is given."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files = request.param == "files"
    path = tmp_path / ("mlruns" if files else "mlflow.db")
    client = mlflow.MlflowClient(tracking_uri=path.as_uri() if files else f"sqlite:///{path}")
    experiment = client.create_experiment("sweep")
    for lr, status in ((0.01, "FINISHED"), (0.02, "KILLED"), (0.04, "FINISHED")):
        one = client.create_run(experiment).info.run_id
        client.log_param(one, "optim.lr", lr)
        client.log_param(one, "d_model", 64)
        for step, loss in enumerate((4.0, 3.25, 3.5)):
            client.log_metric(one, "val_loss", loss, step=step)
        client.set_terminated(one, status)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    return path


@pytest.mark.slow  # MLflow makes its tables for 10 s
def test_runs_of_mlflow(store):
    found = import_runs(store)
    assert found.record.format == "mlflow"
    assert found.record.runs == {"finished": 2, "failed": 1}
    assert sorted(found.frame["lr"]) == [0.01, 0.02, 0.04]
    assert set(found.frame["width"]) == {64}
    assert set(found.frame["loss"]) == {3.5}
    assert set(import_runs(store, at="min").frame["loss"]) == {3.25}
    assert set(import_runs(store, at="step=0").frame["loss"]) == {4.0}


@pytest.fixture
def wandb_run():
    """A run of W&B's own class, made of what its server sends."""
    public = pytest.importorskip("wandb.apis.public", reason="the extra wandb is not installed")
    attributes = {
        "name": "abc123",
        "displayName": "calm-sea-1",
        "state": "crashed",
        "config": json.dumps({"optim": {"value": {"lr": 0.01}}, "_wandb": {"value": {}}}),
        "summaryMetrics": json.dumps({"val/loss": 3.5, "_step": 30, "grad": {"norm": "NaN"}, "note": "x"}),
        "user": {"name": "a", "username": "a"},
    }
    return public.Run(None, "entity", "project", "abc123", attrs=attributes, lazy=False)


def test_a_run_of_the_wandb_api(wandb_run, monkeypatch):
    rows = [{"_step": 0, "val/loss": 4.0}, {"_step": 30, "val/loss": "Infinity"}]
    monkeypatch.setattr(wandb_run, "scan_history", lambda keys: rows)  # else a question to the server
    found = run_of_api(wandb_run)
    assert (found.name, found.status, dict(found.settings)) == ("abc123", "crashed", {"optim.lr": 0.01})
    assert found.metrics == ["val/loss", "grad.norm"]
    assert found.value("val/loss", At()) == 3.5
    assert found.value("val/loss", At("step", 0)) == 4.0
    assert found.history("val/loss") == [Point(0, 4.0), Point(30, float("inf"))]


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = run("import", "entity/project", "-o", tmp_path / "runs.parquet")
    one_line(
        result, 2, "read with the package wandb, which is missing ... pip install 'hyperp-scaling[wandb]'"
    )
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'hyperp-scaling\[optuna\]'"):
        required("optuna", "an Optuna database")
