"""The trainer of this package: `hyperp.training.train` in the worker's own process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperp.config import Config
from hyperp.rundir.record import Record
from hyperp.sweeps.plan.plan import Point
from hyperp.sweeps.plan.run_config import model_shape, run_of
from hyperp.sweeps.trainers.protocol import Ranks, Report


def _config(values: Mapping[str, Any]) -> Config:
    config = run_of(values)
    assert isinstance(config, Config)
    return config


class BuiltinTrainer:
    """Implements `Trainer`; imports torch where it trains."""

    def prepare(self) -> None:
        """Import torch."""
        import hyperp.training.train  # noqa: F401

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError for models too large for the memory, that cannot be built, or without a device."""
        from hyperp.training.memory import check_memory
        from hyperp.training.trainer import resolve_device

        configs = [point.own for point in points]
        for config in configs:
            check_memory(config.scale, model_shape(config))
        check_buildable(points)
        for name in {config.runtime.device for config in configs} - {"auto"}:
            resolve_device(name)

    def command(self, point: Point) -> list[str]:
        """The words for hyperp-train."""
        return ["hyperp-train", *point.overrides, *(["sweep=none"] if point.blocks else [])]

    @contextmanager
    def join(self, values: Mapping[str, Any]) -> Iterator[Ranks]:
        """Join torch's process group."""
        from hyperp.distributed.ranks import join_process_group

        with join_process_group(values["runtime"]["timeout"]) as ranks:
            yield ranks

    def execute(
        self, values: Mapping[str, Any], run_dir: Path, report: Report | None, stop: Callable[[], bool]
    ) -> Record:
        """Train in this process."""
        from hyperp.training.train import train_or_record_failure

        return train_or_record_failure(_config(values), run_dir, report, stop)

    def record_failure(
        self,
        values: Mapping[str, Any],
        run_dir: Path,
        reason: str,
        environment: dict[str, str] | None,
        cause: str | None,
    ) -> Record:
        """Write a failed record."""
        from hyperp.training.train import write_failed_record

        return write_failed_record(_config(values), run_dir, reason, environment, cause)


def check_buildable(points: Sequence[Point]) -> None:
    """Build what hyperp would train, with one layer and on the CPU, and drop it again. Writes nothing.

    One point stands for all that share its model, optimizer, data and batch.

    Raises:
        ValueError: what only building shows, such as a corpus that is missing or too small, or an unknown
            optimizer or option.
    """
    from hyperp.data.corpus import load_corpus
    from hyperp.training.trainer import Trainer

    corpora, checked = {}, set()
    for config in [point.config for point in points if isinstance(point.config, Config)]:
        parts = (config.model, config.optim, config.data, config.scale.batch_tokens)
        if repr(parts) in checked:
            continue
        checked.add(repr(parts))
        source = repr(config.data)
        if source not in corpora:
            corpora[source] = load_corpus(config.data)
        runtime = replace(config.runtime, device="cpu", threads=0, compile=False)
        Trainer(replace(config, scale=replace(config.scale, depth=1), runtime=runtime), corpora[source])
