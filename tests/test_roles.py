"""Roles follow from what a module is and declares, never from its name."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from hyperp.roles import Role, roles_of

torch.set_num_threads(1)


class Router(nn.Module):
    param_roles: ClassVar[dict[str, Role]] = {"weight": "router"}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.bias = nn.Parameter(torch.randn(4))


class Experts(nn.Module):
    param_roles: ClassVar[dict[str, Role]] = {"up": "expert", "down": "expert"}

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 16, 8))
        self.down = nn.Parameter(torch.randn(4, 8, 16))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Embedding(32, 8)  # the name lies
        self.embedding = nn.Linear(8, 8)
        self.router = Router()
        self.experts = Experts()
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.output = nn.Linear(8, 32, bias=False)


def test_roles_come_from_declarations_and_types_not_names():
    assert roles_of(Model()) == {
        "scale": "vector",
        "lm_head.weight": "embedding",
        "embedding.weight": "hidden",
        "embedding.bias": "vector",
        "router.weight": "router",
        "router.bias": "vector",
        "experts.up": "expert",
        "experts.down": "expert",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "output.weight": "hidden",
    }


def test_a_foreign_output_is_marked_by_its_module():
    model = Model()
    roles = roles_of(model, unembedding=[model.output])
    assert roles["output.weight"] == "unembedding"
    assert roles["embedding.weight"] == "hidden"


def test_a_module_marked_as_unembedding_must_belong_to_the_model():
    with pytest.raises(ValueError, match="unembedding must list modules of the model, 1 of 1 are not in it"):
        roles_of(Model(), unembedding=[nn.Linear(8, 32)])


@pytest.mark.parametrize("marked", [False, True])
def test_a_tied_weight_is_an_embedding(marked: bool):
    model = Model()
    model.output.weight = model.lm_head.weight
    roles = roles_of(model, unembedding=[model.output] if marked else [])
    assert roles["lm_head.weight"] == "embedding"
    assert "output.weight" not in roles


def test_a_weight_shared_by_an_embedding_that_comes_later_is_an_embedding():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 32, bias=False)
            self.second = nn.Embedding(32, 8)
            self.second.weight = self.first.weight

    assert roles_of(Backwards()) == {"first.weight": "embedding"}


def test_a_shared_weight_with_contradicting_roles_is_refused():
    model = Model()
    model.output.weight = model.embedding.weight
    with pytest.raises(
        ValueError, match=r"output\.weight is shared by modules that call it hidden and unembedding"
    ):
        roles_of(model, unembedding=[model.output])


def test_an_unknown_module_with_a_matrix_is_named_with_the_way_out():
    model = nn.Sequential(nn.Conv1d(4, 4, 3))
    with pytest.raises(
        ValueError, match=r'0\.weight .* Conv1d.*declare it: Conv1d\.param_roles = \{"weight"'
    ):
        roles_of(model)
    model[0].param_roles = {"weight": "hidden"}  # pyright: ignore[reportArgumentType]
    assert roles_of(model)["0.weight"] == "hidden"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"weight": "head"}, r"param_roles\['weight'\] must be one of embedding, hidden, .*, got 'head'"),
        ({"wieght": "hidden"}, "names 'wieght', but must name one of its own: weight, bias"),
        (["weight"], "must map parameter names to roles"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: object, message: str):
    model = nn.Linear(2, 2)
    model.param_roles = declared  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with pytest.raises(ValueError, match=message):
        roles_of(model)


def test_an_optional_parameter_may_be_declared():
    model = nn.Linear(2, 2, bias=False)
    model.param_roles = {"weight": "router", "bias": "vector"}  # pyright: ignore[reportArgumentType]
    assert roles_of(model) == {"weight": "router"}
