"""The trainer's step redone by hand from the public pieces: rates, schedule, accumulation, clipping, order.

The settings are such that each piece shows: two parts a batch, a clip that binds by another factor at every
step, a schedule that moves, a rate of its own for every role.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperp.config import Config, compose, resolve
from hyperp.data.corpus import Batches, Corpus
from hyperp.model.transformer import Transformer
from hyperp.optim import MuonSphere, build
from hyperp.roles import ROLES, Role, roles_of
from hyperp.training.trainer import Trainer
from tests.corpora import zipf_corpus

torch.set_num_threads(1)
VOCAB, STEPS = 31, 3
OPTIMIZERS = ("muonh", "sso", "adamw")
WORDS = (
    "scale.width=16",
    "scale.depth=2",
    "scale.tokens=768",
    "scale.batch_tokens=256",
    "model.context=32",
    "model.head_size=8",
    "model.mlp_ratio=3",
    "model.gated_attention=true",
    "model.rope_base=50",
    "data.held_out_tokens=64",
    "seed=3",
    "base_lr=0.02",
    "precision=float32",
    "runtime.device=cpu",
    "runtime.micro_batch_tokens=128",
    "schedule.warmup_steps=1",
    "schedule.final=0.3",
    "optim.clip=0.05",
    "parametrization.reference_width=8",
    "parametrization.reference_depth=1",
    "parametrization.reference_tokens=512",
    "parametrization.reference_batch_tokens=128",
    "parametrization.token_exponent_on=hidden",
    "parametrization.width_exponent=-0.7",
    "parametrization.init_embedding_std=0.1",
    "parametrization.init_unembedding_std=0.2",
)
UNLUCKY = "blocks.1.mlp.up.weight"


def config(*words: str) -> Config:
    return resolve(compose([*WORDS, *words]))


def corpus() -> Corpus:
    return zipf_corpus(6144, 2048)


@dataclass
class ByHand:
    """A run, spelled out step by step.

    `algorithms` differ from the optimizer's own; `norms` are those of the gradient before clipping.
    """

    made: Config
    algorithms: dict[Role, str] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        made = self.made
        net = Transformer(made.scale, made.shape(VOCAB), made.parametrization, made.model.rope_base)
        self.net = net.initialize(made.seed)
        self.peaks: dict[Role, float] = {
            role: made.parametrization.effective_lr(role, made.scale, made.base_lr).lr
            for role in ROLES
            if role in roles_of(net).values()
        }
        self.optimizer = build(
            net, made.optim.name, lr=self.peaks, algorithms=self.algorithms, options=made.optim.options
        )
        self.optimizer.project_()
        self.batches = Batches(corpus(), made.model.context, 8, made.seed)

    def gradients(self, x_BT: Tensor, y_BT: Tensor) -> tuple[float, list[Tensor]]:
        loss = F.cross_entropy(self.net(x_BT).flatten(0, 1), y_BT.flatten())
        return loss.item(), list(torch.autograd.grad(loss, list(self.net.parameters())))

    def step(self, number: int, damaged: str | None = None) -> float:
        """The mean of the losses of both halves; `damaged` is a parameter whose gradient holds a NaN."""
        x_BT, y_BT = self.batches.batch(number)
        first, one = self.gradients(x_BT[:4], y_BT[:4])
        second, two = self.gradients(x_BT[4:], y_BT[4:])
        mean = {
            name: (a + b) / 2 for (name, _), a, b in zip(self.net.named_parameters(), one, two, strict=True)
        }
        norm = math.sqrt(sum(float(g.double().square().sum()) for name, g in mean.items() if name != damaged))
        self.norms.append(norm)
        clip = self.made.optim.clip
        scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for name, p in self.net.named_parameters():
            p.grad = torch.full_like(p, float("nan")) if name == damaged else mean[name] * scale
        for group in self.optimizer.param_groups:
            group["lr"] = self.peaks[group["role"]] * self.made.schedule.factor(number, STEPS)
        self.optimizer.step()
        return (first + second) / 2


def follow(trainer: Trainer, hand: ByHand) -> None:
    """Let both do every step, and compare them after each."""
    assert_same(trainer.model, hand.net)
    for number in range(STEPS):
        before = copies(hand.net)
        loss = hand.step(number)
        assert float(trainer.train_step()) == pytest.approx(loss, rel=1e-6)
        assert_same(trainer.model, hand.net)
        for name, p in hand.net.named_parameters():
            moved = (p - before[name]).norm() / before[name].norm()
            assert moved > 1e-3, f"{name} hardly moves in step {number}"


def copies(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_same(got: torch.nn.Module, want: torch.nn.Module) -> None:
    other = dict(want.named_parameters())
    for name, p in got.named_parameters():
        torch.testing.assert_close(
            p, other[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("clip", [0.05, 1000.0, 0.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_steps_are_those_by_hand(optimizer, clip):
    made = config(f"optim={optimizer}", f"optim.clip={clip}")
    follow(Trainer(made, corpus()), ByHand(made))


def test_other_algorithms_and_options_are_followed():
    words = ("optim.algorithms.unembedding=adamw", "optim.options.muonh.momentum=0.5")
    made = config("optim=muonh", *words, "optim.options.adamw.weight_decay=0.3")
    assert made.optim.options["muonh"]["momentum"] == 0.5
    follow(Trainer(made, corpus()), ByHand(made, {"unembedding": "adamw"}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_settings_make_every_piece_show(optimizer):
    made = config(f"optim={optimizer}")
    hand = ByHand(made)
    for number in range(STEPS):
        hand.step(number)
    assert min(hand.norms) > 2 * made.optim.clip
    assert max(hand.norms) > 1.02 * min(hand.norms)
    assert len({hand.peaks["hidden"], hand.peaks["embedding"], made.base_lr}) == 3
    assert len({made.schedule.factor(s, STEPS) for s in range(STEPS)}) == STEPS


def damage(trainer: Trainer, steps: set[int]) -> None:
    """Put one NaN into the gradient of UNLUCKY at these steps."""

    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if trainer.step in steps:
            gradient[0, 0] = float("nan")
        return gradient

    dict(trainer.model.named_parameters())[UNLUCKY].register_hook(hook)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_damaged_gradient_leaves_its_own_matrix_alone_and_no_other(optimizer):
    made = config(f"optim={optimizer}", "optim.clip=0")
    hurt, whole = Trainer(made, corpus()), Trainer(made, corpus())
    damage(hurt, {1})
    hurt.train_step()
    whole.train_step()
    before = copies(hurt.model)
    hurt.train_step()
    whole.train_step()
    healthy = copies(whole.model)
    for name, p in hurt.model.named_parameters():
        assert torch.equal(p, before[name] if name == UNLUCKY else healthy[name]), name
    assert hurt.optimizer.skipped == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_damaged_gradient_counts_as_zero_when_the_others_are_clipped(optimizer):
    made = config(f"optim={optimizer}")
    trainer, hand = Trainer(made, corpus()), ByHand(made)
    damage(trainer, {1})
    for number in range(STEPS):
        before = copies(trainer.model)[UNLUCKY]
        trainer.train_step()
        hand.step(number, UNLUCKY if number == 1 else None)
        assert_same(trainer.model, hand.net)
        unchanged = torch.equal(dict(trainer.model.named_parameters())[UNLUCKY], before)
        assert unchanged == (number == 1)
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


def test_weight_decay_and_epsilon_follow_the_parametrization():
    """At twice the width and depth of the reference; the width exponent of WORDS is of the rate alone."""
    words = ["optim=adamw", "optim.options.adamw.weight_decay=0.1", "optim.options.adamw.eps=1e-6"]
    groups = Trainer(config(*words, "parametrization=completep"), corpus()).optimizer.param_groups
    found = {group["role"]: (group["weight_decay"], group["eps"]) for group in groups}
    assert found["hidden"] == pytest.approx((0.2, 0.25e-6), rel=1e-12)
    assert found["vector"] == pytest.approx((0.1, 0.25e-6), rel=1e-12)
    assert found["embedding"] == found["unembedding"] == pytest.approx((0.1, 0.5e-6), rel=1e-12)
    groups = Trainer(config("optim=muonh", "parametrization=completep"), corpus()).optimizer.param_groups
    assert {group["role"]: group.get("eps") for group in groups}["hidden"] is None


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_the_monitor_sees_the_norm_before_clipping(clip):
    trainer = Trainer(config(f"optim.clip={clip}", "scale.tokens=2816"), corpus())
    damage(trainer, set(range(10)))
    for step in range(1, 10):
        trainer.train_step()
        assert trainer.divergence.reason(step) is None
    trainer.train_step()
    assert "gradient" in (trainer.divergence.reason(10) or "")


@pytest.mark.parametrize("scale_mode", ["radius", "aspect", "original", "match_rms_adamw"])
def test_a_radius_factor_scales_radius_and_step_alike(scale_mode):
    g = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(12, 20, generator=g), torch.randn(3, 12, 20, generator=g)
    ends = []
    for factor in (1.0, 2.5):
        weight = torch.nn.Parameter(start.clone())
        optimizer = MuonSphere([weight], lr=0.1, radius_factor=factor, scale_mode=scale_mode)
        optimizer.project_()
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[1], 2.5 * ends[0], rtol=1e-4, atol=1e-5)
