"""Real trainers read what is handed to them, and train at its rates and on its schedule, where installed.

Megatron-LM and nanochat are no packages: their schedules are redone here from the sources in trainers.yaml.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hyperp.analysis.handover.base import Handover, Sourced
from hyperp.analysis.handover.write import trainer_text
from tests.analysis.handover.handovers import (
    ADAMW,
    FOREIGN,
    MUONH,
    active,
    assert_read,
    context,
    python_code,
    python_lines,
)


class LlamaNames(nn.Module):
    """Parameters named as those of torchtitan's Llama."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"attention": nn.Linear(8, 8, bias=False), "attention_norm": nn.RMSNorm(8)})
        self.tok_embeddings, self.layers = nn.Embedding(16, 8), nn.ModuleDict({"0": block})
        self.norm, self.lm_head = nn.RMSNorm(8), nn.Linear(8, 16, bias=False)


def test_torchtitan_of_three_tenths_builds_its_optimizers_from_the_lines():
    reason = "torchtitan 0.3 and its dependencies are not installed"
    module = pytest.importorskip("torchtitan.components.optimizer", reason=reason, exc_type=ImportError)
    if not hasattr(module, "ParamGroupConfig"):
        pytest.skip(reason)
    lines = python_lines("torchtitan", ADAMW)
    config = eval("".join(lines).removeprefix("optimizer="), vars(module))
    config.implementation = "for-loop"
    made = module.OptimizersContainer(config, model_parts=[LlamaNames()])
    groups = [group for optimizer in made.optimizers for group in optimizer.param_groups]
    sizes = [(group["lr"], sorted(tuple(p.shape) for p in group["params"])) for group in groups]
    assert sizes == [(0.012, [(16, 8)]), (0.012, [(16, 8)]), (0.012, [(8,), (8,)]), (0.003, [(8, 8)])]


@pytest.mark.slow
def test_a_trainer_of_transformers_trains_a_llama_at_the_rates_and_on_the_schedule(tmp_path):
    reason = "transformers or accelerate is not installed"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("accelerate", reason=reason)
    sizes = {"tokens": 64 * 6, "batch_tokens": 64, "width": 32, "depth": 2}
    rates = {**MUONH.rates, "embedding": Sourced(0.01, "a rule")}
    handover = replace(MUONH, sizes=sizes, rates=rates, sequence_length=16)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=64, tie_word_embeddings=False, **shape)
    )
    lines = python_code("hf", handover)
    names: dict[str, Any] = {"model": model}
    exec("\n".join(lines[:-1]), names)
    path = tmp_path / "arguments.yaml"
    here = f"output_dir: {tmp_path}\nreport_to: none\nuse_cpu: true\nsave_strategy: 'no'\nlogging_steps: 1\n"
    path.write_text(f"{here}per_device_train_batch_size: 4\n{trainer_text('hf', handover)}\n")
    (arguments,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(path)
    texts = [torch.randint(0, 64, (16,)) for _ in range(24)]
    data = [{"input_ids": text, "labels": text} for text in texts]
    optimizer = names["optimizer"]
    seen: list[dict[str, float]] = []
    step = optimizer.step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append({group["role"]: group["lr"] for group in optimizer.param_groups})
        return step(*args, **kwargs)

    optimizer.step = recorded
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    schedule = handover.schedule
    assert schedule is not None
    assert len(seen) == 6
    for number, at in enumerate(seen):
        factor = schedule.factor(number, 6)
        assert at == pytest.approx({role: one.value * factor for role, one in rates.items()}, rel=1e-9)


def compare_schedules(handover: Handover, factor: Callable[[int], float], steps: int, skip: int = 0) -> None:
    schedule = handover.schedule
    assert schedule is not None
    for step in range(skip, steps):
        assert factor(step) == pytest.approx(schedule.factor(step, steps), rel=1e-9, abs=1e-12)


SHORT = {"tokens": 64 * 50, "batch_tokens": 64, "width": 64, "depth": 2}
SHAPES = ["linear", "cosine", "constant"]


def short(shape: str) -> Handover:
    return replace(ADAMW, context=context("adamw", schedule=shape), sizes=SHORT, sequence_length=8)


@pytest.mark.parametrize("shape", SHAPES)
def test_megatron_trains_on_the_schedule_of_the_fitted_runs(shape):
    """OptimizerParamScheduler.get_lr of Megatron-LM 0.20 for linear, cosine and constant, without warm-up."""
    found = active("megatron", short(shape))
    top, low = found["--lr"], found.get("--min-lr", 0.0)
    style, steps = found["--lr-decay-style"], found["--lr-decay-iters"]
    assert found["--lr-warmup-iters"] == 0

    def factor(step: int) -> float:
        share = step / steps
        falls = {"linear": 1 - share, "cosine": 0.5 * (math.cos(math.pi * share) + 1), "constant": 1.0}[style]
        return (low + falls * (top - low)) / top

    compare_schedules(short(shape), factor, steps)


@pytest.mark.parametrize("shape", ["linear", "constant"])
def test_nanochat_trains_on_the_schedule_of_the_fitted_runs(shape):
    """get_lr_multiplier of nanochat's base_train.py."""
    found = active("nanochat", short(shape))
    steps, down = found["--num-iterations"], round(found["--warmdown-ratio"] * found["--num-iterations"])

    def factor(step: int) -> float:
        if step <= steps - down:
            return 1.0
        left = (steps - step) / down
        return left + (1 - left) * found["--final-lr-frac"]

    compare_schedules(short(shape), factor, steps)


@pytest.mark.parametrize("handover", [ADAMW, MUONH, FOREIGN, short("linear")])
def test_the_parser_of_transformers_reads_the_yaml(handover, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = tmp_path / "arguments.yaml"
    path.write_text(f"output_dir: {tmp_path}\n{trainer_text('hf', handover)}\n")
    (arguments,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(path)
    for name, value in active("hf", handover).items():
        assert_read(getattr(arguments, name), value, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_trains_on_the_schedule_of_the_fitted_runs(shape):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    found = active("hf", short(shape))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(
        found["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=found["warmup_steps"],
        num_training_steps=found["max_steps"],
        scheduler_specific_kwargs=found.get("lr_scheduler_kwargs"),
    )
    compare_schedules(short(shape), scheduler.lr_lambdas[0], found["max_steps"])


def titan_manager() -> Any:
    reason = "torchtitan 0.2, and triton which it needs, are not installed"
    manager = pytest.importorskip("torchtitan.config.manager", reason=reason, exc_type=ImportError)
    pytest.importorskip("torchtitan.config.job_config", reason="torchtitan is of a version without TOML")
    return manager.ConfigManager()


@pytest.mark.parametrize("handover", [ADAMW, MUONH, FOREIGN, short("constant")])
def test_the_parser_of_torchtitan_reads_the_toml(handover, tmp_path):
    manager = titan_manager()
    path = tmp_path / "job.toml"
    path.write_text(trainer_text("torchtitan", handover))
    config = manager.parse_args(["--job.config_file", str(path)])
    for name, value in active("torchtitan", handover).items():
        section, key = name.split(".")
        assert_read(getattr(getattr(config, section), key), value, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_torchtitan_trains_on_the_schedule_of_the_fitted_runs(shape, tmp_path):
    manager = titan_manager()
    from torchtitan.components.lr_scheduler import build_lr_schedulers  # pyright: ignore[reportMissingImports]

    path = tmp_path / "job.toml"
    path.write_text(trainer_text("torchtitan", short(shape)))
    config = manager.parse_args(["--job.config_file", str(path)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = build_lr_schedulers([optimizer], config.lr_scheduler, config.training.steps)
    compare_schedules(short(shape), made.schedulers[0].lr_lambdas[0], config.training.steps)
