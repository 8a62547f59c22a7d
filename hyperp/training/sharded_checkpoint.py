"""Checkpoints of a run with several ranks: each writes what it holds, and any number of ranks can resume.

torch.distributed.checkpoint stores every tensor under its own name, in parts, so that another number of ranks
can read other parts. A checkpoint is the folder checkpoint/STEP: tensors named model/PARAMETER and
optimizer/PARAMETER/ENTRY, and progress.pt with what is small and the same on all ranks. The folder gets its
name when it is complete; the one before is removed after that.
"""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.tensor import empty as empty_dtensor

from hyperp.files import replacing
from hyperp.optim import GroupedOptimizer
from hyperp.optim.distributed.exchange import local_tensor
from hyperp.optim.distributed.sharded import sharded_entry
from hyperp.training.trainer import Trainer

FOLDER = "checkpoint"
PROGRESS = "progress.pt"
log = logging.getLogger(__name__)


def save(run_dir: Path, trainer: Trainer) -> None:
    """Write the state of all ranks; call it on all of them. A kill leaves the last checkpoint or this one."""
    final = run_dir / FOLDER / str(trainer.step)
    partial = final.with_name(f".{final.name}.tmp")
    trainer.ranks.share(lambda: _make_empty(partial))
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    try:
        save_state_dict(tensors | _optimizer_tensors(trainer.model, trainer.optimizer), checkpoint_id=partial)
    except CheckpointException as error:  # not an Exception; it holds those of all ranks
        raise _first_exception(error) from None

    def rename() -> None:
        with replacing(partial / PROGRESS, "wb") as file:
            torch.save(trainer.progress() | {"groups": _options(trainer.optimizer)}, file)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for other in (run_dir / FOLDER).iterdir():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)

    trainer.ranks.share(rename)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def newest(run_dir: Path) -> Path | None:
    """The folder of the last complete checkpoint, or None."""
    complete = [path for path in (run_dir / FOLDER).glob("[0-9]*") if (path / PROGRESS).is_file()]
    return max(complete, key=lambda path: int(path.name), default=None)


def remove(run_dir: Path) -> None:
    """Remove all checkpoints of this kind."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def restore(trainer: Trainer, folder: Path) -> None:
    """Resume from a checkpoint, with any number of ranks; call it on all of them.

    Raises ValueError if it is of another run, text or precision, or cannot be read.
    """
    try:
        progress = torch.load(folder / PROGRESS, map_location="cpu", weights_only=True)
        trainer.check_checkpoint(progress)
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        model = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
        state = _empty_optimizer_tensors(trainer.model, trainer.optimizer, stored)
        wanted: dict[str, Any] = model | {
            f"optimizer/{name}/{key}": value
            for name, entries in state.items()
            for key, value in entries.items()
        }
        with warnings.catch_warnings():  # about a single rank, which is intended
            warnings.simplefilter("ignore", UserWarning)
            load_state_dict(wanted, checkpoint_id=folder)
    except (OSError, MemoryError, torch.OutOfMemoryError, ValueError):
        raise
    except (Exception, CheckpointException) as error:  # torch's readers raise many kinds for a damaged file
        if isinstance(error, CheckpointException):
            error = _first_exception(error)
        raise ValueError(
            f"checkpoint must be whole, but {folder} cannot be read ({type(error).__name__}: {error}); "
            "remove it to start over"
        ) from None
    for name, parameter in trainer.model.named_parameters():
        if name in state:
            own = {key: local_tensor(value).to(parameter.device) for key, value in state[name].items()}
            trainer.optimizer.state[parameter] = own
    for group, options in zip(trainer.optimizer.param_groups, progress["groups"], strict=True):
        group.update(options)
    trainer.restore_progress(progress)


def _first_exception(error: CheckpointException) -> Exception:
    """The exception of the first rank that failed."""
    found = [failure[0] for failure in error.failures.values()]
    return found[0] if found and isinstance(found[0], Exception) else RuntimeError(str(error))


def _options(optimizer: GroupedOptimizer) -> list[dict[str, Any]]:
    """The options of every group, the dtype of matrix signs included, which may depend on the device."""
    groups = optimizer.state_dict()["param_groups"]
    return [
        {key: value for key, value in group.items() if key not in ("params", "param_names", "split")}
        for group in groups
    ]


def _optimizer_tensors(model: nn.Module, optimizer: GroupedOptimizer) -> dict[str, Tensor]:
    """The optimizer's state on this rank: whole tensors, and its shards of those that all ranks share."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if optimizer.ownership.shards_entry(parameter, value, local_tensor(parameter)):
                value = sharded_entry(value, parameter)
            found[f"optimizer/{name}/{key}"] = value
    return found


def _empty_optimizer_tensors(
    model: nn.Module, optimizer: GroupedOptimizer, stored: dict[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Empty tensors for the entries that this rank is to load, by parameter."""
    made: dict[str, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for full_name, metadata in stored.items():
        section, name, *key = full_name.split("/")
        if section != "optimizer":
            continue
        parameter, ownership = parameters[name], optimizer.ownership
        if not ownership.keeps(parameter):
            continue
        assert isinstance(metadata, TensorStorageMetadata)
        value = torch.empty(metadata.size, dtype=metadata.properties.dtype, device=parameter.device)
        if ownership.shards_entry(parameter, value, parameter):
            mesh, placements = parameter.device_mesh, parameter.placements
            value = empty_dtensor(metadata.size, dtype=value.dtype, device_mesh=mesh, placements=placements)
        made.setdefault(name, {})[key[0]] = value
    return made
