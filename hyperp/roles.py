"""The role of each parameter of a model, decided by the module that owns it and never by its name.

A module class declares the roles of its own direct parameters::

    class Unembedding(nn.Linear):
        param_roles: ClassVar[dict[str, Role]] = {"weight": "unembedding"}

An instance of a class from elsewhere can be given the same attribute. For modules without it, the type of the
module decides.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import nn

Role = Literal["embedding", "hidden", "unembedding", "vector", "router", "expert"]
ROLES: tuple[Role, ...] = get_args(Role)

# Parameters with at least this many dimensions are matrices or stacks of matrices, (..., d_out, d_in).
_MATRIX_DIMS = 2


def roles_of(model: nn.Module, unembedding: Iterable[nn.Module] = ()) -> dict[str, Role]:
    """The role of every parameter of `model`, with the names and order of `model.named_parameters()`.

    The first of these that applies decides: `param_roles` of the module; at most one dimension makes a
    vector; a module listed in `unembedding`; the type of the module, where the weight of an `nn.Embedding` is
    an embedding and the weight of an `nn.Linear` is hidden. A tensor that several modules share has one role;
    if one of them is an embedding, that role is embedding.

    Raises ValueError for a matrix in a module of unknown type, for a declaration that is not a role or names
    no parameter, for a shared tensor with contradicting roles, and for a module in `unembedding` that `model`
    does not contain.
    """
    listed = [unembedding] if isinstance(unembedding, nn.Module) else list(unembedding)
    if not all(isinstance(module, nn.Module) for module in listed):
        raise ValueError(
            f"unembedding must be modules of the model, such as [model.lm_head], got {unembedding!r}"
        )
    marked = {id(module) for module in listed}
    foreign = marked - {id(module) for module in model.modules()}
    if foreign:
        raise ValueError(
            f"unembedding must list modules of the model, {len(foreign)} of {len(marked)} are not in it"
        )
    role_of_tensor: dict[int, Role] = {}
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            where = f"{path}.{name}" if path else name
            role = _role_of(module, name, tensor, where, id(module) in marked)
            role_of_tensor[id(tensor)] = _merge_roles(role_of_tensor.get(id(tensor), role), role, where)
    return {name: role_of_tensor[id(tensor)] for name, tensor in model.named_parameters()}


def _role_of(module: nn.Module, name: str, tensor: torch.Tensor, where: str, marked: bool) -> Role:
    declared = _declared_roles(module)
    if name in declared:
        return declared[name]
    if tensor.ndim < _MATRIX_DIMS:
        return "vector"
    if marked:
        return "unembedding"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "hidden"
    raise ValueError(
        f"{where} of shape {tuple(tensor.shape)} is in a {type(module).__name__}, which has no known "
        f'role; declare it: {type(module).__name__}.param_roles = {{"{name}": one of {", ".join(ROLES)}}}'
    )


def _declared_roles(module: nn.Module) -> Mapping[str, Role]:
    declared = getattr(module, "param_roles", {})
    if not isinstance(declared, Mapping):
        raise ValueError(
            f"{type(module).__name__}.param_roles must map parameter names to roles, got {declared!r}"
        )
    for name, role in declared.items():
        if name not in module._parameters:
            own = ", ".join(module._parameters) or "it has none"
            raise ValueError(
                f"{type(module).__name__}.param_roles names {name!r}, but must name one of its own: {own}"
            )
        if role not in ROLES:
            where = f"{type(module).__name__}.param_roles[{name!r}]"
            raise ValueError(f"{where} must be one of {', '.join(ROLES)}, got {role!r}")
    return declared


def _merge_roles(earlier: Role, role: Role, where: str) -> Role:
    if "embedding" in (earlier, role):
        return "embedding"
    if earlier != role:
        raise ValueError(
            f"{where} is shared by modules that call it {earlier} and {role}; it must have one role"
        )
    return role
