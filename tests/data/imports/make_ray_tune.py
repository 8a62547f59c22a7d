"""Makes `ray_tune/` beside this file: three trials of Ray Tune, of which one fails; needs `ray[tune]`.

    python tests/data/imports/make_ray_tune.py

Kept are the files that an import reads: params.json, result.json, error.txt and experiment_state-*.json.
"""

import shutil
import tempfile
from pathlib import Path

from ray import tune  # pyright: ignore[reportMissingImports] - no extra of this package

KEPT = ("params.json", "result.json", "error.txt", "experiment_state-*.json")


def train(config: dict) -> None:
    """Report a loss three times; at the highest rate end with an error before the last."""
    for step in range(3):
        if config["optim"]["lr"] > 0.05 and step == 2:
            raise RuntimeError("the loss is too large")
        tune.report({"val_loss": 4 - step - config["optim"]["lr"], "train": {"loss": 3.0}})


def main() -> None:
    """Run the trials in a temporary folder and copy what is kept."""
    with tempfile.TemporaryDirectory() as folder:
        space = {"optim": {"lr": tune.grid_search([0.01, 0.02, 0.1])}, "d_model": 64}
        names = tune.TuneConfig(trial_dirname_creator=lambda trial: f"trial_{trial.trial_id[-1]}")
        where = tune.RunConfig(storage_path=folder, name="sweep", verbose=0)
        tune.Tuner(train, param_space=space, tune_config=names, run_config=where).fit()
        target = Path(__file__).with_name("ray_tune")
        for pattern in KEPT:
            for path in (Path(folder) / "sweep").rglob(pattern):
                copy = target / path.relative_to(Path(folder) / "sweep")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)


if __name__ == "__main__":
    main()
