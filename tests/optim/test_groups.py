"""Parameter groups: one for each role, with the algorithm that the table gives it."""

import math
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from hyperp.config import compose, resolve
from hyperp.optim import SSO, TABLE, AdamW, GroupedOptimizer, MuonH, build, param_groups
from hyperp.optim.rule import make_rule
from hyperp.roles import ROLES, Role
from tests.optim.optimizers import CLASSES

torch.set_num_threads(1)


class Router(nn.Linear):
    param_roles: ClassVar[dict[str, Role]] = {"weight": "router"}


class Experts(nn.Module):
    param_roles: ClassVar[dict[str, Role]] = {"weight": "expert"}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 8))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 8)
        self.router = Router(8, 4, bias=False)
        self.experts = Experts()
        self.output = nn.Linear(8, 16, bias=False)


def members(optimizer: GroupedOptimizer) -> dict[str, tuple[str, list[str]]]:
    return {g["role"]: (g["algorithm"], g["param_names"]) for g in optimizer.param_groups}


EXPECTED = {
    "sso": ("adamw", "sso", "adamw", "adamw", "sso", "sso"),
    "muonsphere": ("adamw", "muonsphere", "adamw", "adamw", "muonsphere", "muonsphere"),
    "muonh": ("adamw", "muonh", "adamh", "adamw", "muonh", "muonh"),
    "adamh": ("adamw", "adamh", "adamh", "adamw", "adamh", "adamh"),
    "muon": ("adamw", "muon", "adamw", "adamw", "muon", "muon"),
    "adamw": ("adamw",) * 6,
}


def test_every_named_optimizer_is_described():
    assert set(EXPECTED) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_each_role_follows_the_published_algorithm(name: str):
    model = Model()
    got = members(build(model, name, lr=0.1, unembedding=[model.output]))
    assert (
        tuple(got[role][0] for role in ("embedding", "hidden", "unembedding", "vector", "router", "expert"))
        == (EXPECTED[name])
    )
    assert {role: names for role, (_, names) in got.items()} == {
        "embedding": ["embed.weight"],
        "hidden": ["hidden.weight"],
        "unembedding": ["output.weight"],
        "vector": ["hidden.bias"],
        "router": ["router.weight"],
        "expert": ["experts.weight"],
    }


def test_rates_and_options_reach_their_groups():
    model = Model()
    rates: dict[Role, float] = {role: 0.1 * (i + 1) for i, role in enumerate(ROLES)}
    options = {"adamw": {"weight_decay": 0.3}, "muonh": {"momentum": 0.8}}
    optimizer = build(model, "muonh", lr=rates, options=options, unembedding=[model.output])
    for group in optimizer.param_groups:
        assert group["lr"] == rates[group["role"]]
        assert group.get("weight_decay") == (0.3 if group["algorithm"] == "adamw" else None)
        assert group.get("momentum") == (0.8 if group["algorithm"] == "muonh" else None)


def test_an_algorithm_of_the_table_can_be_replaced():
    optimizer = build(Model(), "muonh", lr=0.1, algorithms={"router": "adamw"})
    assert members(optimizer)["router"][0] == "adamw"
    assert members(optimizer)["expert"][0] == "muonh"
    assert TABLE["muonh"]["router"] == "muonh"


def test_a_tied_weight_is_in_one_group_only():
    model = Model()
    model.output.weight = model.embed.weight
    optimizer = build(model, "sso", lr=0.1, unembedding=[model.output])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.parameters()))
    assert "unembedding" not in members(optimizer)


def test_groups_fit_any_optimizer_of_the_family():
    groups = param_groups(Model(), lr=0.1, algorithms=TABLE["muonh"], options={"adamw": {"eps": 1e-6}})
    optimizer = GroupedOptimizer(groups)
    assert [g["algorithm"] for g in optimizer.param_groups] == ["adamw", "muonh", "adamw", "muonh", "muonh"]
    assert optimizer.param_groups[0]["eps"] == 1e-6


def test_a_class_takes_a_model_and_groups_it_by_its_own_row():
    model = Model()
    assert members(SSO(model, lr=0.1)) == members(build(model, "sso", lr=0.1))
    assert members(MuonH(model, lr=0.1, unembedding=[model.output])) == members(
        build(model, "muonh", lr=0.1, unembedding=[model.output])
    )
    assert members(AdamW(model, lr=0.1)) == members(build(model, "adamw", lr=0.1))


def test_a_class_splits_plain_parameters_into_matrices_and_vectors():
    optimizer = SSO(Model().parameters(), lr=0.1, momentum=0.7, options={"adamw": {"weight_decay": 0.2}})
    matrices, vectors = optimizer.param_groups
    assert (matrices["algorithm"], matrices["momentum"], len(matrices["params"])) == ("sso", 0.7, 5)
    assert (vectors["algorithm"], vectors["weight_decay"], len(vectors["params"])) == ("adamw", 0.2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sgd"}, "optimizer must be one of .* got 'sgd'"),
        ({"lr": -1.0}, "lr of role embedding must .* got -1.0"),
        ({"lr": float("nan")}, "lr of role embedding must be finite"),
        ({"lr": {"hidden": 0.1}}, "lr must .* role embedding, got only hidden"),
        ({"algorithms": {"hidden": "sgd"}}, "algorithm of role hidden must be one of .*, got 'sgd'"),
        ({"algorithms": {"head": "sso"}}, "role must be one of .* got 'head'"),
        ({"options": {"sgd": {}}}, "algorithm must be one of .*, got 'sgd'"),
        (
            {"options": {"sso": {"betas": (0.9, 0.95)}}},
            "betas is no option of sso.* momentum",
        ),
        (
            {"algorithms": {"vector": "sso"}},
            r"hidden\.bias must be a matrix .* to follow sso, got shape \(8,\)",
        ),
    ],
)
def test_bad_requests_are_named(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(Model(), **{"name": "sso", "lr": 0.1, **arguments})


def test_a_role_without_algorithm_is_named():
    with pytest.raises(ValueError, match=r"algorithms must .* role hidden, got only embedding"):
        param_groups(Model(), lr=0.1, algorithms={"embedding": "adamw"})


def test_rates_by_role_need_a_model():
    with pytest.raises(ValueError, match="lr must be one number unless params is a module"):
        SSO(Model().parameters(), lr={"hidden": 0.1})


def test_own_options_are_given_once():
    with pytest.raises(ValueError, match="options must not have sso"):
        SSO(Model(), options={"sso": {"momentum": 0.5}})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sso", {"lr": -0.1}, "lr must .* got -0.1"),
        ("sso", {"lr": math.inf}, "lr must .* got inf"),
        ("sso", {"momentum": 1.0}, "momentum must .* got 1.0"),
        ("sso", {"radius_factor": 0.0}, "radius_factor must .* got 0.0"),
        ("sso", {"radius_mode": "big"}, "radius_mode must be one of .* got 'big'"),
        ("sso", {"scale_mode": "big"}, "scale_mode must be one of .* got 'big'"),
        ("sso", {"evaluations": 0}, "evaluations must .* got 0"),
        ("muonsphere", {"block": 0}, "block must .* got 0"),
        ("muonh", {"momentum": -0.1}, "momentum must .* got -0.1"),
        ("muonh", {"msign_steps": 2.5}, "msign_steps must .* got 2.5"),
        ("muonh", {"msign": "qr"}, "msign must be one of .* got 'qr'"),
        ("muon", {"weight_decay": -1.0}, "weight_decay must .* got -1.0"),
        (
            "muon",
            {"scale_mode": "aspect"},
            "scale_mode must be one of .* got 'aspect'",
        ),
        ("adamw", {"betas": (0.9, 1.0)}, r"betas\[1\] must .* got 1.0"),
        ("adamw", {"betas": (0.9,)}, "betas must be two decay rates"),
        ("adamw", {"weight_decay": math.nan}, "weight_decay must .* got nan"),
        ("adamh", {"eps": 0.0}, "eps must .* got 0.0"),
    ],
)
def test_hyperparameters_are_checked(name: str, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CLASSES[name]([nn.Parameter(torch.randn(2, 2))], **arguments)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"algorithm": "sgd"}, "algorithm must be one of .*, got 'sgd'"),
        ({"momentun": 0.9}, "momentun is no option of sso"),
        ({"lr": -1.0}, "lr must .* got -1.0"),
    ],
)
def test_groups_are_checked(group: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SSO([{"params": [nn.Parameter(torch.randn(2, 2))], **group}])


def test_other_shapes_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"must be a matrix .* got shape \(2, 2, 3, 3\)"):
        SSO([nn.Parameter(torch.randn(2, 2, 3, 3))])
    with pytest.raises(ValueError, match=r"must be real .* got torch\.complex64"):
        SSO([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"gradients must be dense, got layout torch\.sparse_coo"):
        AdamW(table.parameters()).step()


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = SSO([nn.Parameter(torch.randn(2, 2))])
    with pytest.raises(ValueError, match="must be a matrix"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.randn(2))], "algorithm": "sso"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", TABLE)
def test_the_configuration_says_every_option_with_its_default_and_the_table(name):
    optim = resolve(compose([f"optim={name}"])).optim
    assert optim.algorithms == TABLE[name]
    assert set(optim.options) == set(TABLE[name].values())
    for algorithm, options in optim.options.items():
        defaults = asdict(make_rule(algorithm, {}))
        assert {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()} == defaults
