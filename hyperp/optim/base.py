"""One torch optimizer over groups that each follow an algorithm of their own.

Units of equal shape and dtype in a group are stacked and updated in one batch, so that a small model costs a
few batched products and not a loop over layers (see `units`). Rules (see `rule`) are pure functions of
stacked tensors; this file alone touches parameters and state, which may lie on several ranks (`sharded`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hyperp.optim import checks
from hyperp.optim.rule import RULES, Rule, SphereError, make_rule, option_names
from hyperp.optim.sharded import Dealer, Local, Whole, agree, check_layout, rows_of
from hyperp.optim.split import check_split
from hyperp.optim.units import Piece, joined, pieces

# What a group may hold beside its algorithm's options.
_GROUP_KEYS = {
    "params", "param_names", "role", "algorithm", "lr", "initial_lr", "name", "maximize", "split",
}  # fmt: skip


# Entries of the parameters that are updated at once: enough that the cost of calls is small beside the work,
# and the copies that a batch is made of small beside the model.
LARGEST_BATCH = {"cpu": 2**20, "other": 2**26}


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
        checks.at_least("lr", float(lr), 0)
        for name, values in (options or {}).items():
            checks.one_of("algorithm", name, RULES)
            if not isinstance(values, Mapping):
                raise ValueError(f"options.{name} must be a mapping of options, got {values!r}")
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self.default_algorithm = algorithm
        if algorithm is not None:
            checks.one_of("algorithm", algorithm, RULES)
        self.dealer = Dealer(process_group)
        super().__init__(params, {"lr": lr, "maximize": maximize, "split": None})

    def __getstate__(self) -> dict[str, Any]:
        own = ("options", "default_algorithm", "dealer")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @property
    def skipped(self) -> int:
        """Steps of single units skipped on this rank because a gradient was not finite; reads the device."""
        counts = (v for state in self.state.values() for k, v in state.items() if k.startswith("skipped"))
        return sum(int(count.sum()) for count in counts)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any torch optimizer does; its options are checked and completed by defaults."""
        for group in _by_algorithm(param_group, self.default_algorithm):
            self._add(group)

    def _add(self, group: dict[str, Any]) -> None:
        checks.one_of("algorithm", group.get("algorithm"), RULES)
        common = {key: self.defaults[key] for key in ("lr", "maximize", "split")}
        group = {**self.options.get(group["algorithm"], {}), **common, **group}
        checks.at_least("lr", float(group["lr"]), 0)
        values = {key: value for key, value in group.items() if key not in _GROUP_KEYS}
        rule = make_rule(group["algorithm"], values)
        group.update(asdict(rule), params=self._like_the_others(group["params"]))
        super().add_param_group(group)
        added = self.param_groups[-1]
        try:
            for name, parameter in _named(added):
                _check_parameter(rule, name, parameter)
                if added["split"] is not None:
                    added["split"] = check_split(added["split"], parameter.shape[-2], name)
        except ValueError:
            self.param_groups.pop()
            raise
        if rule.matrices:
            self.dealer.deal(added["params"])

    def _like_the_others(self, params: Any) -> list[Any]:
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
        for group in self.param_groups:
            rule, names = _rule(group), dict(zip(group["params"], _names(group), strict=True))
            members = [p for p in group["params"] if p.requires_grad and p.numel()]
            for part in self._parts(rule, members):
                wholes = part.collect(with_gradients=False)
                for whole in wholes:
                    if not self.state.get(whole.parameter):
                        for piece in _pieces(rule, group, whole):
                            with _naming(names[whole.parameter]):
                                _copy([piece], [whole.W], rule.project(joined([piece.read(whole.W)])))
                        self._ensure_state(rule, group, whole, names[whole.parameter])
                part.spread(wholes)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rule = _rule(group)
            members = [p for p in group["params"] if p.grad is not None and p.numel()]
            for part in self._parts(rule, members):
                wholes = part.collect()
                if not rule.matrices:
                    _spoil_together(wholes)
                self._update(rule, group, wholes)
                part.spread(wholes)
        return loss

    def _parts(self, rule: Rule, members: list[nn.Parameter]) -> Sequence[Any]:
        return self.dealer.parts(members) if rule.matrices else [Local(members)]

    def _update(self, rule: Rule, group: Mapping[str, Any], wholes: list[Whole]) -> None:
        """One step of every parameter of a group that this rank updates, batch by batch."""
        names = dict(zip(group["params"], _names(group), strict=True))
        batches: dict[Any, list[tuple[Whole, Piece]]] = {}
        for whole in wholes:
            assert whole.G is not None
            self._ensure_state(rule, group, whole, names[whole.parameter])
            for piece in _pieces(rule, group, whole):
                if not piece.count:  # this rank holds none of the experts
                    continue
                key = (piece.shape, whole.W.dtype, whole.W.device, whole.G.dtype)
                batches.setdefault(key, []).append((whole, piece))
        for batch in batches.values():
            whole, piece = batch[0]
            entries = LARGEST_BATCH["cpu" if whole.W.device.type == "cpu" else "other"]
            size = max(1, entries // (piece.count * math.prod(piece.shape)))
            for start in range(0, len(batch), size):
                self._update_batch(rule, group, batch[start : start + size])

    def _ensure_state(self, rule: Rule, group: Mapping[str, Any], whole: Whole, name: str) -> None:
        if self.state.get(whole.parameter):
            return
        state: dict[str, Tensor] = {}
        for piece in _pieces(rule, group, whole):
            W = joined([piece.read(whole.W)])
            with _naming(name):
                made = rule.init(W)
            made["skipped"] = torch.zeros(len(W), dtype=torch.int64, device=W.device)
            state |= {piece.key(key): piece.unstate(value).clone() for key, value in made.items()}
        self.state[whole.parameter] = state

    def _update_batch(self, rule: Rule, group: Mapping[str, Any], batch: list[tuple[Whole, Piece]]) -> None:
        parts = [piece for _, piece in batch]
        W = joined([piece.read(whole.W) for whole, piece in batch])
        G = joined([piece.read(whole.G) for whole, piece in batch if whole.G is not None])
        G = -G if group.get("maximize") else G
        states = [(self.state[whole.parameter], piece) for whole, piece in batch]
        names = [name for name in _state_names(*states[0]) if name != "skipped"]
        old = {key: joined([piece.state(s[piece.key(key)]) for s, piece in states]) for key in names}
        # Of the norm, as in clipping: the square of a huge entry would stay in AdamW's second moment.
        ok_B = torch.linalg.vector_norm(G.reshape(len(G), G[0].numel()), dim=1).isfinite()
        lr = group["lr"].to(W.device) if isinstance(group["lr"], Tensor) else float(group["lr"])
        # A CPU looks at the flags for less than the masks cost; on a GPU that would make the host wait.
        if ok_B.device.type == "cpu" and not torch.compiler.is_compiling() and bool(ok_B.all()):
            new_W, new = rule.update(W, G, old, lr)
        else:
            new_W, new = rule.update(W, torch.where(_like(ok_B, G), G, 0), old, lr)
            new_W = torch.where(_like(ok_B, W), new_W, W)
            new = {key: torch.where(_like(ok_B, value), value, old[key]) for key, value in new.items()}
            new["skipped"] = joined([p.state(s[p.key("skipped")]) for s, p in states]) + ~ok_B
        _copy(parts, [whole.W for whole, _ in batch], new_W)
        for key, value in new.items():
            entries = zip(states, value.split([piece.count for piece in parts]), strict=True)
            into = [(s[p.key(key)], p.unstate(part)) for (s, p), part in entries]
            torch._foreach_copy_([a for a, _ in into], [b for _, b in into])  # pyright: ignore[reportPrivateImportUsage]

    def gathered_state_dict(self) -> dict[str, Any]:
        """`state_dict` as one process would have it: what each rank keeps, put together, on all of them.

        A copy, to be asked for on all ranks. `load_state_dict` takes it on any number; each keeps its share.
        """
        made = self.state_dict()
        for group in self.dealer.loads:
            shares: list[Any] = [None] * group.size()
            dist.all_gather_object(shares, made["state"], group=group)
            for share in shares:
                for index, state in share.items():
                    made["state"].setdefault(index, state)
        for index, _, parameter in self._indexed(made):
            if isinstance(parameter, DTensor) and index in made["state"] and not self._dealt(parameter):
                state = made["state"][index].items()
                made["state"][index] = {key: _full(value, parameter) for key, value in state}
        in_order = sorted(made["state"].items())
        made["state"] = {index: {k: v.clone() for k, v in state.items()} for index, state in in_order}
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its own dtype, and a rank keeps only its share of what it is given."""
        super().load_state_dict(state_dict)
        for index, _, parameter in self._indexed(state_dict):
            self.state.pop(parameter, None)
            if index in state_dict["state"] and self._keeps(parameter):
                values = state_dict["state"][index].items()
                whole = self._dealt(parameter)
                self.state[parameter] = {
                    key: (v if whole else _shard(v, parameter)).to(parameter.device, copy=True)
                    for key, v in values
                }

    def _dealt(self, parameter: nn.Parameter) -> bool:
        return parameter in self.dealer.owners

    def _keeps(self, parameter: nn.Parameter) -> bool:
        return not self._dealt(parameter) or self.dealer.mine(parameter)

    def _indexed(
        self, state_dict: Mapping[str, Any]
    ) -> Iterator[tuple[int, Mapping[str, Any], nn.Parameter]]:
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                yield index, group, parameter


def _rule(group: Mapping[str, Any]) -> Rule:
    names = option_names(RULES[group["algorithm"]])
    return make_rule(group["algorithm"], {name: group[name] for name in names})


def _pieces(rule: Rule, group: Mapping[str, Any], whole: Whole) -> tuple[Piece, ...]:
    return pieces(whole.W.shape, group.get("split"), rule.matrices)


def _state_names(state: Mapping[str, Tensor], piece: Piece) -> list[str]:
    """The entries of a piece, without the suffix that tells them from those of the other pieces."""
    names = [key.partition(".") for key in state]
    return [name for name, _, index in names if index == (str(piece.index) if piece.index else "")]


def _copy(parts: Sequence[Piece], tensors: Sequence[Tensor], stacked: Tensor) -> None:
    units = stacked.split([piece.count for piece in parts])
    pairs = [piece.targets(tensor, unit) for piece, tensor, unit in zip(parts, tensors, units, strict=True)]
    into, sources = (list(chain.from_iterable(side)) for side in zip(*pairs, strict=True))
    torch._foreach_copy_(into, sources)  # pyright: ignore[reportPrivateImportUsage]


def _spoil_together(wholes: list[Whole]) -> None:
    """A shard on another rank that is not finite makes this rank's not finite, so that all skip alike."""
    sharded = [w for w in wholes if isinstance(w.parameter, DTensor) and w.parameter.ndim != 3]
    if sharded:
        ok = torch.stack([w.G.isfinite().all() for w in sharded if w.G is not None])
        agreed = agree(ok, [w.parameter for w in sharded])
        for whole, flag in zip(sharded, agreed, strict=True):
            assert whole.G is not None
            whole.G = torch.where(flag, whole.G, torch.nan)


def _full(value: Tensor, parameter: DTensor) -> Tensor:
    """An entry of the state that is sharded like its parameter, made whole."""
    if not _lies_like(value, parameter, parameter.to_local().shape):
        return value
    shape = torch.Size((parameter.shape[0], *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, placements, shape=shape, stride=stride).full_tensor()


def _shard(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's shard of an entry of the state that lies like a sharded parameter."""
    if not isinstance(parameter, DTensor) or not _lies_like(value, parameter, parameter.shape):
        return value
    group = Dealer().group_of(parameter)
    assert group is not None
    return rows_of(value, group.rank(), group.size())


def _lies_like(value: Tensor, parameter: Tensor, shape: torch.Size) -> bool:
    """Whether the entry has an element for each of the parameter's, or one for each of its experts."""
    experts = parameter.ndim == 3 and value.shape[:1] == shape[:1]
    return experts or value.shape == shape


def _by_algorithm(group: dict[str, Any], default: str | None) -> list[dict[str, Any]]:
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


def _check_parameter(rule: Rule, name: str, parameter: nn.Parameter) -> None:
    if rule.matrices and parameter.ndim not in (2, 3):
        raise ValueError(
            f"{name} must be a matrix (d_out, d_in) or a stack of them (experts, d_out, d_in) to follow "
            f"{rule.name}, got shape {tuple(parameter.shape)}"
        )
    check_layout(name, parameter)
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


def _like(mask_B: Tensor, tensor: Tensor) -> Tensor:
    return mask_B.view(-1, *[1] * (tensor.ndim - 1))
