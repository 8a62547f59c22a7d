"""Exchanges overlap with updates, in the same order on all ranks, and change no result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hyperp.optim import GroupedOptimizer, build
from hyperp.optim.distributed import sharded
from hyperp.optim.distributed.exchange import (
    Chunk,
    ReplicatedChunk,
    ShardedChunk,
    WholeParameter,
    run_pipelined,
)
from hyperp.optim.distributed.sharded import Ownership, cost, split_into_chunks
from tests.optim.distributed.test_sharded import (
    about_to_step,
    compare_with_one_process,
    make,
    matrices,
    spawn,
    weights,
)

torch.set_num_threads(1)
COLLECTIVES = ("all_to_all_single", "broadcast", "all_reduce", "all_gather_object")


@dataclass
class Traced(Chunk):
    """A chunk that records the calls of its verbs."""

    events: list[str] = field(default_factory=list)

    def send(self, with_gradients: bool = True) -> None:
        self.events.append(f"send {len(self.parameters)}")

    def arrive(self) -> list[WholeParameter]:
        self.events.append(f"arrive {len(self.parameters)}")
        return []

    def send_back(self) -> None:
        self.events.append(f"send back {len(self.parameters)}")

    def finish(self) -> None:
        self.events.append(f"finish {len(self.parameters)}")


def trace(count: int) -> list[str]:
    events: list[str] = []
    stages: list[tuple[Chunk, Callable[[list[WholeParameter]], None]]] = []
    for i in range(count):
        chunk = Traced([nn.Parameter(torch.ones(1))] * i, events)
        stages.append((chunk, lambda _, i=i: events.append(f"update {i}")))
    run_pipelined(stages, meanwhile=lambda: events.append("meanwhile"))
    return events


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_next_part_is_under_way_before_one_is_waited_for_and_the_last_goes_back_meanwhile(count):
    events = trace(count)
    assert len(events) == 5 * count + 1
    at = events.index
    for i in range(count):
        verbs = [f"{verb} {i}" for verb in ("send", "arrive", "update", "send back", "finish")]
        assert sorted(verbs, key=at) == verbs
        if i == 0:
            assert at("send 0") < at("meanwhile") < at("arrive 0")
        if i + 1 < count:
            assert at(f"send {i + 1}") < at(f"arrive {i}")
            assert at(f"update {i + 1}") < at(f"finish {i}")
        if i + 2 < count:  # at most two chunks arrive and one goes back at a time
            assert at(f"update {i}") < at(f"send {i + 2}")
            assert at(f"finish {i}") < at(f"arrive {i + 2}")


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@example([(5, 5)] * 3, 2, 38)  # the third matrix fits beside the other two, on a rank that has one
@given(st.lists(SHAPES, min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 400))
def test_chunks_hold_every_matrix_once_and_divide_no_shape_that_fits(shapes, ranks, limit):
    parameters = [nn.Parameter(torch.empty(shape)) for shape in shapes]
    made = split_into_chunks(parameters, ranks, limit)
    assert sorted(id(p) for chunk in made for p in chunk) == sorted(id(p) for p in parameters)
    for chunk in made:
        fits = sum(p.numel() for p in chunk) <= ranks * limit
        assert fits or (len({p.shape for p in chunk}) == 1 and len(chunk) <= ranks)
    for shape in set(shapes):
        holding = [[p for p in chunk if p.shape == shape] for chunk in made]
        runs = [run for run in holding if run]
        most = max(1, limit // (shape[0] * shape[1]))  # matrices for each rank
        assert len(runs) == -(-shapes.count(shape) // (ranks * most))
        assert all(len(run) % ranks == 0 for run in runs[:-1])


def test_ranks_have_as_much_to_do_in_every_chunk():
    class Three:
        def size(self) -> int:
            return 3

    # Gate, up and down as in a model. Assigned in that order, one rank would own all down projections.
    shapes = [(32, 8), (32, 8), (8, 32), (8, 8), (8, 8), (8, 8)] * 6
    parameters = [nn.Parameter(torch.empty(shape)) for shape in shapes]
    ownership = Ownership(Three())  # pyright: ignore[reportArgumentType]
    ownership.assign(parameters)
    made = split_into_chunks(parameters, ranks=3, limit=2 * 256)
    assert len(made) > 2
    for chunk in made:
        loads = [sum(cost(p.shape) for p in chunk if ownership.owners[p] == rank) for rank in range(3)]
        assert max(loads) == min(loads)


class Log:
    """Records collectives, waits for them and the updates in between, as letters."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def watch(self, name: str) -> None:
        """Record the first letter of a collective when it starts, and w when it is waited for."""
        real = getattr(dist, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.events.append({"all_reduce": "r", "all_gather_object": "o"}.get(name, name[0]))
            work = real(*args, **kwargs)
            return Noted(work, self.events) if kwargs.get("async_op") else work

        setattr(dist, name, noted)

    def watch_updates(self) -> None:
        """Record the update of a stage: u if its chunk belongs to several ranks, l if it is local."""
        real = GroupedOptimizer._update

        def noted(optimizer: Any, stage: Any, wholes: list[WholeParameter]) -> None:
            self.events.append("u" if isinstance(stage.chunk, ShardedChunk | ReplicatedChunk) else "l")
            real(optimizer, stage, wholes)

        setattr(GroupedOptimizer, "_update", noted)  # noqa: B010


@dataclass
class Noted:
    work: Any
    events: list[str]

    def wait(self) -> None:
        self.events.append("w")
        self.work.wait()


def events_of_a_step(rank: int, ranks: int, how: str, algorithm: str, limit: int) -> str:
    sharded.LARGEST_CHUNK["cpu"] = limit
    _, optimizer, _ = about_to_step(rank, ranks, how, algorithm)
    real, real_update = {name: getattr(dist, name) for name in COLLECTIVES}, GroupedOptimizer._update
    log = Log()
    for name in COLLECTIVES:
        log.watch(name)
    log.watch_updates()
    try:
        optimizer.step()
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
        GroupedOptimizer._update = real_update
    return "".join(log.events)


def same_events_on_all_ranks(rank: int, ranks: int, how: str, algorithm: str) -> None:
    for limit in (1, 10**9):
        all_events: list[Any] = [None] * ranks
        dist.all_gather_object(all_events, events_of_a_step(rank, ranks, how, algorithm, limit))
        assert set(all_events) == {all_events[0]}
        _, optimizer = make(algorithm, how, ranks)
        stages = optimizer._make_stages(lambda p: p.requires_grad)
        count = sum(isinstance(stage.chunk, ShardedChunk | ReplicatedChunk) for stage in stages)
        groups = sum(any(p.requires_grad for p in matrices(group)) for group in optimizer.param_groups)
        assert groups > 2
        assert count == groups if limit == 10**9 else count > groups
        alone = "l" * (len(stages) - count)
        if how == "fsdp":
            first, following = f"raaw{alone}aawwua", "aawwuaw" * (count - 2)
            assert all_events[0] == first + following + "wwuaww"


def tiny_chunks(rank: int, ranks: int, how: str, algorithm: str) -> None:
    sharded.LARGEST_CHUNK["cpu"] = 1
    compare_with_one_process(rank, ranks, how, algorithm)


def late_error(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """A zero matrix in the last chunk of the last group is an error before the first chunk is updated."""
    sharded.LARGEST_CHUNK["cpu"] = 1
    torch.manual_seed(0)
    sizes = [6, 6, 6, 4, 4, 4]
    layers = [nn.Linear(size, size, bias=False) for size in sizes]
    nn.init.zeros_(layers[-1].weight)
    model = nn.Sequential(*layers)
    if how == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    group = dist.group.WORLD if how == "ddp" else None
    optimizer = build(model, algorithm, lr=0.1, process_group=group, unembedding=[layers[3]])
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = weights(model)
    with pytest.raises(ValueError, match=r"5\.weight must be finite and not zero"):
        optimizer.step()
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    with torch.no_grad():
        layers[-1].weight.add_(0.5)
    optimizer.step()
    assert not any(torch.equal(value, before[name]) for name, value in weights(model).items())


def cleared(rank: int, ranks: int, how: str, algorithm: str) -> None:
    """State that the user has cleared is made again."""
    _, optimizer, _ = about_to_step(rank, ranks, how, algorithm)
    optimizer.state.clear()
    optimizer.step()
    fresh = [s["momentum"] for s in optimizer.state.values() if "momentum" in s]
    assert fresh
    assert all(isinstance(momentum, Tensor) for momentum in fresh)


def test_all_ranks_start_the_same_collectives_in_the_same_order_and_overlap_them():
    spawn(same_events_on_all_ranks, 4, [("fsdp", "muonh"), ("ddp", "muonh"), ("fsdp", "sso")])


def test_the_size_of_chunks_changes_no_result():
    spawn(tiny_chunks, 4, [("fsdp", "sso"), ("fsdp", "muonh"), ("ddp", "muonh")])


def test_an_error_in_the_last_chunk_comes_before_anything_is_updated():
    spawn(late_error, 2, [("fsdp", "muonh"), ("ddp", "sso")])


def test_state_that_was_cleared_is_made_anew():
    spawn(cleared, 2, [("fsdp", "muonh"), ("ddp", "sso")])
