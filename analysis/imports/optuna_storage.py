"""Studies of Optuna in a database: a run for each trial."""

from pathlib import Path
from typing import Any

from hyperp.analysis.imports.logged import LoggedRun, Logs, Point, number_or_none
from hyperp.analysis.imports.packages import read_only, required

VALUE = "value"


def read_optuna(path: Path) -> Logs:
    """A run for each trial of every study in an SQLite file; the studies are told apart by a column study.

    The metric `value` is what the objective returned; its course is what the trial reported. Numbers among a
    trial's attributes are metrics too.

    Raises:
        ValueError: the package optuna is missing or cannot read this file, or a study has several objectives
            or maximises its one.
    """
    library = required("optuna", "an Optuna database")
    library.logging.set_verbosity(library.logging.WARNING)
    database, runs = required("sqlalchemy.exc", "an Optuna database", "optuna"), []
    try:
        storage = library.storages.RDBStorage(read_only(path))
        names = library.get_all_study_names(storage=storage)
        studies = {name: library.load_study(study_name=name, storage=storage) for name in names}
    except (database.SQLAlchemyError, library.exceptions.OptunaError, RuntimeError) as error:
        raise ValueError(f"{path}: Optuna cannot read it: {str(error).splitlines()[0]}") from None
    for name, study in studies.items():
        directions = [direction.name for direction in study.directions]
        if directions != ["MINIMIZE"]:
            raise ValueError(
                f"{path}: study {name} must minimise one value, a loss, got {', '.join(directions).lower()}"
            )
        runs += [_run(f"{name}/{trial.number}", name, trial) for trial in study.trials]
    remarks = (f"{len(names)} studies, told apart by the column study",) if len(names) > 1 else ()
    return Logs(runs, metric=VALUE, remarks=remarks)


def _run(label: str, study: str, trial: Any) -> LoggedRun:
    reported = [Point(step, value) for step, value in sorted(trial.intermediate_values.items())]
    numbers = {k: number for k, v in trial.user_attrs.items() if (number := number_or_none(v)) is not None}
    last = numbers if trial.value is None else {**numbers, VALUE: trial.value}
    rest = {key: value for key, value in trial.user_attrs.items() if key not in numbers}
    return LoggedRun(
        label,
        {**trial.params, **rest, "study": study},
        list(last),
        lambda metric: reported if metric == VALUE else [],
        trial.state.name,
        last,
    )
