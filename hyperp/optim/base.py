"""One torch optimizer over groups that each follow an algorithm of their own.

Units of equal shape and dtype in a group are stacked and updated in one batch, so that a small model costs a
few batched products and not a loop over layers; a 3-D parameter (experts, d_out, d_in) is that many matrices.
Rules (see `rule`) are pure functions of stacked tensors; this file alone touches parameters and state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hyperp.optim import checks
from hyperp.optim.rule import RULES, Rule, SphereError, make_rule, option_names

# What a group may hold beside its algorithm's options.
_GROUP_KEYS = {"params", "param_names", "role", "algorithm", "lr", "initial_lr", "name"}


class GroupedOptimizer(torch.optim.Optimizer):
    """Optimizer whose parameter groups each name an algorithm: sso, muonsphere, muonh, adamh, muon or adamw.

    `params` is what any torch optimizer takes: tensors, (name, tensor) pairs or groups. A group without
    "algorithm" is split: its matrices follow `algorithm`, its tensors of at most one dimension AdamW.
    `options` holds each algorithm's hyperparameters, which a group may override by keys of its own.

    State is kept per parameter in at least float32. A unit whose gradient has an entry that is not finite is
    left alone, weight and state, and counted in `skipped`. Parameters without a gradient are passed over.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        algorithm: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        checks.at_least("lr", lr, 0)
        for name, values in (options or {}).items():
            checks.one_of("algorithm", name, RULES)
            if not isinstance(values, Mapping):
                raise ValueError(f"options.{name} must be a mapping of options, got {values!r}")
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self.default_algorithm = algorithm
        if algorithm is not None:
            checks.one_of("algorithm", algorithm, RULES)
        super().__init__(params, {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "options": self.options,
            "default_algorithm": self.default_algorithm,
        }

    @property
    def skipped(self) -> int:
        """Steps of single units skipped because a gradient was not finite; reads from the device."""
        return sum(int(state["skipped"].sum()) for state in self.state.values() if state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any torch optimizer does; its options are checked and completed by defaults."""
        for group in _split(param_group, self.default_algorithm):
            self._add(group)

    def _add(self, group: dict[str, Any]) -> None:
        checks.one_of("algorithm", group.get("algorithm"), RULES)
        group = {**self.options.get(group["algorithm"], {}), "lr": self.defaults["lr"], **group}
        checks.at_least("lr", float(group["lr"]), 0)
        values = {key: value for key, value in group.items() if key not in _GROUP_KEYS}
        rule = make_rule(group["algorithm"], values)
        group.update(asdict(rule))
        super().add_param_group(group)
        try:
            for name, parameter in _named(self.param_groups[-1]):
                _check_parameter(rule, name, parameter)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def project_(self) -> None:
        """Put every matrix that is to train on a sphere onto it: call once, before training and evaluation.

        SSO and MuonSphere rescale to their radius. MuonH and AdamH leave the matrix as it is and take its
        Frobenius norm as the radius; without this call they do so at their first step, and SSO rescales then.
        Parameters that already have state are left alone, so that a resumed run is not disturbed. Raises
        ValueError for a matrix that is zero or not finite.
        """
        for group in self.param_groups:
            rule = _rule(group)
            for name, parameter in _named(group):
                if parameter.requires_grad and parameter.numel() and not self.state[parameter]:
                    units = _stack([parameter])
                    with _naming(name):
                        parameter.copy_(rule.project(units).reshape(parameter.shape))
                        self._ensure_state(rule, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rule = _rule(group)
            batches: dict[Any, list[nn.Parameter]] = {}
            for parameter, name in zip(group["params"], _names(group), strict=True):
                if parameter.grad is not None and parameter.numel():
                    if not self.state[parameter]:
                        with _naming(name):
                            self._ensure_state(rule, parameter)
                    key = (parameter.shape, parameter.dtype, parameter.device, parameter.grad.dtype)
                    batches.setdefault(key, []).append(parameter)
            for parameters in batches.values():
                self._step_batch(rule, float(group["lr"]), parameters)
        return loss

    def _ensure_state(self, rule: Rule, parameter: nn.Parameter) -> None:
        if self.state[parameter]:
            return
        W = _stack([parameter])
        state = rule.init(W)
        state["skipped"] = torch.zeros(len(W), dtype=torch.int64, device=W.device)
        self.state[parameter] = {key: _unstack(value, [parameter])[0].clone() for key, value in state.items()}

    def _step_batch(self, rule: Rule, lr: float, parameters: list[nn.Parameter]) -> None:
        experts = parameters[0].ndim == 3
        W = _stack(parameters)
        G = _stack([_dense(parameter) for parameter in parameters])
        states = [self.state[parameter] for parameter in parameters]
        old = {key: _stack([s[key] for s in states], experts) for key in states[0] if key != "skipped"}
        ok_B = G.reshape(len(G), -1).abs().amax(1).isfinite()
        # A CPU looks at the flags for less than the masks cost; on a GPU that would make the host wait.
        if ok_B.device.type == "cpu" and bool(ok_B.all()):
            new_W, new = rule.update(W, G, old, lr)
        else:
            new_W, new = rule.update(W, torch.where(_like(ok_B, G), G, 0), old, lr)
            new_W = torch.where(_like(ok_B, W), new_W, W)
            new = {key: torch.where(_like(ok_B, value), value, old[key]) for key, value in new.items()}
            new["skipped"] = _stack([s["skipped"] for s in states], experts) + ~ok_B
        _write(parameters, new_W, parameters)
        for key, value in new.items():
            _write([s[key] for s in states], value, parameters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its own dtype: torch would round it to that of the parameter."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, own, strict=True):
            if index in state_dict["state"]:
                values = state_dict["state"][index].items()
                self.state[parameter] = {key: v.to(parameter.device, copy=True) for key, v in values}


def _rule(group: Mapping[str, Any]) -> Rule:
    names = option_names(RULES[group["algorithm"]])
    return make_rule(group["algorithm"], {name: group[name] for name in names})


def _split(group: dict[str, Any], default: str | None) -> list[dict[str, Any]]:
    """A group without an algorithm becomes one of matrices and one of vectors."""
    if "algorithm" in group or default is None:
        return [group]
    params = group["params"]
    params = [params] if isinstance(params, Tensor) else list(params)

    def tensor(entry: Any) -> Tensor:
        return entry[1] if isinstance(entry, tuple) else entry

    matrices = [entry for entry in params if tensor(entry).ndim >= 2]
    vectors = [entry for entry in params if tensor(entry).ndim < 2]
    parts = [(default, matrices), ("adamw", vectors)]
    return [
        {**group, "params": members, "algorithm": name} for name, members in parts if members or not params
    ]


def _names(group: Mapping[str, Any]) -> list[str]:
    return group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]


def _named(group: Mapping[str, Any]) -> Iterator[tuple[str, nn.Parameter]]:
    return zip(_names(group), group["params"], strict=True)


def _check_parameter(rule: Rule, name: str, parameter: Tensor) -> None:
    if rule.matrices and parameter.ndim not in (2, 3):
        raise ValueError(
            f"{name} must be a matrix (d_out, d_in) or a stack of them (experts, d_out, d_in) to follow "
            f"{rule.name}, got shape {tuple(parameter.shape)}"
        )
    if not parameter.is_floating_point():
        raise ValueError(f"{name} must be real and floating point, got {parameter.dtype}")


class _naming:  # noqa: N801 - reads as a verb
    """Names the parameter in a SphereError that its algorithm raises."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SphereError):
            raise SphereError(f"{self.name} {error}") from None


def _dense(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    if parameter.grad.layout != torch.strided:
        raise ValueError(f"gradients must be dense, got layout {parameter.grad.layout}")
    return parameter.grad


def _stack(tensors: list[Any], experts: bool | None = None) -> Tensor:
    """(B, *unit) in at least float32 from tensors of one shape; 3-D parameters bring several units each."""
    experts = tensors[0].ndim == 3 if experts is None else experts
    if len(tensors) == 1:
        stacked = tensors[0] if experts else tensors[0].unsqueeze(0)
    else:
        stacked = torch.cat(tensors) if experts else torch.stack(tensors)
    return (
        stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        if stacked.is_floating_point()
        else stacked
    )


def _unstack(stacked: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    experts = parameters[0].ndim == 3
    return stacked.split(len(parameters[0])) if experts else stacked.unbind()


def _write(targets: list[Any], stacked: Tensor, parameters: list[nn.Parameter]) -> None:
    torch._foreach_copy_(targets, _unstack(stacked, parameters))  # pyright: ignore[reportPrivateImportUsage]


def _like(mask_B: Tensor, tensor: Tensor) -> Tensor:
    return mask_B.view(-1, *[1] * (tensor.ndim - 1))
