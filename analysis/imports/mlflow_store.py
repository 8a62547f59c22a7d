"""Runs that MLflow tracked, in an SQLite file, a folder of files or on a server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hyperp.analysis.imports.logged import History, LoggedRun, Logs, Point
from hyperp.analysis.imports.packages import required

PAGE = 1000  # runs that one question to the store returns
OPT_OUT = "MLFLOW_ALLOW_FILE_STORE"


def read_mlflow(uri: str) -> Logs:
    """A run for each run of every active experiment; the experiments are told apart by a column experiment.

    Args:
        uri: the tracking URI, such as sqlite:///mlflow.db.

    Raises:
        ValueError: the package mlflow is missing, or it cannot read this store.
    """
    library = required("mlflow", "an MLflow store")
    database = required("sqlalchemy.exc", "an MLflow store", "mlflow")
    with _readable_files():
        try:
            client = library.MlflowClient(tracking_uri=uri)
            names = {one.experiment_id: one.name for one in client.search_experiments()}
            found = list(_runs(client, list(names)))
        except (library.exceptions.MlflowException, database.SQLAlchemyError) as error:
            raise ValueError(f"{uri}: MLflow cannot read it: {str(error).splitlines()[0]}") from None
    runs = [_run(client, run, names[run.info.experiment_id]) for run in found]
    remarks = (f"{len(names)} experiments, told apart by the column experiment",) if len(names) > 1 else ()
    return Logs(runs, remarks=remarks)


@contextmanager
def _readable_files() -> Iterator[None]:
    """Let newer versions read a folder of files, which they refuse to write to unless this is set."""
    before = os.environ.get(OPT_OUT)
    os.environ[OPT_OUT] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OPT_OUT]
        else:
            os.environ[OPT_OUT] = before


def _runs(client: Any, experiments: list[str]) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(experiments, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _run(client: Any, run: Any, experiment: str) -> LoggedRun:
    def history(metric: str) -> History:
        with _readable_files():
            found = client.get_metric_history(run.info.run_id, metric)
        ordered = sorted(found, key=lambda one: (one.step, one.timestamp))
        return [Point(one.step, one.value) for one in ordered]

    settings = {**run.data.params, "experiment": experiment}
    last = dict(run.data.metrics)
    return LoggedRun(run.info.run_id, settings, list(last), history, run.info.status, last)
