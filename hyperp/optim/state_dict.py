"""State dicts of a `GroupedOptimizer` whose state may lie on several ranks.

Each rank's own dict has the state that the rank keeps. A gathered one has what a single process would have;
any number of ranks can load it, and each keeps its own part.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hyperp.optim.distributed.exchange import local_tensor, shard_rows
from hyperp.optim.distributed.sharded import Ownership, sharded_entry
from hyperp.optim.linalg.msign import resolve_msign_dtype
from hyperp.optim.rule import make_rule

StateDict = dict[str, Any]


def record_msign_dtypes(state_dict: StateDict, groups: Iterable[Mapping[str, Any]]) -> StateDict:
    """Write the dtype that this device gives matrix signs into the groups of `state_dict`.

    A run that resumes on another device then computes as it did before.
    """
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        if "msign_dtype" in saved:
            saved["msign_dtype"] = resolve_msign_dtype(saved["msign_dtype"], group["params"])
    return state_dict


def gather_state(own: StateDict, groups: Iterable[Mapping[str, Any]], ownership: Ownership) -> StateDict:
    """Complete a rank's own state dict by the state of all other ranks; every rank has to call it."""
    parameters = dict(_numbered_parameters(own, groups))
    state: dict[int, dict[str, Tensor]] = own["state"]
    for ranks in ownership.loads:
        mine = {
            index: {key: value.cpu() for key, value in state[index].items()}
            for index, parameter in parameters.items()
            if index in state and parameter in ownership.owners and ownership.group_of(parameter) == ranks
        }
        shares: list[Any] = [None] * ranks.size()
        dist.all_gather_object(shares, mine, group=ranks)
        for share in shares:
            state = {**share, **state}
    gathered = {}
    for index, entries in sorted(state.items()):
        parameter = parameters[index]
        full = {key: _full_entry(value, parameter, ownership) for key, value in entries.items()}
        gathered[index] = {key: value.clone() for key, value in full.items()}
    return {**own, "state": gathered}


def check_algorithms(state_dict: StateDict, groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if `state_dict` comes from groups that follow other algorithms than `groups`."""
    for i, (own, saved) in enumerate(zip(groups, state_dict["param_groups"], strict=False)):
        if own["algorithm"] != saved.get("algorithm"):
            raise ValueError(
                f"state_dict must be of an optimizer whose group {i} follows {own['algorithm']}, "
                f"got {saved.get('algorithm')}"
            )


def add_missing_options(groups: Iterable[dict[str, Any]]) -> None:
    """Give groups that were saved before their algorithm had some option the default of that option."""
    for group in groups:
        for name, value in asdict(make_rule(group["algorithm"], {})).items():
            group.setdefault(name, value)


def own_state(
    state_dict: StateDict, groups: Iterable[Mapping[str, Any]], ownership: Ownership
) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
    """The state in `state_dict` of every parameter, as far as this rank keeps it; {} where it keeps none.

    The state is copied to the parameter's device in the dtype it has. Raises ValueError for the state dict of
    another rank, which would leave matrices of this rank without momentum.
    """
    state = state_dict["state"]
    parameters = list(_numbered_parameters(state_dict, groups))
    there = [i for i, parameter in parameters if parameter in ownership.owners and i in state]
    missing = [
        i
        for i, parameter in parameters
        if parameter in ownership.owners
        and i not in state
        and ownership.keeps(parameter)
        and parameter.requires_grad
    ]
    if there and missing:
        raise ValueError(
            f"state_dict must have the state of parameters {missing}, which this rank keeps, got only "
            f"those of {there}; save gathered_state_dict() to load on any rank"
        )
    for index, parameter in parameters:
        entries = state.get(index, {}) if ownership.keeps(parameter) else {}
        yield (
            parameter,
            {
                key: _own_rows(value, parameter, ownership).to(parameter.device, copy=True)
                for key, value in entries.items()
            },
        )


def _numbered_parameters(
    state_dict: StateDict, groups: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[int, nn.Parameter]]:
    """Every parameter with the number that `state_dict` gives it."""
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        yield from zip(saved["params"], group["params"], strict=True)


def _full_entry(value: Tensor, parameter: nn.Parameter, ownership: Ownership) -> Tensor:
    if ownership.shards_entry(parameter, value, local_tensor(parameter)):
        return sharded_entry(value, parameter).full_tensor()
    return value


def _own_rows(value: Tensor, parameter: nn.Parameter, ownership: Ownership) -> Tensor:
    if ownership.shards_entry(parameter, value, parameter):
        ranks = ownership.group_of(parameter)
        assert ranks is not None
        return shard_rows(value, ranks.rank(), ranks.size())
    return value
