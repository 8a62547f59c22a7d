"""Result folders of Ray Tune: params.json and result.json of each trial, and the states of all trials."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperp.analysis.imports.configurations import read_configuration
from hyperp.analysis.imports.log_files import log_lines, run_of_rows
from hyperp.analysis.imports.logged import Logs
from hyperp.analysis.table.json_lines import parse_object
from hyperp.analysis.table.statuses import UNKNOWN
from hyperp.analysis.table.stored import Stored

PARAMS, RESULT, ERROR = "params.json", "result.json", "error.txt"
NO_RESULT = "trials without a line in result.json"


def trial_folders(folder: Path) -> list[Path]:
    """The folders of trials below this one, itself included."""
    return sorted(path.parent for path in folder.rglob(PARAMS) if (path.parent / RESULT).is_file())


def read_ray(folder: Path) -> Logs:
    """A run for each trial. Its state is that of the experiment's own file, where there is one.

    Raises:
        ValueError: a file that is not JSON.
    """
    states = _trial_states(folder)
    runs, left_out, guessed = [], Counter[str](), 0
    for trial in trial_folders(folder):
        path = trial / RESULT
        log = log_lines(Stored(str(path), "jsonl", path.read_bytes(), ""))
        if not log.rows:
            left_out[NO_RESULT] += 1
            continue
        state = states.get(str(log.rows[-1].get("trial_id")))
        guessed += state is None
        state = state or _state_of_files(trial, log.rows[-1])
        runs.append(run_of_rows(trial.name, read_configuration(trial / PARAMS), _results(log.rows), state))
    remark = f"trials without a state of their own: {guessed}; finished if the last result is done"
    return Logs(runs, remarks=(remark,) if guessed else (), left_out=left_out)


def _results(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines without the configuration, which Ray repeats in each."""
    return [{key: v for key, v in row.items() if not key.startswith("config.")} for row in rows]


def _state_of_files(trial: Path, last: Mapping[str, Any]) -> str:
    if (trial / ERROR).is_file():
        return "error"
    return "terminated" if last.get("done") is True else UNKNOWN


def _trial_states(folder: Path) -> dict[str, str]:
    """The state of each trial by its id, from the newest experiment_state file of each experiment."""
    states = {}
    for path in sorted(folder.rglob("experiment_state-*.json")):
        found = parse_object(path.read_text(encoding="utf-8"), f"{path}:")
        for entry in found.get("trial_data", []):
            trial = json.loads(entry[0] if isinstance(entry, list) else entry)
            states[str(trial.get("trial_id"))] = str(trial.get("status"))
    return states
