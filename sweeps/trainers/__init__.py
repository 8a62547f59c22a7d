"""Who trains a run: hyperp's own trainer (`builtin`), or any command (`command`), behind one protocol."""

from collections.abc import Mapping
from typing import Any

from hyperp.sweeps.plan.run_config import trainer_name
from hyperp.sweeps.trainers.protocol import Trainer


def trainer_of(values: Mapping[str, Any]) -> Trainer:
    """The trainer of a run, from its plain values."""
    if trainer_name(values) == "command":
        from hyperp.sweeps.trainers.command import CommandTrainer

        return CommandTrainer()
    from hyperp.sweeps.trainers.builtin import BuiltinTrainer

    return BuiltinTrainer()
