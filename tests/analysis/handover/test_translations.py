"""What is handed to a trainer: its own names, the rates that it will train with, what it lacks."""

import argparse
import re
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hyperp.analysis.handover.base import Handover, Setting, Sourced
from hyperp.analysis.handover.facts import trainer_facts
from hyperp.analysis.handover.write import TRANSLATORS, trainer_text
from tests.analysis.handover.handovers import (
    ADAMW,
    FOREIGN,
    HANDOVERS,
    HIDDEN,
    MUON,
    MUONH,
    SIZES,
    active,
    assert_read,
    context,
    python_code,
    python_lines,
    untranslated,
)

FACTS = trainer_facts()
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "flag": (bool,),
    "dict": (dict,),
}


def settings(trainer: str, handover: Handover) -> dict[str, Setting]:
    return {one.name: one for one in TRANSLATORS[trainer](handover).settings}


def words_of_bash(text: str, folder: Path) -> list[str]:
    """The array as bash itself expands it."""
    script = folder / "arguments.sh"
    script.write_text(f'{text}\nprintf "%s\\n" "${{ARGUMENTS[@]}}"\n')
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def recorded_parser(trainer: str) -> argparse.ArgumentParser:
    """A parser of the recorded names, types and choices; abbreviations are errors."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name, of in FACTS[trainer].names.items():
        if of.type == "flag":
            parser.add_argument(name, action="store_true")
        else:
            kind = {"int": int, "float": float, "str": str}[of.type]
            parser.add_argument(name, type=kind, choices=of.choices)
    return parser


@pytest.mark.parametrize("handover", HANDOVERS.values(), ids=list(HANDOVERS))
@pytest.mark.parametrize("trainer", TRANSLATORS)
def test_every_setting_is_a_recorded_name_with_its_type_and_a_source(trainer, handover):
    found = TRANSLATORS[trainer](handover).settings
    names = [one.name for one in found]
    assert len(set(names)) == len(names)
    for one in found:
        of = FACTS[trainer].names[one.name]
        assert isinstance(one.value, TYPES[of.type]), one
        assert of.choices is None or one.value in of.choices
        assert one.comment


@pytest.mark.parametrize("handover", HANDOVERS.values(), ids=list(HANDOVERS))
@pytest.mark.parametrize("trainer", ["megatron", "nanochat"])
def test_bash_and_a_parser_of_the_recorded_names_read_the_arguments(trainer, handover, tmp_path):
    words = words_of_bash(trainer_text(trainer, handover), tmp_path)
    parsed = vars(recorded_parser(trainer).parse_args(words))
    for name, value in active(trainer, handover).items():
        assert_read(parsed[name.lstrip("-").replace("-", "_")], value, name)


@pytest.mark.parametrize("handover", HANDOVERS.values(), ids=list(HANDOVERS))
def test_toml_and_yaml_hold_the_settings_as_they_are(handover):
    table = tomllib.loads(trainer_text("torchtitan", handover))
    flat = {f"{section}.{key}": value for section, of in table.items() for key, value in of.items()}
    of_yaml = yaml.safe_load(trainer_text("hf", handover)) or {}
    for trainer, found in (("torchtitan", flat), ("hf", of_yaml)):
        expected = active(trainer, handover)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_read(found[name], value, name)


@pytest.mark.parametrize("trainer", TRANSLATORS)
def test_an_optimizer_that_the_trainer_lacks_leaves_no_rate_to_train_with(trainer):
    names = {"--lr", "--min-lr", "--decoupled-lr", "--matrix-lr", "--embedding-lr", "--unembedding-lr"}
    names |= {"optimizer.lr", "learning_rate"}
    for handover in (MUONH, FOREIGN):
        assert not names & active(trainer, handover).keys()
        assert names & settings(trainer, handover).keys()
        assert handover.optimizer in untranslated(trainer, handover) or trainer == "hf"
    known = ADAMW if trainer != "nanochat" else MUON
    assert names & active(trainer, known).keys()


def test_megatron_has_one_rate_inside_and_one_at_both_ends():
    found = active("megatron", ADAMW)
    assert (found["--lr"], found["--decoupled-lr"]) == (0.003, 0.012)
    assert found["--min-lr"] == pytest.approx(0.0003)
    assert found["--decoupled-min-lr"] == pytest.approx(0.0012)
    assert found["--optimizer"] == "adam"
    assert found["--lr-decay-style"] == "cosine"
    assert "vector: lr = 0.012" in untranslated("megatron", ADAMW)
    apart = replace(ADAMW, rates={**ADAMW.rates, "unembedding": Sourced(0.006, "another rule")})
    assert "--decoupled-lr" not in active("megatron", apart)
    assert "unembedding: lr = 0.006" in untranslated("megatron", apart)
    assert "--decoupled-lr" not in active("megatron", MUON)


def test_megatrons_muon_has_the_step_of_ours():
    found = active("megatron", MUON)
    assert found["--optimizer"] == "muon"
    assert found["--muon-scale-mode"] == "shape_scaling"
    assert (found["--muon-momentum"], found["--muon-nesterov"]) == (0.95, True)


def test_steps_and_batch_are_those_of_the_target():
    found = active("megatron", ADAMW)
    assert found["--train-iters"] == found["--lr-decay-iters"] == 10**12 // 2**22
    assert found["--global-batch-size"] * found["--seq-length"] == 2**22
    assert active("torchtitan", ADAMW)["training.global_batch_size"] == 1024
    assert active("nanochat", ADAMW)["--total-batch-size"] == 2**22
    assert "has to be 1024" in untranslated("hf", ADAMW)
    unknown = replace(ADAMW, sequence_length=None)
    for trainer in ("megatron", "torchtitan"):
        assert "--sequence-length" in untranslated(trainer, unknown)
    assert "has to be 4194304 tokens" in untranslated("hf", unknown)


@given(width=st.integers(1, 64), depth=st.integers(1, 64), batch=st.integers(2**10, 2**25))
def test_nanochat_arrives_at_the_recommended_rates(width, depth, batch):
    """Its factors as base_train.py and GPT.setup_optimizer have them: sqrt(B / 2^19), (width / 768)^-0.5."""
    sizes = {**SIZES, "width": 128 * width, "depth": depth, "batch_tokens": batch}
    rates = {"hidden": HIDDEN, "embedding": Sourced(0.2, "a rule"), "unembedding": Sourced(0.01, "a rule")}
    found = active("nanochat", replace(MUON, sizes=sizes, rates=rates, sequence_length=None))
    scale, narrow = (batch / 2**19) ** 0.5, (128 * width / 768) ** -0.5
    assert found["--matrix-lr"] * scale == pytest.approx(0.003, rel=1e-12)
    assert found["--embedding-lr"] * scale * narrow == pytest.approx(0.2, rel=1e-12)
    assert found["--unembedding-lr"] * scale * narrow == pytest.approx(0.01, rel=1e-12)
    if "--aspect-ratio" in found:
        base = depth * found["--aspect-ratio"]
        assert (base + 127) // 128 * 128 == 128 * width


def test_nanochat_gets_no_schedule_or_decay_that_it_cannot_do():
    found = active("nanochat", MUON)
    assert (found["--warmup-steps"], found["--warmdown-ratio"], found["--final-lr-frac"]) == (0, 1.0, 0.1)
    assert "--warmdown-ratio" not in active("nanochat", ADAMW)
    assert "schedule cosine" in untranslated("nanochat", ADAMW)
    decayed = replace(MUON, tuned={"weight_decay": Sourced(0.1, "tuned")})
    assert "--weight-decay" not in active("nanochat", decayed)
    assert "weight decay 0.1 (tuned)" in untranslated("nanochat", decayed)


def test_what_was_tuned_or_held_replaces_defaults():
    tuned = replace(
        ADAMW, tuned={"weight_decay": Sourced(0.07, "tuned"), "batch_tokens": Sourced(2**20, "tuned")}
    )
    assert active("megatron", tuned)["--weight-decay"] == 0.07
    assert active("megatron", tuned)["--global-batch-size"] == 256
    held = replace(ADAMW, sizes={**SIZES, "weight_decay": 0.2, "beta3": 0.5})
    assert active("hf", held)["weight_decay"] == 0.2
    assert "beta3 = 0.5" in untranslated("hf", held)


def test_groups_and_factors_that_are_not_translated_are_told():
    factors = {"eps": {"hidden": 0.25, "embedding": 0.5}}
    odd = replace(ADAMW, factors=factors, unknown_rates="rates of router: not known")
    for trainer in TRANSLATORS:
        text = untranslated(trainer, odd)
        assert "rates of router: not known" in text
        assert "eps: parametrization mup multiplies it, by group: hidden 0.25, embedding 0.5" in text


def test_a_length_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"sequence_length must divide the batch of 4194304 tokens, got 1000; 4194000"
    ):
        replace(ADAMW, sequence_length=1000)
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got 0"):
        replace(ADAMW, sequence_length=0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(16, 8), nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 16, bias=False)


@pytest.mark.parametrize("handover", [MUONH, ADAMW, replace(MUON, context=context("sso"))])
def test_the_python_for_transformers_builds_the_optimizer_with_a_rate_for_each_group(handover):
    lines = python_code("hf", handover)
    assert lines[-1].startswith("trainer = Trainer(")
    names: dict[str, Any] = {"model": Tiny()}
    exec("\n".join(lines[:-1]), names)
    groups = {group["role"]: group["lr"] for group in names["optimizer"].param_groups}
    assert groups == {role: one.value for role, one in handover.rates.items()}


FACTORS = {
    "weight_decay": {"hidden": 4.0, "embedding": 1.0, "unembedding": 1.0, "vector": 1.0},
    "eps": {"hidden": 0.125, "embedding": 0.25, "unembedding": 0.25, "vector": 0.125},
}
TUNED = {"weight_decay": Sourced(0.1, "tuned")}
OPTIMIZERS = ("adamw", "muon", "muonh", "adamh", "sso", "muonsphere")


@pytest.mark.parametrize("tuned", [{}, TUNED])
@pytest.mark.parametrize("factors", [{}, FACTORS])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_python_for_transformers_has_the_options_of_the_fitted_runs(optimizer, factors, tuned):
    """Those of conf/optim, with the weight decay that was tuned, times the factors of each group."""
    handover = replace(ADAMW, context=context(optimizer, "completep"), factors=factors, tuned=tuned)
    names: dict[str, Any] = {"model": Tiny()}
    exec("\n".join(python_code("hf", handover)[:-1]), names)
    known = handover.optimizer_options
    assert known is not None
    decaying = optimizer if "weight_decay" in known["options"][optimizer] else "adamw"
    for group in names["optimizer"].param_groups:
        algorithm, role = known["algorithms"][group["role"]], group["role"]
        expected = dict(known["options"][algorithm])
        if tuned and algorithm == decaying:
            expected["weight_decay"] = 0.1
        for option in expected.keys() & factors.keys():
            expected[option] *= factors[option][role]
        for option, value in expected.items():
            got = list(group[option]) if option == "betas" else group[option]
            assert got == (pytest.approx(value) if isinstance(value, float) else value), (role, option)


def test_python_is_written_where_only_decay_or_epsilon_differ_between_groups():
    same = replace(ADAMW, rates=dict.fromkeys(ADAMW.rates, HIDDEN))
    assert not python_lines("hf", same)
    assert python_lines("hf", replace(same, factors=FACTORS))


def test_one_value_for_all_groups_is_that_of_the_hidden_matrices():
    handover = replace(ADAMW, context=context("adamw", "completep"), factors=FACTORS, tuned=TUNED)
    names = {"megatron": "--weight-decay", "torchtitan": "optimizer.weight_decay", "hf": "weight_decay"}
    epsilons = {"megatron": "--adam-eps", "torchtitan": "optimizer.eps", "hf": "adam_epsilon"}
    for trainer, name in names.items():
        found = settings(trainer, handover)
        assert found[name].value == pytest.approx(0.4)
        assert found[name].comment == (
            "tuned; times 4, the factor of parametrization=completep for hidden matrices"
        )
        assert found[epsilons[trainer]].value == pytest.approx(0.125e-8)
    assert "weight decay 0.4 (tuned; times 4" in untranslated(
        "nanochat", replace(handover, context=context("muon", "completep"))
    )


def test_a_factor_that_is_not_known_leaves_no_decay_to_train_with():
    unknown = replace(
        ADAMW,
        context=context("adamw", "completep"),
        rates={"hidden": HIDDEN},
        unknown_rates="rates of embedding: not known",
        tuned=TUNED,
    )
    for trainer, name in (("megatron", "--weight-decay"), ("torchtitan", "optimizer.weight_decay")):
        assert name not in active(trainer, unknown)
        assert "which is not known" in settings(trainer, unknown)[name].comment
    assert not {"weight_decay", "adam_epsilon"} & active("hf", unknown).keys()
    assert not python_lines("torchtitan", unknown)
    raw = replace(unknown, context=context("adamw", "raw"))
    assert active("hf", raw)["weight_decay"] == 0.1


def test_groups_of_torchtitan_have_a_decay_and_an_epsilon_each():
    made: list[dict[str, Any]] = []

    class Container:
        Config = staticmethod(lambda param_groups: made.extend(param_groups))

    handover = replace(ADAMW, factors=FACTORS, tuned=TUNED)
    code = "".join(python_lines("torchtitan", handover)).removeprefix("optimizer=")
    eval(code, {"OptimizersContainer": Container, "ParamGroupConfig": dict})
    found = [(one["optimizer_kwargs"]["weight_decay"], one["optimizer_kwargs"]["eps"]) for one in made]
    assert found == [(0.1, 2.5e-9), (0.1, 2.5e-9), (0.1, 1.25e-9), (0.4, 1.25e-9)]


def test_torchtitan_of_three_tenths_gets_a_group_for_each_rate():
    """The lines are Python, and the first pattern that a name of its Llama matches is that of the group."""
    made: list[dict[str, Any]] = []

    class Container:
        Config = staticmethod(lambda param_groups: made.extend(param_groups))

    code = "".join(python_lines("torchtitan", ADAMW)).removeprefix("optimizer=")
    eval(code, {"OptimizersContainer": Container, "ParamGroupConfig": dict})
    for name, rate in {
        "tok_embeddings.weight": 0.012,
        "lm_head.weight": 0.012,
        "layers.3.attention_norm.weight": 0.012,
        "norm.weight": 0.012,
        "layers.0.attention.wq.weight": 0.003,
        "layers.11.feed_forward.w2.weight": 0.003,
    }.items():
        group = next(one for one in made if re.search(one["pattern"], name))
        assert group["optimizer_kwargs"]["lr"] == rate, name
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))], **group["optimizer_kwargs"])


DEFAULTS = {
    "megatron": {"--min-lr", "--decoupled-min-lr", "--lr-warmup-iters", "--weight-decay", "--clip-grad"}
    | {"--adam-beta1", "--adam-beta2", "--adam-eps"},
    "torchtitan": {"lr_scheduler.warmup_steps", "lr_scheduler.min_lr_factor", "training.max_norm"}
    | {"optimizer.weight_decay", "optimizer.beta1", "optimizer.beta2", "optimizer.eps"},
    "hf": {"warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "max_grad_norm"}
    | {"weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"},
}


@pytest.mark.parametrize("named", [None, "command"])
@pytest.mark.parametrize("trainer", DEFAULTS)
def test_defaults_of_hyperp_are_comments_for_runs_of_another_or_an_unknown_trainer(trainer, named):
    foreign = replace(ADAMW, trainer=named)
    assert DEFAULTS[trainer] <= active(trainer, ADAMW).keys()
    assert active(trainer, ADAMW).keys() - active(trainer, foreign).keys() - DEFAULTS[trainer] <= {
        "--untie-embeddings-and-output-weights"
    }
    assert not DEFAULTS[trainer] & active(trainer, foreign).keys()
    assert DEFAULTS[trainer] <= settings(trainer, foreign).keys()
    whose = "does not say which trainer" if named is None else "runs were of trainer=command"
    assert whose in untranslated(trainer, foreign)
    assert "a default of hyperp-train" not in untranslated(trainer, ADAMW)
    tuned = replace(foreign, tuned=TUNED)
    name = next(one for one in DEFAULTS[trainer] if one.endswith(("weight-decay", "weight_decay")))
    assert active(trainer, tuned)[name] == 0.1


def test_defaults_for_nanochat_and_for_muon_are_comments_too():
    foreign = replace(MUON, trainer="command")
    assert not {"--warmup-steps", "--final-lr-frac"} & active("nanochat", foreign).keys()
    assert active("nanochat", foreign)["--warmdown-ratio"] == active("nanochat", MUON)["--warmdown-ratio"]
    assert "--muon-momentum" not in active("megatron", foreign)
