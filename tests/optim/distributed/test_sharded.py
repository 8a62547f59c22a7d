"""Several processes: every rank ends with the weights of a single process, and no work is done twice.

Real torch.distributed groups of 2 and 4 processes over gloo; DDP's parameters and FSDP2's, uneven shards too.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hyperp.distributed.ranks import current_ranks
from hyperp.optim import GroupedOptimizer, build
from hyperp.optim.distributed.sharded import Ownership, cost
from hyperp.optim.split import qkv_split
from tests.ranks import run_on_ranks

torch.set_num_threads(1)
STEPS, BATCH = 4, 8


class Experts(nn.Module):
    """Three experts, which two or four ranks share unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.param_roles = {"weight": "expert"}
        self.weight = nn.Parameter(torch.randn(3, 6, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bd,efd->bf", x, self.weight)


class Model(nn.Module):
    """Uneven numbers of rows, which no number of ranks divides; of four ranks, some hold no row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 7, bias=False)
        self.third = nn.Linear(7, 7, bias=False)
        self.fourth = nn.Linear(7, 7, bias=False)
        self.qkv = nn.Linear(7, 16, bias=False)
        self.qkv.param_splits = {"weight": qkv_split(4, 2, 2, by="component")}  # pyright: ignore[reportArgumentType]
        self.narrow = nn.Linear(16, 10, bias=False)
        self.experts = Experts()
        self.frozen = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        x = self.narrow(torch.tanh(self.qkv(self.fourth(self.third(x)))))
        return self.out(self.frozen(torch.tanh(self.experts(x))))


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x, y = (torch.randn(BATCH, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    return x, y


def train(model: nn.Module, optimizer: GroupedOptimizer, steps: range, rank: int = 0, ranks: int = 1) -> None:
    for step in steps:
        x, y = data(step)
        share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
        nn.functional.mse_loss(model(x[share]), y[share]).backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.clone()


def make(algorithm: str, how: str, ranks: int) -> tuple[nn.Module, GroupedOptimizer]:
    model = Model().double()  # so that the order of summation does not show
    if how in ("fsdp", "hsdp"):
        shape, names = ((ranks,), ("shard",)) if how == "fsdp" else ((2, ranks // 2), ("replicate", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for module in (model.first, model.second, model.experts):
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    group = dist.group.WORLD if how == "ddp" else None
    optimizer = build(model, algorithm, lr=0.05, process_group=group, unembedding=[model.out])
    optimizer.project_()
    return (DistributedDataParallel(model) if how == "ddp" else model), optimizer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(p) for name, p in model.named_parameters()}


def state_of(optimizer: GroupedOptimizer) -> dict[str, Tensor]:
    gathered = optimizer.gathered_state_dict()
    names = {}
    for group in gathered["param_groups"]:
        names |= dict(zip(group["params"], group["param_names"], strict=True))
    return {f"{names[i]}.{k}": v.clone() for i, s in gathered["state"].items() for k, v in s.items()}


def compare_with_one_process(rank: int, ranks: int, how: str, algorithm: str) -> None:
    model, optimizer = make(algorithm, how, ranks)
    train(model, optimizer, range(STEPS), rank, ranks)
    alone, own = make(algorithm, "alone", 1)
    train(alone, own, range(STEPS))
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-8, atol=1e-9)
    # A block of singular vectors is unique only as a space and up to sign, and is not compared.
    ours, theirs = state_of(optimizer), state_of(own)
    assert set(ours) == set(theirs)
    ours, theirs = ({k: v for k, v in s.items() if "basis" not in k} for s in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    if how == "hsdp":
        return  # each replica keeps all of the state
    kept = sum(len(optimizer.state[p]) > 0 for g in optimizer.param_groups for p in matrices(g))
    total = torch.tensor(kept)
    dist.all_reduce(total)
    assert int(total) == sum(len(own.state[p]) > 0 for g in own.param_groups for p in matrices(g))


def matrices(group: dict[str, Any]) -> list[nn.Parameter]:
    return [p for p in group["params"] if group["algorithm"] != "adamw"]


def resume(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """New objects that load the gathered state on the same ranks continue to the same bits."""
    model, optimizer = make(algorithm, how, ranks)
    train(model, optimizer, range(2), rank, ranks)
    saved = optimizer.gathered_state_dict()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, range(2, STEPS), rank, ranks)
    again, other = make(algorithm, how, ranks)
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.copy_(kept[name])
    other.load_state_dict(saved)
    train(again, other, range(2, STEPS), rank, ranks)
    torch.testing.assert_close(weights(again), weights(model), rtol=0, atol=0)


def resume_on_other_ranks(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """The gathered state of several ranks continues in one process."""
    model, optimizer = make(algorithm, how, ranks)
    train(model, optimizer, range(2), rank, ranks)
    saved, kept = optimizer.gathered_state_dict(), weights(model)
    train(model, optimizer, range(2, STEPS), rank, ranks)
    alone, own = make(algorithm, "alone", 1)
    alone.load_state_dict(kept)
    own.load_state_dict(saved)
    train(alone, own, range(2, STEPS))
    torch.testing.assert_close(weights(model), weights(alone), rtol=1e-8, atol=1e-9)


def about_to_step(
    rank: int, ranks: int, how: str, algorithm: str
) -> tuple[nn.Module, GroupedOptimizer, dict[str, Tensor]]:
    """A model after one step, with the gradients for the next; its optimizer and its weights."""
    model, optimizer = make(algorithm, how, ranks)
    train(model, optimizer, range(1), rank, ranks)
    x, y = data(1)
    nn.functional.mse_loss(model(x), y).backward()
    return model, optimizer, weights(model)


def unmoved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in weights(model).items() if torch.equal(value, before[name])}


def damaged(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """A bad entry in one rank's shard stops that matrix on all ranks, and no other."""
    model, optimizer, before = about_to_step(rank, ranks, how, algorithm)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        if name in ("third.weight", "first.weight", "out.bias") and rank == 0:
            assert isinstance(parameter.grad, DTensor)
            parameter.grad.to_local().view(-1)[0] = torch.nan
    optimizer.step()
    assert unmoved(model, before) == {"third.weight", "first.weight", "out.bias", "frozen.weight"}
    skipped = torch.tensor(optimizer.skipped)
    dist.all_reduce(skipped)
    assert int(skipped) == 2 + ranks  # every rank counts its part of the bias, which follows AdamW


def missing_on_one_rank(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """A gradient missing on one rank: no rank hangs, all do the same, and a sharded tensor stays as it is."""
    model, optimizer, before = about_to_step(rank, ranks, how, algorithm)
    for name, parameter in model.named_parameters():
        if name.endswith("third.weight") or (name == "out.bias" and how == "fsdp"):
            if rank == 0:
                continue
            parameter.grad = None
    optimizer.step()
    if how == "fsdp":
        assert unmoved(model, before) == {"third.weight", "out.bias", "frozen.weight"}
    all_after: list[Any] = [None] * ranks
    dist.all_gather_object(all_after, weights(model))
    torch.testing.assert_close(all_after[0], all_after[1], rtol=0, atol=0)


def zero_matrix(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """A matrix that one rank cannot put on a sphere is an error on all ranks, with its name."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(3)]
    model = nn.Sequential(*layers)
    nn.init.zeros_(layers[1].weight)
    if how == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    optimizer = build(model, algorithm, lr=0.1, process_group=dist.group.WORLD if how == "ddp" else None)
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    for do in (optimizer.step, optimizer.project_):
        with pytest.raises(ValueError, match=r"1\.weight must be finite and not zero"):
            do()


def not_averaged(rank: int, ranks: int, how: str, algorithm: str) -> None:
    model, optimizer = make(algorithm, "ddp", ranks)
    x, y = data(rank)
    nn.functional.mse_loss(model.module(x), y).backward()  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="gradients must be equal on all ranks of process_group"):
        optimizer.step()


def another_ranks_share(rank: int, ranks: int, how: str, algorithm: str) -> None:
    model, optimizer = make(algorithm, how, ranks)
    train(model, optimizer, range(1), rank, ranks)
    states: list[Any] = [None] * ranks
    dist.all_gather_object(states, optimizer.state_dict())
    optimizer.load_state_dict(states[rank])
    with pytest.raises(ValueError, match=r"save gathered_state_dict\(\) to load on any rank"):
        optimizer.load_state_dict(states[1 - rank])


def two_meshes(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """Tensors on all ranks and on half of them, in one group: each is skipped on the ranks that hold it."""
    every, pairs = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    one = nn.Parameter(distribute_tensor(torch.ones(8, 3), every, [Shard(0)]))
    two = nn.Parameter(distribute_tensor(torch.ones(4, 3), pairs["b"], [Shard(0)]))
    optimizer = GroupedOptimizer([("one", one), ("two", two)], lr=0.1, algorithm="adamw")
    bad = torch.zeros(()) if rank != 3 else torch.full((), torch.nan)
    for p, spoilt in ((one, rank == 3), (two, False)):
        local_grad = torch.ones_like(p.to_local()) + (bad if spoilt else 0)  # pyright: ignore[reportAttributeAccessIssue]
        p.grad = DTensor.from_local(local_grad, p.device_mesh, p.placements)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    assert torch.equal(whole(one), torch.ones(8, 3))
    assert not torch.equal(whole(two), torch.ones(4, 3))


def refuse_columns(rank: int, ranks: int, how: str, algorithm: str) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    columns = nn.Parameter(distribute_tensor(torch.randn(4, 4), mesh, [Shard(1)]))
    with pytest.raises(ValueError, match="w must be sharded on its first dimension"):
        GroupedOptimizer([("w", columns)], algorithm="sso")


def entry(task: Any, arguments: list[tuple[str, str]]) -> None:
    ranks = current_ranks()
    for how, algorithm in arguments:
        task(ranks.rank, ranks.size, how, algorithm)


def spawn(task: Any, ranks: int, arguments: list[tuple[str, str]]) -> None:
    run_on_ranks(ranks, entry, task, arguments)


EVERY = [
    (how, name)
    for how in ("ddp", "fsdp")
    for name in ("sso", "muonsphere", "muonh", "adamh", "muon", "adamw")
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_do_what_one_process_does(ranks):
    spawn(compare_with_one_process, ranks, EVERY)


def test_replicas_of_shards_do_what_one_process_does():
    spawn(compare_with_one_process, 4, [("hsdp", "sso"), ("hsdp", "muonh"), ("hsdp", "adamw")])


def test_a_gathered_state_resumes_to_the_same_bits():
    spawn(resume, 2, [("ddp", "muonh"), ("fsdp", "sso"), ("fsdp", "adamw")])


def test_a_gathered_state_goes_on_with_another_number_of_ranks():
    spawn(resume_on_other_ranks, 4, [("ddp", "sso"), ("fsdp", "muonh"), ("fsdp", "adamw")])


def test_a_bad_entry_on_one_rank_stops_its_matrix_on_all():
    spawn(damaged, 2, [("fsdp", "sso"), ("fsdp", "muonh")])


def test_a_gradient_that_one_rank_lacks_stops_nobody():
    spawn(missing_on_one_rank, 2, [("ddp", "muonh"), ("fsdp", "sso")])


def test_an_error_of_one_rank_is_one_of_all():
    spawn(zero_matrix, 2, [("ddp", "sso"), ("fsdp", "muonh")])
    spawn(not_averaged, 2, [("ddp", "muonh")])
    spawn(another_ranks_share, 2, [("ddp", "muonh"), ("fsdp", "sso")])


def test_several_meshes_in_one_group():
    spawn(two_meshes, 4, [("fsdp", "adamw")])


def test_other_layouts_are_refused():
    spawn(refuse_columns, 2, [("fsdp", "sso")])


def test_work_is_dealt_evenly_by_cost():
    class Four:
        def size(self) -> int:
            return 4

    ownership = Ownership(Four())  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(8, 64, (64, 2), generator=generator).tolist()
    parameters = [nn.Parameter(torch.zeros(rows, columns)) for rows, columns in sizes]
    ownership.assign(parameters[:40])
    first = dict(ownership.owners)
    ownership.assign(parameters)
    assert {p: ownership.owners[p] for p in first} == first
    loads = [sum(cost(p.shape) for p in parameters if ownership.owners[p] == rank) for rank in range(4)]
    assert max(loads) < 1.1 * min(loads)
