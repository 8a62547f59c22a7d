"""One torch optimizer over groups that each follow an algorithm of their own.

Units of equal shape and dtype in a group are stacked and updated in one batch, so that a small model costs a
few batched products and not a loop over layers (see `units`). Rules (see `rule`) are pure functions of
stacked tensors; this file alone touches parameters and state, which may lie on several ranks (`sharded`).
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
    local_tensor,
    run_pipelined,
    shard_rows,
)
from hyperp.optim.distributed.sharded import (
    FiniteCheck,
    Ownership,
    check_layout,
    finish_finite_check,
    sharded_entry,
    start_finite_check,
)
from hyperp.optim.linalg.msign import resolve_msign_dtype
from hyperp.optim.rule import RULES, Rule, SphereError, make_rule, option_names
from hyperp.optim.split import check_split
from hyperp.optim.units import UnitView, stack_units, unit_views

# What a group may hold beside its algorithm's options.
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

    `params` is what any torch optimizer takes: tensors, (name, tensor) pairs or groups. A group without
    "algorithm" is split: its matrices follow `algorithm`, its tensors of at most one dimension AdamW.
    `options` holds each algorithm's hyperparameters, which a group may override by keys of its own. A group's
    "split" divides fused parameters into their matrices (see `split`). `maximize` climbs. With
    `process_group` the matrices of parameters that every rank holds (DDP) are dealt out over its ranks;
    sharded parameters (FSDP2) need no word (see `sharded`).

    State is kept per parameter in at least float32. A unit whose gradient has a norm that is not finite is
    left alone, weight and state, and counted in `skipped`. Parameters without a gradient are passed over.
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
        _refuse_a_set(params)
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
        """Steps of single units skipped on this rank because a gradient was not finite; reads the device."""
        counts = (v for state in self.state.values() for k, v in state.items() if k.startswith("skipped"))
        return sum(int(count.sum()) for count in counts)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any torch optimizer does; its options are checked and completed by defaults.

        A group that is refused leaves the optimizer as it was.
        """
        _refuse_a_set(param_group["params"])
        before = len(self.param_groups)
        try:
            for group in _split_by_algorithm(param_group, self.default_algorithm):
                self._add(group)
        except Exception:
            del self.param_groups[before:]
            raise
        for group in self.param_groups[before:]:
            if RULES[group["algorithm"]].needs_matrices:
                self.ownership.assign(group["params"])

    def _add(self, group: dict[str, Any]) -> None:
        checks.one_of("algorithm", group.get("algorithm"), RULES)
        common = {key: self.defaults[key] for key in ("lr", "maximize", "split")}
        group = {**self.options.get(group["algorithm"], {}), **common, **group}
        checks.learning_rate("lr", group["lr"])
        values = {key: value for key, value in group.items() if key not in _GROUP_KEYS}
        rule = make_rule(group["algorithm"], values)
        group.update(asdict(rule), params=self._with_names(group["params"]))
        super().add_param_group(group)
        added = self.param_groups[-1]
        for name, parameter in _named(added):
            _check_parameter(rule, name, parameter)
            if added["split"] is not None:
                added["split"] = check_split(added["split"], parameter.shape[-2], name)

    def _with_names(self, params: Any) -> list[Any]:
        """torch wants all groups with names or none: a group without gets some if the others have them."""
        members = [params] if isinstance(params, Tensor) else list(params)
        named = any("param_names" in group for group in self.param_groups)
        if not named or any(isinstance(member, tuple) for member in members):
            return members
        number = len(self.param_groups)
        return [(f"parameter {i} of group {number}", member) for i, member in enumerate(members)]

    @torch.no_grad()
    def project_(self) -> None:
        """Put every matrix that is to train on a sphere onto it: call once, before training and evaluation.

        SSO and MuonSphere rescale to their radius. MuonH and AdamH leave the matrix as it is and take its
        Frobenius norm as the radius; without this call they do so at their first step, and SSO rescales then.
        Parameters that already have state are left alone, so that a resumed run is not disturbed. Raises
        ValueError for a matrix that is zero or not finite. Over several processes all have to call it.
        """
        self._ensure_state(self._make_stages(lambda p: p.requires_grad), project=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stages = self._make_stages(self._takes_part)
        for chunk in (stage.chunk for stage in stages):
            if isinstance(chunk, ReplicatedChunk) and not self.ownership.checked_equal.issuperset(
                chunk.parameters
            ):
                chunk.check_averaged()
                self.ownership.checked_equal.update(chunk.parameters)
        self._ensure_state(stages, project=False)
        elementwise = (group for group in self.param_groups if not RULES[group["algorithm"]].needs_matrices)
        asked = start_finite_check(p for group in elementwise for p in group["params"])
        alone = [stage for stage in stages if isinstance(stage.chunk, LocalChunk)]
        dealt = [(s.chunk, partial(self._update, s)) for s in stages if not isinstance(s.chunk, LocalChunk)]
        run_pipelined(dealt, meanwhile=lambda: self._update_local(alone, asked))
        return loss

    def _takes_part(self, parameter: nn.Parameter) -> bool:
        # What is dealt out always does, since the ranks have to agree without asking each other.
        return parameter.grad is not None or (parameter.requires_grad and self._dealt(parameter))

    def _make_stages(self, wanted: Callable[[nn.Parameter], bool]) -> list[_Stage]:
        stages = []
        for group in self.param_groups:
            rule = _rule(group)
            members = [p for p in group["params"] if p.numel() and wanted(p)]
            chunks = self.ownership.chunks(members) if rule.needs_matrices else [LocalChunk(members)]
            stages += [_Stage(group, rule, chunk) for chunk in chunks]
        return stages

    def _update_local(self, stages: list[_Stage], asked: list[FiniteCheck]) -> None:
        sound = finish_finite_check(asked)
        for stage in stages:
            stage.chunk.send()
            for whole in stage.chunk.arrive():
                if whole.parameter in sound and whole.G is not None:
                    whole.G = torch.where(sound[whole.parameter], whole.G, torch.nan)
            self._update(stage, stage.chunk.wholes)
            stage.chunk.send_back()

    def _update(self, stage: _Stage, wholes: list[WholeParameter]) -> None:
        group = stage.group
        self._make_states(stage, wholes)  # where somebody has cleared it
        lr = group["lr"] if isinstance(group["lr"], Tensor) else float(group["lr"])
        for batch in make_batches(self._jobs(stage.rule, group, wholes)):
            update_batch(stage.rule, batch, lr, bool(group.get("maximize")))

    def _jobs(self, rule: Rule, group: Mapping[str, Any], wholes: list[WholeParameter]) -> Iterator[UnitJob]:
        for whole in wholes:
            assert whole.G is not None
            for view in _unit_views(rule, group, whole):
                state = view.own_entries(self.state[whole.parameter])
                yield UnitJob(view, whole.W, whole.G, state)

    def _ensure_state(self, stages: list[_Stage], project: bool) -> None:
        """State for what has none yet. An error on one rank is one on all, or the others would wait."""
        for stage in stages:
            chunk, error = stage.chunk, None
            if self._has_state(chunk):
                continue
            chunk.send(with_gradients=False)
            try:
                self._make_states(stage, chunk.arrive(), project)
            except SphereError as found:
                error = found
            chunk.agree(error)
            if project:
                chunk.send_back()
                chunk.finish()
            self.ownership.with_state.update(chunk.parameters)

    def _has_state(self, chunk: Chunk) -> bool:
        if isinstance(chunk, LocalChunk):
            return all(self.state.get(p) for p in chunk.parameters)
        return self.ownership.with_state.issuperset(chunk.parameters)

    def _make_states(self, stage: _Stage, wholes: list[WholeParameter], project: bool = False) -> None:
        group, rule, _ = stage
        new = [whole for whole in wholes if not self.state.get(whole.parameter)]
        names = dict(zip(group["params"], _names(group), strict=True)) if new else {}
        for whole in new:
            with _NameParameter(names[whole.parameter]):
                self.state[whole.parameter] = _first_state(
                    rule, _unit_views(rule, group, whole), whole.W, project
                )

    def state_dict(self) -> dict[str, Any]:
        """As in torch; the dtype of matrix signs is that of this device, if none was given.

        A run that resumes on another device then computes as it did.
        """
        made = super().state_dict()
        for saved, group in zip(made["param_groups"], self.param_groups, strict=True):
            if "msign_dtype" in saved:
                saved["msign_dtype"] = resolve_msign_dtype(saved["msign_dtype"], group["params"])
        return made

    def gathered_state_dict(self) -> dict[str, Any]:
        """`state_dict` as one process would have it: what each rank keeps, put together, on all of them.

        A copy, to be asked for on all ranks. `load_state_dict` takes it on any number; each keeps its share.
        """
        made = self.state_dict()
        for ranks in self.ownership.loads:
            shares: list[Any] = [None] * ranks.size()
            mine = {
                index: {key: value.cpu() for key, value in made["state"][index].items()}
                for index, _, parameter in self._indexed(made)
                if self._dealt(parameter)
                and self.ownership.group_of(parameter) == ranks
                and index in made["state"]
            }
            dist.all_gather_object(shares, mine, group=ranks)
            for share in shares:
                made["state"] = {**share, **made["state"]}
        for index, _, parameter in self._indexed(made):
            if index in made["state"]:
                entries = made["state"][index].items()
                made["state"][index] = {key: self._full_entry(parameter, value) for key, value in entries}
        in_order = sorted(made["state"].items())
        made["state"] = {index: {k: v.clone() for k, v in state.items()} for index, state in in_order}
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its own dtype, and a rank keeps only its share of what it is given."""
        for i, (own, saved) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=False)):
            if own["algorithm"] != saved.get("algorithm"):
                raise ValueError(
                    f"state_dict must be of an optimizer whose group {i} follows {own['algorithm']}, "
                    f"got {saved.get('algorithm')}"
                )
        super().load_state_dict(state_dict)
        self.ownership.with_state.clear()
        for group in self.param_groups:  # saved before an option was known
            for name, value in asdict(make_rule(group["algorithm"], {})).items():
                group.setdefault(name, value)
        self._refuse_a_share(state_dict)
        for index, _, parameter in self._indexed(state_dict):
            self.state.pop(parameter, None)
            if index in state_dict["state"] and self._keeps(parameter):
                values = state_dict["state"][index].items()
                self.state[parameter] = {
                    key: self._own_entry(parameter, value).to(parameter.device, copy=True)
                    for key, value in values
                }

    def _full_entry(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        if self.ownership.shards_entry(parameter, value, local_tensor(parameter)):
            return sharded_entry(value, parameter).full_tensor()
        return value

    def _own_entry(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        if self.ownership.shards_entry(parameter, value, parameter):
            ranks = self.ownership.group_of(parameter)
            assert ranks is not None
            return shard_rows(value, ranks.rank(), ranks.size())
        return value

    def _refuse_a_share(self, state_dict: Mapping[str, Any]) -> None:
        """Another rank's `state_dict` would leave this rank's matrices without momentum, and say nothing."""
        dealt = [(i, p) for i, _, p in self._indexed(state_dict) if self._dealt(p)]
        there = [i for i, _ in dealt if i in state_dict["state"]]
        missing = [i for i, p in dealt if i not in state_dict["state"] and self._keeps(p) and p.requires_grad]
        if there and missing:
            raise ValueError(
                f"state_dict must have the state of parameters {missing}, which this rank keeps, got only "
                f"those of {there}; save gathered_state_dict() to load on any rank"
            )

    def _dealt(self, parameter: nn.Parameter) -> bool:
        return parameter in self.ownership.owners

    def _keeps(self, parameter: nn.Parameter) -> bool:
        return not self._dealt(parameter) or self.ownership.is_mine(parameter)

    def _indexed(
        self, state_dict: Mapping[str, Any]
    ) -> Iterator[tuple[int, Mapping[str, Any], nn.Parameter]]:
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                yield index, group, parameter


def _refuse_a_set(params: Any) -> None:
    if isinstance(params, (set, frozenset)):
        raise TypeError(
            "params must be ordered, as a list is, got a set: its order differs between processes"
        )


def _rule(group: Mapping[str, Any]) -> Rule:
    names = option_names(RULES[group["algorithm"]])
    return make_rule(group["algorithm"], {name: group[name] for name in names})


def _unit_views(rule: Rule, group: Mapping[str, Any], whole: WholeParameter) -> tuple[UnitView, ...]:
    return unit_views(whole.W.shape, group.get("split"), rule.needs_matrices)


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
    made = [
        {**group, "params": members, "algorithm": name} for name, members in parts if members or not params
    ]
    for part in made:
        if part["algorithm"] != default:
            part["split"] = None  # of the matrices
    return made


def _names(group: Mapping[str, Any]) -> list[str]:
    return group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]


def _named(group: Mapping[str, Any]) -> Iterator[tuple[str, nn.Parameter]]:
    return zip(_names(group), group["params"], strict=True)


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
    """Names the parameter in a SphereError that its algorithm raises."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SphereError):
            raise SphereError(f"{self.name} {error}") from None
