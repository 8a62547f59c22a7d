"""Constructors of the optimizer classes: signatures, help texts and errors come from the rules' fields."""

import inspect
import pydoc
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from hyperp.optim import SSO, MuonH
from hyperp.optim.arguments import OptimizerArguments
from hyperp.optim.rule import RULES
from tests.optim.optimizers import CLASSES

DEFAULT_LR = {"sso": 5e-3, "muonsphere": 5e-3, "muonh": 1e-2, "adamh": 1e-2, "muon": 2e-2, "adamw": 1e-3}


def weight() -> nn.Parameter:
    return nn.Parameter(torch.eye(2))


@pytest.mark.parametrize("name", CLASSES)
def test_the_signature_has_the_fields_of_the_rule_and_the_shared_arguments(name: str):
    taken = inspect.signature(CLASSES[name]).parameters
    rule, shared = fields(RULES[name]), fields(OptimizerArguments)
    assert list(taken)[:2] == ["params", "lr"]
    assert set(taken) == {field.name for field in (*rule, *shared)}
    hints = get_type_hints(RULES[name])
    for field in rule:
        assert taken[field.name].default == field.default == getattr(RULES[name](), field.name)
        assert taken[field.name].annotation == hints[field.name]
    assert taken["params"].default is inspect.Parameter.empty
    assert taken["lr"].default == DEFAULT_LR[name]
    assert all(one.kind is one.KEYWORD_ONLY for one in list(taken.values())[2:])
    assert inspect.signature(CLASSES[name].__init__).parameters.keys() == {"self": None, **taken}.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_help_explains_every_argument(name: str):
    text = pydoc.plain(pydoc.render_doc(CLASSES[name]))
    for argument, parameter in inspect.signature(CLASSES[name]).parameters.items():
        lines = [line.split("|")[-1].strip() for line in text.splitlines()]
        (explained,) = [line for line in lines if line.startswith(f"{argument}: ")]
        assert len(explained.split()) >= 4
        if isinstance(parameter.default, str):
            assert f'"{parameter.default}"' in text


@pytest.mark.parametrize("name", CLASSES)
def test_the_given_values_reach_the_groups(name: str):
    optimizer = CLASSES[name]([weight()], 0.25, maximize=True)
    (group,) = optimizer.param_groups
    assert (group["algorithm"], group["lr"], group["maximize"]) == (name, 0.25, True)
    assert {field.name: group[field.name] for field in fields(RULES[name])} == vars(RULES[name]())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": [], "momentun": 0.9}, r"^SSO\.__init__\(\) got an unexpected .* 'momentun'"),
        ({}, r"^SSO\.__init__\(\) missing 1 required positional argument: 'params'"),
    ],
)
def test_a_wrong_name_is_refused_as_by_any_function(arguments: dict[str, Any], message: str):
    with pytest.raises(TypeError, match=message):
        SSO(**arguments)
    with pytest.raises(TypeError, match=r"^MuonH\.__init__\(\) takes from 2 to 3 positional arguments"):
        MuonH(*([weight()], 0.1, 0.9))  # pyright: ignore[reportCallIssue] - too many on purpose


@pytest.mark.parametrize("name", CLASSES)
def test_a_state_dict_from_before_an_option_existed_gives_it_its_default(name: str):
    parameter = weight()
    for field in fields(RULES[name]):
        saved = CLASSES[name]([parameter]).state_dict()
        del saved["param_groups"][0][field.name]
        optimizer = CLASSES[name]([parameter])
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0][field.name] == field.default
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
