"""`hyperp-train -m +experiment=...`: a Hydra sweeper that gives a plan's runs to any Hydra launcher."""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hyperp.sweeps import printing
from hyperp.sweeps.plan import planfile
from hyperp.sweeps.plan.command_run import CommandRun
from hyperp.sweeps.plan.plan import Point, make_plan
from hyperp.sweeps.runs.status import DONE, counts_line, final_states, plan_states, set_damaged_aside
from hyperp.sweeps.trainers.builtin import check_buildable
from hyperp.terminal import one_line, print_error

# Hydra 1.3 only instantiates plugins of the namespace hydra_plugins: hydra/core/plugins.py.
ALIAS = "hydra_plugins.hyperp.PlanSweeper"


class PlanSweeper(Sweeper):
    """Expands the plan of the command line, with the same runs, ids and plan.json as `hyperp-sweep run`.

    Finished and diverged runs are skipped. Comma choices on the command line (`seed=0,1`) multiply the plan.
    """

    hydra_context: HydraContext | None = None
    config: DictConfig | None = None
    launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch what is missing. Exits with code 1 if a run failed.

        Raises ValueError for a bad plan, before it writes anything.
        """
        plan = make_plan(arguments, self._compose)
        if any(isinstance(point.config, CommandRun) for point in plan.points):
            raise ValueError(
                "trainer.name must be hyperp with hyperp-train -m: hyperp-sweep run does commands"
            )
        before = plan_states(plan)
        todo = [point for point, run in zip(plan.points, before, strict=True) if run.status not in DONE]
        if todo:
            check_buildable(todo)
        with planfile.lock_sweep(plan.root):
            set_damaged_aside(plan.root, before, _warn)
            planfile.write_plan(plan)
            results = self._launch(todo) if todo else []
        if not todo:
            print(f"nothing to do: {len(plan.points)} of {len(plan.points)} runs are done; {plan.root}")
            return []
        after = plan_states(plan) if results is None else final_states(plan, _failure_reasons(todo, results))
        print(f"{counts_line(after)}; {plan.root}")
        if printing.print_undone(after, plan.root) or results is None:
            sys.exit(1)
        return [results]

    def _launch(self, todo: Sequence[Point]) -> Sequence[JobReturn] | None:
        """What the jobs returned; None if the launcher gave up."""
        assert self.launcher is not None
        try:
            return self.launcher.launch([list(point.overrides) for point in todo], initial_job_idx=0)
        except RuntimeError as error:  # of submitit, for a job that died; others may still be under way
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            print_error("hyperp-train", f"the launcher gave up: {text}")
            return None

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose as `hyperp.config.compose` does, with the Hydra that is already running."""
        assert self.hydra_context is not None
        assert self.config is not None
        hydra_overrides = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        assert isinstance(hydra_overrides, list)
        try:
            cfg = self.hydra_context.config_loader.load_configuration(
                config_name=self.config.hydra.job.config_name,
                overrides=[*hydra_overrides, *overrides],
                run_mode=RunMode.RUN,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(one_line(error)) from None
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg


def _failure_reasons(todo: Sequence[Point], results: Sequence[JobReturn]) -> dict[str, str]:
    """What the jobs raised, by run id; mostly that no record could be written."""
    errors = {
        point.run_id: result._return_value  # `return_value` prints a line of its own
        for point, result in zip(todo, results, strict=False)
        if result.status == JobStatus.FAILED
    }
    return {run_id: f"{type(error).__name__}: {one_line(error)}" for run_id, error in errors.items()}


def _warn(text: str) -> None:
    print(f"hyperp-train: warning: {text}", file=sys.stderr)


def register() -> None:
    """Make the sweeper known to Hydra under the name that conf/hydra/sweeper/plan.yaml uses.

    The class itself stays importable by its own name, since launchers pickle Hydra's table of plugins.
    """
    plugins: Any = Plugins.instance()
    plugins.class_name_to_class[ALIAS] = PlanSweeper
