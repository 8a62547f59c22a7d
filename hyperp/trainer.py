"""What one training run holds in memory: data, model, optimizer, and one step of the loop.

Shape suffixes: B sequences, T positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperp import tracking
from hyperp.clipping import clip_gradients
from hyperp.config import Config
from hyperp.data import Batches, Corpus, load_corpus
from hyperp.model.balance import LoadMonitor, balance_loss, total_load
from hyperp.model.moe import Routing
from hyperp.model.transformer import Transformer
from hyperp.optim import GroupedOptimizer, build
from hyperp.parametrization import LearningRate
from hyperp.roles import ROLES, Role, roles_of
from hyperp.stability import DivergenceMonitor

EVALUATION_TOKENS = 8192  # in one forward pass of an evaluation


def resolve_device(name: str) -> torch.device:
    """`auto` is the CUDA device if there is one. Raises ValueError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"runtime.device must be auto or a device of this machine, got {name!r} ({error})"
        ) from None
    return device


class Trainer:
    """All that one run holds in memory: data, model, optimizer. Building one writes nothing.

    Raises ValueError, naming the field, for a configuration that cannot be run here.
    """

    def __init__(self, config: Config, corpus: Corpus | None = None):
        tracking.check(config)
        self.config, self.device = config, resolve_device(config.runtime.device)
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        self.corpus = corpus or load_corpus(config.data)
        context, scale = config.model.context, config.scale
        self.batches = Batches(self.corpus, context, scale.batch_tokens // context, config.seed)
        self.held_out = self.batches.held_out(config.data.held_out_tokens)
        self.shape = config.shape(self.corpus.vocab_size)
        rule = config.parametrization
        try:
            self.model = Transformer(scale, self.shape, rule, config.model.rope_base).initialize(config.seed)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
            raise ValueError(f"scale must be of a model that fits in memory, got {scale} ({error})") from None
        self.model.to(self.device)
        present = set(roles_of(self.model).values())
        self.rates: dict[Role, LearningRate] = {
            role: rule.effective_lr(role, scale, config.base_lr) for role in ROLES if role in present
        }
        self.optimizer = self._build_optimizer()
        self.optimizer.project_()
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.monitor = DivergenceMonitor(self.corpus.vocab_size, self.device)
        experts = scale.granularity > 1 or scale.sparsity > 1
        self.loads = LoadMonitor(scale.depth, self.device) if experts else None
        self.step, self.seconds, self.resumed = 0, 0.0, 0
        self.unlogged: list[Tensor] = []  # training losses since the last line of the log
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "bfloat16" if self.device.type == "cuda" else "float32"
        bf16 = self.precision == "bfloat16"
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)
        if config.runtime.compile:
            torch._dynamo.reset()  # a process that does run after run would reach the limit of recompilations
            self.model.compile()

    def _build_optimizer(self) -> GroupedOptimizer:
        optim = self.config.optim
        try:
            return build(
                self.model,
                optim.name,
                lr={role: rate.lr for role, rate in self.rates.items()},
                algorithms=cast("dict[Role, str]", optim.algorithms),
                options=optim.options,
            )
        except ValueError as error:
            raise ValueError(f"optim: {error}") from None

    def loss(self, x_BT: Tensor, y_BT: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """Mean cross entropy, nats per token; appends the routing of layers with experts to `routings`."""
        extra = () if routings is None else (routings,)
        with self.autocast:
            logits_BTV = self.model(x_BT.to(self.device, non_blocking=True), *extra)
        return F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.to(self.device, non_blocking=True).flatten())

    def train_step(self) -> Tensor:
        """One optimizer step. Returns the training loss, a scalar on the device."""
        config = self.config
        x_BT, y_BT = self.batches.batch(self.step)
        size = (config.runtime.micro_batch_tokens or config.scale.batch_tokens) // config.model.context
        total = self._backward(x_BT.split(size), y_BT.split(size))
        norm = clip_gradients(self.model.parameters(), config.optim.clip)
        factor = config.schedule.factor(self.step, config.scale.steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.monitor.update(total, norm)
        self.step += 1
        return total

    def _backward(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Gradients of the mean over equal parts of a batch. Returns the mean cross entropy."""
        total = torch.zeros((), device=self.device)
        weight, loads = self.config.model.balance_weight, []
        whole_LE = self._load(xs) if weight and len(xs) > 1 else None
        for x, y in zip(xs, ys, strict=True):
            routings: list[Routing] | None = None if self.loads is None else []
            loss = objective = self.loss(x, y, routings)
            if routings:
                loads.append(total_load(routings))
            if routings and weight:
                balance = balance_loss(routings, loads[-1] if whole_LE is None else whole_LE)
                objective = loss + weight * balance
            (objective / len(xs)).backward()
            total += loss.detach() / len(xs)
        if self.loads is not None:
            self.loads.update(torch.stack(loads).sum(dim=0))
        return total

    @torch.no_grad()
    def _load(self, xs: Sequence[Tensor]) -> Tensor:
        """Tokens of every expert (L, E) over a whole batch, at a forward pass more.

        Without it the balance loss, and so the run, would depend on the size of the micro-batches.
        """
        loads = []
        for x in xs:
            routings: list[Routing] = []
            with self.autocast:
                self.model(x.to(self.device, non_blocking=True), routings)
            loads.append(total_load(routings))
        return torch.stack(loads).sum(dim=0)

    def balance(self) -> dict[str, list[float]]:
        """MaxVio of every layer for the log, mean since the last call; nothing for a dense model."""
        return {} if self.loads is None else {"max_vio": self.loads.look()}

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss on the held-out windows, nats per token; every run on a corpus sees the same windows."""
        x_BT, y_BT = self.held_out
        size = max(1, EVALUATION_TOKENS // self.config.model.context)
        losses = [self.loss(x, y) * len(x) for x, y in zip(x_BT.split(size), y_BT.split(size), strict=True)]
        return float(torch.stack(losses).double().sum()) / len(x_BT)

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on with the same bits."""
        return {
            "made_with": self.made_with(),
            "step": self.step,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state,
            "unlogged": self.unlogged,
            **({} if self.loads is None else {"loads": self.loads.state_5L}),
        }

    def made_with(self) -> dict[str, str]:
        """What has to be the same when the run goes on, or its result would belong to no configuration."""
        return {
            "run_id": self.config.run_id(),
            "data.source": f"{self.corpus.name}, text with SHA-256 {self.corpus.digest}",
            "precision": self.precision,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises ValueError if the text or the precision is not what it was."""
        for name, value in self.made_with().items():
            saved = state["made_with"].get(name)
            if saved != value:
                raise ValueError(
                    f"{name} must be what the checkpoint was made with, {saved}, got {value}; "
                    "remove the run's folder to start over"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.state = state["monitor"].to(self.device)
        self.unlogged = [loss.to(self.device) for loss in state.get("unlogged", [])]
        if self.loads is not None:
            self.loads.state_5L = state["loads"].to(self.device)
        self.step, self.seconds, self.resumed = state["step"], state["seconds"], state["resumed"] + 1
