"""Fused parameters: each matrix in them is trained as if it were a parameter of its own."""

import pytest
import torch
from torch import Tensor, nn

from hyperp.optim import SSO, GroupedOptimizer, MuonH
from hyperp.optim.split import SplitBy, gate_up_split, qkv_split, split_rows

torch.set_num_threads(1)
WIDTH, HEADS, KV, SIZE = 8, 4, 2, 4
ROWS = (HEADS + 2 * KV) * SIZE


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take(tensor: Tensor, matrix) -> Tensor:
    return torch.cat([tensor[..., a:b, :] for a, b in matrix], dim=-2)


def train(optimizer: GroupedOptimizer, parameters: list[nn.Parameter], gradients) -> None:
    optimizer.project_()
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


SPLITS = [
    qkv_split(HEADS, KV, SIZE, by=by, interleaved=interleaved)
    for by in ("component", "group", "head")
    for interleaved in (False, True)
]


@pytest.mark.parametrize("algorithm", ["sso", "muonsphere", "muonh", "adamh", "muon"])
@pytest.mark.parametrize("split", [*SPLITS, split_rows([5, ROWS - 5])])
@pytest.mark.parametrize("experts", [(), (3,)])
def test_a_split_parameter_trains_as_its_matrices_would_alone(algorithm, split, experts):
    fused = nn.Parameter(gaussian(*experts, ROWS, WIDTH))
    alone = [nn.Parameter(take(fused.data, matrix)) for matrix in split]
    gradients = [gaussian(*experts, ROWS, WIDTH, seed=1 + step) for step in range(3)]
    one = GroupedOptimizer([{"params": [fused], "split": split}], lr=0.1, algorithm=algorithm)
    many = GroupedOptimizer(alone, lr=0.1, algorithm=algorithm)
    train(one, [fused], [[g] for g in gradients])
    train(many, alone, [[take(g, matrix) for matrix in split] for g in gradients])
    for matrix, parameter in zip(split, alone, strict=True):
        torch.testing.assert_close(take(fused.data, matrix), parameter.data, rtol=1e-5, atol=1e-6)


def test_a_damaged_gradient_stops_its_matrix_alone_and_state_resumes_to_the_same_bits():
    split = qkv_split(HEADS, KV, SIZE, by="component")
    fused = nn.Parameter(gaussian(ROWS, WIDTH))
    optimizer = SSO([{"params": [fused], "split": split}], lr=0.1)
    optimizer.project_()
    before = fused.detach().clone()
    fused.grad = gaussian(ROWS, WIDTH, seed=1)
    fused.grad[HEADS * SIZE + 1, 0] = torch.nan  # in a key's row
    optimizer.step()
    moved = [not torch.equal(take(before, m), take(fused.data, m)) for m in split]
    assert moved == [True, False, True]
    assert optimizer.skipped == 1

    twin = nn.Parameter(fused.detach().clone())
    other = SSO([{"params": [twin], "split": split}], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for parameter, own in ((fused, optimizer), (twin, other)):
        parameter.grad = gaussian(ROWS, WIDTH, seed=2)
        own.step()
    assert torch.equal(fused, twin)


def test_modules_declare_their_splits():
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up = nn.Linear(WIDTH, 32, bias=False)
            self.down = nn.Linear(16, WIDTH, bias=False)
            self.gate_up.param_splits = {"weight": gate_up_split(16)}  # pyright: ignore[reportArgumentType]

    model = Fused()
    groups = MuonH(model).param_groups
    found = {tuple(g["param_names"]): g["split"] for g in groups}
    assert found == {("gate_up.weight",): (((0, 16),), ((16, 32),)), ("down.weight",): None}


@pytest.mark.parametrize("interleaved", [False, True])
def test_components_are_all_queries_all_keys_all_values(interleaved):
    names = []  # name of each row of the fused parameter
    groups = [[("q", g), ("q", g), ("k", g), ("v", g)] for g in range(KV)]
    heads = [h for g in groups for h in g]
    if not interleaved:
        heads.sort(key=lambda head: "qkv".index(head[0]))
    for name, g in heads:
        names += [f"{name}{g}"] * SIZE
    expectations: dict[SplitBy, list[set[str]]] = {
        "component": [{"q0", "q1"}, {"k0", "k1"}, {"v0", "v1"}],
        "group": [{"q0", "k0", "v0"}, {"q1", "k1", "v1"}],
    }
    for by, expected in expectations.items():
        split = qkv_split(HEADS, KV, SIZE, by=by, interleaved=interleaved)
        assert [{names[row] for a, b in m for row in range(a, b)} for m in split] == expected
        assert sorted(row for m in split for a, b in m for row in range(a, b)) == list(range(ROWS))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([[[0, 8]], [[8, 23]]], "split of w must .* 24 rows"),
        ([[[0, 8]], [[7, 24]]], "split of w must .* 24 rows"),
        ([[[0, 24]], []], "split of w must .* 24 rows"),
        ("qkv", "split of w must list ranges"),
        (3, "split of w must list ranges"),
    ],
)
def test_a_split_that_does_not_fit_is_named(split, message):
    with pytest.raises(ValueError, match=message):
        SSO([{"params": [("w", nn.Parameter(gaussian(24, 4)))], "split": split}])
    with pytest.raises(ValueError, match=r"kv_heads must .* query_heads=4, got 3"):
        qkv_split(4, 3, 8)
