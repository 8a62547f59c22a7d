"""Which algorithm trains which role, and parameter groups from a model."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from hyperp.optim import checks
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.rule import RULES
from hyperp.optim.split import Split, splits_of
from hyperp.roles import ROLES, Role, roles_of

_ADAMW: dict[Role, str] = dict.fromkeys(ROLES, "adamw")


def _table_row(name: str, **others: str) -> dict[Role, str]:
    return {**_ADAMW, "hidden": name, "router": name, "expert": name, **others}  # pyright: ignore[reportReturnType]


# Which algorithm each role follows, by optimizer. sso and muonsphere follow arXiv 2601.08393 (the router as
# the hidden matrices, the unembedding on AdamW), muonh and adamh 2603.28743 (the unembedding on AdamH).
# Embeddings and vectors follow AdamW in all of them.
TABLE: dict[str, dict[Role, str]] = {
    "sso": _table_row("sso"),
    "muonsphere": _table_row("muonsphere"),
    "muonh": _table_row("muonh", unembedding="adamh"),
    "adamh": _table_row("adamh", unembedding="adamh"),
    "muon": _table_row("muon"),
    "adamw": _ADAMW,
}


def param_groups(
    model: nn.Module,
    *,
    lr: float | Mapping[Role, float],
    algorithms: Mapping[Role, str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    unembedding: Iterable[nn.Module] = (),
) -> list[dict[str, Any]]:
    """One group for each role that the model has, in the order of ROLES, for any `GroupedOptimizer`.

    Parameters of one role whose modules declare different `param_splits` form several groups. A group holds
    "params" as (name, tensor) pairs, "role", "algorithm", "lr", "split" and the options of its algorithm
    in `options`. Raises ValueError for a role without an algorithm or a rate, for a split that does not fit,
    and for what `roles_of` refuses.
    """
    for name, values in (options or {}).items():
        if not isinstance(values, Mapping):
            raise ValueError(f"options.{name} must be a mapping of options, got {values!r}")
    for role in lr if isinstance(lr, Mapping) else ():
        checks.one_of("role of lr", role, ROLES)
    roles = roles_of(model, unembedding)
    named, splits = dict(model.named_parameters()), splits_of(model)
    groups = []
    for role in ROLES:
        of_role = [(name, named[name]) for name, its_role in roles.items() if its_role == role]
        by_split: dict[Split | None, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in of_role:
            by_split.setdefault(splits.get(parameter), []).append((name, parameter))
        for split, members in by_split.items():
            algorithm = _entry_for_role("algorithms", algorithms, role)
            checks.one_of(f"algorithm of role {role}", algorithm, RULES)
            rate = _entry_for_role("lr", lr, role) if isinstance(lr, Mapping) else lr
            checks.learning_rate(f"lr of role {role}", rate)
            group = {"params": members, "role": role, "algorithm": algorithm, "lr": rate, "split": split}
            groups.append({**(options or {}).get(algorithm, {}), **group})
    return groups


def build(
    model: nn.Module,
    name: str,
    *,
    lr: float | Mapping[Role, float],
    algorithms: Mapping[Role, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    unembedding: Iterable[nn.Module] = (),
    process_group: dist.ProcessGroup | None = None,
) -> GroupedOptimizer:
    """The optimizer `name` for a model: `TABLE[name]` says which algorithm each role follows.

    `algorithms` overrides roles of the table. Rates and options are as in `param_groups`. Weights are not
    touched: call `project_()` on the result before training.
    """
    checks.one_of("optimizer", name, TABLE)
    for role in algorithms or {}:
        checks.one_of("role", role, ROLES)
    table: dict[Role, str] = {**TABLE[name], **(algorithms or {})}
    groups = param_groups(model, lr=lr, algorithms=table, options=options, unembedding=unembedding)
    return GroupedOptimizer(groups, options=options, process_group=process_group)


def _entry_for_role(field: str, table: Mapping[Role, Any], role: Role) -> Any:
    if role not in table:
        raise ValueError(f"{field} must have an entry for role {role}, got only {', '.join(table) or 'none'}")
    return table[role]
