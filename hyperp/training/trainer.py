"""What one training run holds in memory: data, model, optimizer, and one step of the loop.

Shape suffixes: B sequences, T positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from hyperp.config import Config
from hyperp.data.corpus import Batches, Corpus, load_corpus
from hyperp.distributed import ranks as distributed
from hyperp.distributed.parallel import Parallel
from hyperp.model.balance import LoadMonitor, balance_loss, total_load
from hyperp.model.moe import Routing
from hyperp.model.transformer import Transformer
from hyperp.monitoring.divergence import DivergenceMonitor
from hyperp.monitoring.monitors import StabilityMonitors
from hyperp.optim import GroupedOptimizer, build
from hyperp.parametrization import LearningRate
from hyperp.roles import ROLES, Role, roles_of
from hyperp.training import memory, tracking
from hyperp.training.clipping import clip_gradients

EVALUATION_TOKENS = 8192  # in one forward pass of an evaluation


def resolve_device(name: str) -> torch.device:
    """`auto` is this process's CUDA device if it has one. Raises ValueError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{torch.cuda.current_device()}"
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
        self.ranks = distributed.world()
        context, scale = config.model.context, config.scale
        tokens = config.tokens_per_rank(self.ranks.size)
        self.micro_batch = (config.runtime.micro_batch_tokens or tokens) // context
        place = {"rank": self.ranks.rank, "world": self.ranks.size}
        self.batches = Batches(self.corpus, context, scale.batch_tokens // context, config.seed, **place)
        self.held_out = self.batches.held_out(config.data.held_out_tokens)
        self.shape = config.shape(self.corpus.vocab_size)
        rule = config.parametrization
        memory.check(scale, self.shape)
        try:
            self.model = Transformer(scale, self.shape, rule, config.model.rope_base).initialize(config.seed)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
            raise ValueError(f"scale must be of a model that fits in memory, got {scale} ({error})") from None
        self.model.to(self.device)
        runtime = config.runtime
        self.parallel = Parallel(self.model, runtime.parallel, self.ranks, self.device, runtime.compile)
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
        self.stability = StabilityMonitors(
            self.model,
            self.optimizer,
            every=runtime.monitor_every,
            looks=runtime.monitor_looks,
            steps=scale.steps,
            autocast=self.autocast,
            compiled=runtime.compile,
        )

    def _build_optimizer(self) -> GroupedOptimizer:
        optim = self.config.optim
        try:
            return build(
                self.model,
                optim.name,
                lr={role: rate.lr for role, rate in self.rates.items()},
                algorithms=cast("dict[Role, str]", optim.algorithms),
                options=optim.options,
                process_group=self.parallel.group,
            )
        except ValueError as error:
            raise ValueError(f"optim: {error}") from None

    def loss(self, x_BT: Tensor, y_BT: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """Mean cross entropy, nats per token; appends the routing of layers with experts to `routings`."""
        extra = () if routings is None else (routings,)
        forward = self.parallel.forward if torch.is_grad_enabled() else self.model
        with self.autocast:
            logits_BTV = forward(x_BT.to(self.device, non_blocking=True), *extra)
        return F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.to(self.device, non_blocking=True).flatten())

    def train_step(self) -> Tensor:
        """One optimizer step. Returns the training loss over all ranks, a scalar on the device."""
        config = self.config
        x_BT, y_BT = self.batches.batch(self.step)
        total = self._backward(x_BT.split(self.micro_batch), y_BT.split(self.micro_batch))
        self.stability.before(self.step + 1)
        norm = clip_gradients(self.model.parameters(), config.optim.clip)
        factor = config.schedule.factor(self.step, config.scale.steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.stability.after(x_BT)
        self.optimizer.zero_grad(set_to_none=True)
        self.monitor.update(total, norm)
        self.step += 1
        return total

    def _backward(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Gradients of the mean over equal parts of a batch, on all ranks. Returns the mean cross entropy."""
        total = torch.zeros((), device=self.device)
        weight, loads = self.config.model.balance_weight, []
        whole_LE = self._load(xs) if weight and len(xs) > 1 else None
        for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
            routings: list[Routing] | None = None if self.loads is None else []
            with self.parallel.averaging(last=i + 1 == len(xs)):
                loss = objective = self.loss(x, y, routings)
                if routings:
                    loads.append(self.ranks.total(total_load(routings)))
                if routings and weight:
                    balance = balance_loss(routings, loads[-1] if whole_LE is None else whole_LE)
                    objective = loss + weight * balance
                (objective / len(xs)).backward()
            total += loss.detach() / len(xs)
        if self.loads is not None:
            self.loads.update(torch.stack(loads).sum(dim=0))
        return self.ranks.mean(total)

    @torch.no_grad()
    def _load(self, xs: Sequence[Tensor]) -> Tensor:
        """Tokens of every expert (L, E) over a whole batch, of all ranks, at a forward pass more.

        Without it the balance loss, and so the run, would depend on the size of the micro-batches.
        """
        loads = []
        for x in xs:
            routings: list[Routing] = []
            with self.autocast:
                self.model(x.to(self.device, non_blocking=True), routings)
            loads.append(total_load(routings))
        return self.ranks.total(torch.stack(loads).sum(dim=0))

    def balance(self) -> dict[str, list[float]]:
        """MaxVio of every layer for the log, mean since the last call; nothing for a dense model."""
        return {} if self.loads is None else {"max_vio": self.loads.look()}

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss on the held-out windows, nats per token; every run on a corpus sees the same windows.

        Ranks take turns at equal parts, and as many each, since a sharded model needs all of them: who has no
        part left does the last one again, for nothing.
        """
        x_BT, y_BT = self.held_out
        size = max(1, EVALUATION_TOKENS // self.config.model.context)
        parts, losses = list(zip(x_BT.split(size), y_BT.split(size), strict=True)), []
        for first in range(0, len(parts), self.ranks.size):
            number = first + self.ranks.rank
            x, y = parts[min(number, len(parts) - 1)]
            losses.append(self.loss(x, y) * (len(x) if number < len(parts) else 0))
        return float(self.ranks.total(torch.stack(losses).double().sum())) / len(x_BT)

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on with the same bits, of a run that one process does."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return self.progress() | tensors

    def progress(self) -> dict[str, Any]:
        """The part of the state that is small, and the same on all ranks."""
        return {
            "made_with": self.made_with(),
            "step": self.step,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "monitor": self.monitor.state,
            "unlogged": self.unlogged,
            "stability": self.stability.state,
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
        self.check(state)
        if self.parallel.sharded:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.model, state["model"], options=options)
        else:
            self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.restore_progress(state)

    def check(self, progress: dict[str, Any]) -> None:
        """Raise ValueError unless a checkpoint is of this run, text and precision."""
        for name, value in self.made_with().items():
            saved = progress["made_with"].get(name)
            if saved != value:
                raise ValueError(
                    f"{name} must be what the checkpoint was made with, {saved}, got {value}; "
                    "remove the run's folder to start over"
                )

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on from `progress()`."""
        self.monitor.state = progress["monitor"].to(self.device)
        self.unlogged = [loss.to(self.device) for loss in progress.get("unlogged", [])]
        self.stability.state = progress.get("stability", self.stability.state)
        if self.loads is not None:
            self.loads.state_5L = progress["loads"].to(self.device)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.resumed = progress["resumed"] + 1
