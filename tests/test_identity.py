"""A run's id: every field that makes the run what it is moves it, and nothing else does."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from hyperp.config import Config, compose, resolve

Leaf = tuple[str, ...]
OTHER = "something else"
HASHED = ("optim=sso", "model.query_heads=2", "data=text", "data.files=[a,b]")


def config(*overrides: str) -> Config:
    return resolve(compose([*overrides]))


def items(value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        yield from ((f.name, getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, dict):
        yield from value.items()


def leaves(value: Any, path: Leaf = ()) -> Iterator[Leaf]:
    """Paths of everything that holds no fields or keys, found in the objects and not in `identity()`."""
    found = list(items(value))
    if not found:
        yield path
    for name, inner in found:
        yield from leaves(inner, (*path, name))


def changed(whole: Config, path: Leaf, value: Any) -> Config:
    """A copy with one leaf replaced, whether or not such a run could be done."""
    whole = copy.deepcopy(whole)
    part: Any = whole
    for name in path[:-1]:
        part = part[name] if isinstance(part, dict) else getattr(part, name)
    if isinstance(part, dict):
        part[path[-1]] = value
    else:
        object.__setattr__(part, path[-1], value)
    return whole


def test_the_walk_finds_every_part():
    found = set(leaves(config(*HASHED)))
    for path in (
        ("seed",),
        ("precision",),
        ("scale", "sparsity"),
        ("model", "rope_base"),
        ("optim", "algorithms", "hidden"),
        ("optim", "options", "sso", "evaluations"),
        ("parametrization", "init_hidden_gain"),
        ("schedule", "final"),
        ("data", "files"),
        ("data", "held_out_tokens"),
        ("runtime", "root"),
    ):
        assert path in found


def test_every_leaf_moves_the_id_to_one_of_its_own_and_no_runtime_leaf_does():
    whole = config(*HASHED)
    ids = {path: changed(whole, path, OTHER).run_id() for path in leaves(whole)}
    runtime = {path for path in ids if path[0] == "runtime"}
    assert {ids[path] for path in runtime} == {whole.run_id()}
    others = [ids[path] for path in ids if path not in runtime]
    assert len(others) > 40
    assert whole.run_id() not in others
    assert len(set(others)) == len(others)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "base_lr=0.0156",
        "precision=float32",
        "scale.tokens=131584",
        "scale.batch_tokens=1024",
        "model.gated_attention=true",
        "model.rope_base=10000.5",
        "optim=sso",
        "optim.clip=0.5",
        "optim.options.muonh.momentum=0.9",
        "optim.algorithms.unembedding=adamw",
        "parametrization=raw",
        "parametrization.token_exponent=-0.33",
        "parametrization.token_exponent_on=hidden",
        "parametrization.reference_depth=9",
        "parametrization.weight_decay_width_exponent=1",
        "parametrization.residual_from=reference",
        "parametrization=completep",
        "schedule=cosine",
        "schedule.final=0.2",
        "schedule.warmup_steps=1",
        "data.held_out_tokens=32768",
    ],
)
def test_an_override_that_makes_another_run_makes_another_id(override):
    assert config(override).run_id() != config().run_id()


def test_another_text_makes_another_id():
    ids = [
        config("data=text", "data.files=[a]").run_id(),
        config("data=text", "data.files=[b]").run_id(),
        config("data=text", "data.files=[a,b]").run_id(),
        config("data=tokens", "data.path=a").run_id(),
        config("data=tokens", "data.path=b").run_id(),
        config().run_id(),
    ]
    assert len(set(ids)) == len(ids)


def test_the_order_of_overrides_and_of_keys_does_not_matter():
    one, two = "schedule.final=0.2", "optim.options.adamw.eps=1e-7"
    whole = config(one, two)
    assert config(two, one).run_id() == whole.run_id()
    options = dict(reversed(whole.optim.options.items()))
    assert changed(whole, ("optim", "options"), options).run_id() == whole.run_id()


def test_an_id_is_twelve_hexadecimal_digits():
    name = config().run_id()
    assert len(name) == 12
    assert set(name) <= set("0123456789abcdef")


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_with_another_hash_seed_gives_the_same_id(seed):
    code = f"from hyperp.config import compose, resolve; print(resolve(compose({list(HASHED)!r})).run_id())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == config(*HASHED).run_id()


@pytest.mark.parametrize(
    ("overrides", "run_id"),
    [
        ("", "ce0ac3ccef6c"),
        ("optim=sso base_lr=0.0155", "ceae3adf4761"),
        ("optim=muonsphere base_lr=0.0155", "b68f66d63beb"),
        ("optim=adamh", "57ba9133c72e"),
        ("optim=adamw parametrization=standard base_lr=0.0155", "2d1f0ed7fb04"),
        ("optim=muon optim.clip=0 base_lr=0.0155", "6e4ccd28506b"),
        ("model=moe scale.granularity=4 scale.sparsity=4", "4feb3e0b7634"),
        (
            "model=hyperp_paper scale.width=1024 scale.batch_tokens=2097152 scale.tokens=10.4e9",
            "8e902f3cab59",
        ),
        (
            "parametrization=mup++ parametrization.reference_width=1e3 schedule=cosine "
            "schedule.warmup_steps=3",
            "2f74199f8107",
        ),
        ("parametrization=raw parametrization.init_unembedding_std=1 base_lr=1", "f7c9c0f07cf1"),
        ("data=text data.files=[a,b]", "4f6486787def"),
        ("data=tokens data.path=x.bin seed=3", "a4ab71aa0d71"),
        ("runtime.coordinates=[1,2] precision=float32 scale.tokens=1e6", "2258360b6f06"),
        (
            "schedule.final=1 optim.clip=2 model.rope_base=10000 parametrization.token_exponent=0 "
            "parametrization.init_hidden_gain=2",
            "ad7e058cba99",
        ),
        ("optim.options.muonh.momentum=1 model.query_heads=2", "d07dc12dd23a"),
        ("parametrization=mup schedule=constant schedule.final=0", "131795689631"),
        ("parametrization=raw parametrization.epsilon_width_exponent=0", "9c87a64ab139"),
    ],
)
def test_runs_of_earlier_versions_keep_their_ids(overrides, run_id):
    assert config(*overrides.split()).run_id() == run_id
