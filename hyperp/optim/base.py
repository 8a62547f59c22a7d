"""One torch optimizer over parameter groups that each follow an algorithm of their own.

Units of equal shape and dtype in a group are stacked and updated in one batch, so that a small model costs a
few batched products instead of a loop over its layers (see `units`). Rules (see `rule`) are pure functions of
stacked tensors. Only this file touches parameters and state, which may lie on several ranks (see
`distributed.sharded`). `state_dict` saves and loads them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hyperp.optim import checks
from hyperp.optim.batch import UnitJob, make_batches, update_batch, write_units
from hyperp.optim.distributed.exchange import (
    Chunk,
    LocalChunk,
    ReplicatedChunk,
    WholeParameter,
    run_pipelined,
)
from hyperp.optim.distributed.sharded import (
    FiniteCheck,
    Ownership,
    check_layout,
    finish_finite_check,
    start_finite_check,
)
from hyperp.optim.rule import RULES, Rule, SphereError, make_rule, rule_of_group
from hyperp.optim.split import check_split
from hyperp.optim.state_dict import (
    add_missing_options,
    check_algorithms,
    gather_state,
    own_state,
    record_msign_dtypes,
)
from hyperp.optim.units import UnitView, stack_units, unit_views

# Keys of a group that are not hyperparameters of its algorithm.
_GROUP_KEYS = {
    "params", "param_names", "role", "algorithm", "lr", "initial_lr", "name", "maximize", "split",
}  # fmt: skip


class _Stage(NamedTuple):
    """Parameters of one group that are updated together."""

    group: dict[str, Any]
    rule: Rule
    chunk: Chunk


class GroupedOptimizer(torch.optim.Optimizer):
    """Optimizer whose parameter groups each name an algorithm: sso, muonsphere, muonh, adamh, muon or adamw.

    State is kept per parameter, in at least float32. A unit whose gradient has a norm that is not finite
    keeps its weight and its state, and is counted in `skipped`. Parameters without a gradient stay as they
    are.

    Args:
        params: what any torch optimizer takes: tensors, (name, tensor) pairs or groups. A group without
            "algorithm" is divided: its matrices follow `algorithm`, its tensors of at most one dimension
            AdamW. The "split" of a group divides fused parameters into their matrices (see `split`).
        lr: learning rate of the groups that have none.
        algorithm: algorithm of the matrices in groups that name none.
        options: hyperparameters of each algorithm; keys of a group override them.
        maximize: ascend instead of descending.
        process_group: the ranks among which to divide the matrices that every rank holds, as under DDP.
            Parameters sharded by FSDP2 are recognised without it (see `distributed.sharded`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        algorithm: str | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        maximize: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        checks.learning_rate("lr", lr)
        _refuse_unordered(params)
        for name, values in (options or {}).items():
            checks.one_of("algorithm", name, RULES)
            if not isinstance(values, Mapping):
                raise ValueError(f"options.{name} must be a mapping of options, got {values!r}")
            for key in _GROUP_KEYS.intersection(values):
                raise ValueError(
                    f"options.{name} must not have {key}, which belongs to a parameter group; "
                    'rates by role are lr={"hidden": ..., "embedding": ...}'
                )
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self.default_algorithm = algorithm
        if algorithm is not None:
            checks.one_of("algorithm", algorithm, RULES)
        self.ownership = Ownership(process_group)
        super().__init__(params, {"lr": lr, "maximize": maximize, "split": None})

    def __getstate__(self) -> dict[str, Any]:
        own = ("options", "default_algorithm", "ownership")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @property
    def skipped(self) -> int:
        """Updates of single units that this rank has skipped for a gradient that was not finite.

        Reads the count from the device.
        """
        counts = (v for state in self.state.values() for k, v in state.items() if k.startswith("skipped"))
        return sum(int(count.sum()) for count in counts)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any torch optimizer does; its options are checked and completed by defaults.

        A group that is refused leaves the optimizer as it was.
        """
        _refuse_unordered(param_group["params"])
        before = len(self.param_groups)
        try:
            for group in _split_by_algorithm(param_group, self.default_algorithm):
                self._add_checked(group)
        except Exception:
            del self.param_groups[before:]
            raise
        for group in self.param_groups[before:]:
            if RULES[group["algorithm"]].needs_matrices:
                self.ownership.assign(group["params"])

    def _add_checked(self, group: dict[str, Any]) -> None:
        checks.one_of("algorithm", group.get("algorithm"), RULES)
        common = {key: self.defaults[key] for key in ("lr", "maximize", "split")}
        group = {**self.options.get(group["algorithm"], {}), **common, **group}
        checks.learning_rate("lr", group["lr"])
        values = {key: value for key, value in group.items() if key not in _GROUP_KEYS}
        rule = make_rule(group["algorithm"], values)
        group.update(asdict(rule), params=self._with_names(group["params"]))
        super().add_param_group(group)
        added = self.param_groups[-1]
        for name, parameter in zip(_names_of(added), added["params"], strict=True):
            _check_parameter(rule, name, parameter)
            if added["split"] is not None:
                added["split"] = check_split(added["split"], parameter.shape[-2], name)

    def _with_names(self, params: Any) -> list[Any]:
        """Name the parameters if those of other groups have names: torch wants all groups named, or none."""
        members = [params] if isinstance(params, Tensor) else list(params)
        named = any("param_names" in group for group in self.param_groups)
        if not named or any(isinstance(member, tuple) for member in members):
            return members
        number = len(self.param_groups)
        return [(f"parameter {i} of group {number}", member) for i, member in enumerate(members)]

    @torch.no_grad()
    def project_(self) -> None:
        """Put every matrix that is to train on a sphere onto it: call once, before training and evaluation.

        SSO and MuonSphere rescale matrices to their radius. MuonH and AdamH leave a matrix as it is and take
        its Frobenius norm as the radius. Without this call, all four do so at their first step. Parameters
        that already have state are left alone, so that a resumed run is not disturbed. With several
        processes, all have to call it. Raises ValueError for a matrix that is zero or not finite.
        """
        self._ensure_state(self._make_stages(lambda p: p.requires_grad), project=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stages = self._make_stages(self._takes_part)
        checked = self.ownership.checked_equal
        for chunk in (stage.chunk for stage in stages):
            if isinstance(chunk, ReplicatedChunk) and not checked.issuperset(chunk.parameters):
                chunk.check_averaged()
                checked.update(chunk.parameters)
        self._ensure_state(stages, project=False)
        elementwise = (group for group in self.param_groups if not RULES[group["algorithm"]].needs_matrices)
        pending = start_finite_check(p for group in elementwise for p in group["params"])
        local = [stage for stage in stages if isinstance(stage.chunk, LocalChunk)]
        dealt = [(s.chunk, partial(self._update, s)) for s in stages if not isinstance(s.chunk, LocalChunk)]
        run_pipelined(dealt, meanwhile=lambda: self._update_local(local, pending))
        return loss

    def _takes_part(self, parameter: nn.Parameter) -> bool:
        # A matrix that is dealt out always takes part, since ranks have to agree without asking each other.
        dealt = parameter in self.ownership.owners
        return parameter.grad is not None or (parameter.requires_grad and dealt)

    def _make_stages(self, wanted: Callable[[nn.Parameter], bool]) -> list[_Stage]:
        stages = []
        for group in self.param_groups:
            rule = rule_of_group(group)
            members = [p for p in group["params"] if p.numel() and wanted(p)]
            chunks = self.ownership.chunks(members) if rule.needs_matrices else [LocalChunk(members)]
            stages += [_Stage(group, rule, chunk) for chunk in chunks]
        return stages

    def _update_local(self, stages: list[_Stage], pending: list[FiniteCheck]) -> None:
        finite = finish_finite_check(pending)
        for stage in stages:
            stage.chunk.send()
            for whole in stage.chunk.arrive():
                if whole.parameter in finite and whole.G is not None:
                    whole.G = torch.where(finite[whole.parameter], whole.G, torch.nan)
            self._update(stage, stage.chunk.wholes)
            stage.chunk.send_back()

    def _update(self, stage: _Stage, wholes: list[WholeParameter]) -> None:
        group = stage.group
        self._make_states(stage, wholes)  # again, where somebody has cleared them
        lr = group["lr"] if isinstance(group["lr"], Tensor) else float(group["lr"])
        for batch in make_batches(self._jobs(stage, wholes)):
            update_batch(stage.rule, batch, lr, bool(group.get("maximize")))

    def _jobs(self, stage: _Stage, wholes: list[WholeParameter]) -> Iterator[UnitJob]:
        for whole in wholes:
            assert whole.G is not None
            for view in _views_of(stage, whole):
                state = view.own_entries(self.state[whole.parameter])
                yield UnitJob(view, whole.W, whole.G, state)

    def _ensure_state(self, stages: list[_Stage], project: bool) -> None:
        """Make the state of parameters that have none yet.

        An error on one rank is raised on all of them, since the others would wait for it.
        """
        for stage in stages:
            chunk, error = stage.chunk, None
            if self._has_state(chunk):
                continue
            chunk.send(with_gradients=False)
            try:
                self._make_states(stage, chunk.arrive(), project)
            except SphereError as found:
                error = found
            chunk.raise_on_all_ranks(error)
            if project:
                chunk.send_back()
                chunk.finish()
            self.ownership.with_state.update(chunk.parameters)

    def _has_state(self, chunk: Chunk) -> bool:
        if isinstance(chunk, LocalChunk):
            return all(self.state.get(p) for p in chunk.parameters)
        return self.ownership.with_state.issuperset(chunk.parameters)

    def _make_states(self, stage: _Stage, wholes: list[WholeParameter], project: bool = False) -> None:
        new = [whole for whole in wholes if not self.state.get(whole.parameter)]
        names = dict(zip(stage.group["params"], _names_of(stage.group), strict=True)) if new else {}
        for whole in new:
            with _NameParameter(names[whole.parameter]):
                views = _views_of(stage, whole)
                self.state[whole.parameter] = _first_state(stage.rule, views, whole.W, project)

    def state_dict(self) -> dict[str, Any]:
        """The state that this rank keeps, in torch's format; `msign_dtype` is the dtype that is in use."""
        return record_msign_dtypes(super().state_dict(), self.param_groups)

    def gathered_state_dict(self) -> dict[str, Any]:
        """A copy of the state of all ranks, as a single process would have it; all ranks have to call it.

        `load_state_dict` takes it on any number of ranks.
        """
        return gather_state(self.state_dict(), self.param_groups, self.ownership)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict as torch does, but keep the dtype of the state, and only what this rank keeps.

        Raises ValueError for a state dict of other algorithms, or of another rank.
        """
        check_algorithms(state_dict, self.param_groups)
        super().load_state_dict(state_dict)
        self.ownership.with_state.clear()
        add_missing_options(self.param_groups)
        for parameter, state in own_state(state_dict, self.param_groups, self.ownership):
            self.state.pop(parameter, None)
            if state:
                self.state[parameter] = state


def _refuse_unordered(params: Any) -> None:
    if isinstance(params, (set, frozenset)):
        raise TypeError(
            "params must be ordered, as a list is, got a set: its order differs between processes"
        )


def _views_of(stage: _Stage, whole: WholeParameter) -> tuple[UnitView, ...]:
    return unit_views(whole.W.shape, stage.group.get("split"), stage.rule.needs_matrices)


def _first_state(rule: Rule, views: Iterable[UnitView], W: Tensor, project: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for view in views:
        if project:
            write_units([view], [W], rule.project(stack_units([view.read(W)])))
        units = stack_units([view.read(W)])
        made = rule.init(units)
        made["skipped"] = torch.zeros(len(units), dtype=torch.int64, device=W.device)
        state |= {view.key_for(key): view.unstack_entry(value).clone() for key, value in made.items()}
    return state


def _split_by_algorithm(group: dict[str, Any], default: str | None) -> list[dict[str, Any]]:
    """Divide a group without an algorithm into one of matrices and one of vectors."""
    if "algorithm" in group or default is None:
        return [group]
    params = group["params"]
    params = [params] if isinstance(params, Tensor) else list(params)

    def tensor(entry: Any) -> Tensor:
        return entry[1] if isinstance(entry, tuple) else entry

    matrices = [entry for entry in params if tensor(entry).ndim >= 2]
    vectors = [entry for entry in params if tensor(entry).ndim < 2]
    parts = [(default, matrices), ("adamw", vectors)]
    made = [
        {**group, "params": members, "algorithm": name} for name, members in parts if members or not params
    ]
    for part in made:
        if part["algorithm"] != default:
            part["split"] = None  # it divides the matrices
    return made


def _names_of(group: Mapping[str, Any]) -> list[str]:
    return group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]


def _check_parameter(rule: Rule, name: str, parameter: nn.Parameter) -> None:
    if rule.needs_matrices and parameter.ndim not in (2, 3):
        raise ValueError(
            f"{name} must be a matrix (d_out, d_in) or a stack of them (experts, d_out, d_in) to follow "
            f"{rule.name}, got shape {tuple(parameter.shape)}"
        )
    check_layout(name, parameter)
    if not parameter.is_floating_point():
        raise ValueError(f"{name} must be real and floating point, got {parameter.dtype}")


class _NameParameter:
    """Context that puts the name of the parameter before the text of a SphereError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SphereError):
            raise SphereError(f"{self.name} {error}") from None
