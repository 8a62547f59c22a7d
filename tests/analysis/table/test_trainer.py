"""The trainer of a table's runs: what its column says, or what a sweep's table is without one."""

import pandas as pd
import pytest

from hyperp.analysis.table.trainer import OF_SWEEPS, trainer_of

SWEEP = pd.DataFrame({name: [1, 1] for name in OF_SWEEPS})


@pytest.mark.parametrize(
    ("frame", "trainer"),
    [
        (SWEEP, "hyperp"),
        (SWEEP.assign(trainer=None), "hyperp"),
        (SWEEP.assign(trainer="command"), "command"),
        (SWEEP.assign(trainer=pd.Series(["command", None])), None),
        (SWEEP.drop(columns="monitor_looks"), None),
        (pd.DataFrame({"lr": [0.1], "loss": [3.0]}), None),
        (pd.DataFrame({"lr": [0.1], "trainer": ["ours"]}), "ours"),
    ],
)
def test_the_trainer_of_a_table_is_what_it_says(frame, trainer):
    assert trainer_of(frame) == trainer
