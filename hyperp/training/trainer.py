"""What one training run holds in memory (data, model, optimizer), and one step of its loop.

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
from hyperp.distributed.parallel import ParallelModel
from hyperp.distributed.ranks import current_ranks
from hyperp.model.balance import LoadMonitor, balance_loss, stack_loads
from hyperp.model.moe import Routing
from hyperp.model.transformer import Transformer
from hyperp.monitoring.divergence import DivergenceMonitor
from hyperp.monitoring.monitors import StabilityMonitors
from hyperp.optim import GroupedOptimizer, build
from hyperp.parametrization import LearningRate
from hyperp.roles import ROLES, Role, roles_of
from hyperp.training import tracking
from hyperp.training.clipping import clip_gradients
from hyperp.training.memory import check_memory

EVALUATION_TOKENS = 8192  # in one forward pass of an evaluation


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is this process's CUDA device if it has one, else the CPU.

    Raises ValueError if this machine has no such device.
    """
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
    """Everything that one run holds in memory: data, model, optimizer. Building one writes no files.

    Raises ValueError, naming the field, for a configuration that cannot be run here.
    """

    def __init__(self, config: Config, corpus: Corpus | None = None):
        tracking.require_wandb(config)
        self.config, self.device = config, resolve_device(config.runtime.device)
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        self.corpus = corpus or load_corpus(config.data)
        self.ranks = current_ranks()
        context, scale = config.model.context, config.scale
        tokens = config.tokens_per_rank(self.ranks.size)
        self.micro_batch = (config.runtime.micro_batch_tokens or tokens) // context
        place = {"rank": self.ranks.rank, "world": self.ranks.size}
        self.batches = Batches(self.corpus, context, scale.batch_tokens // context, config.seed, **place)
        self.held_out = self.batches.held_out(config.data.held_out_tokens)
        self.shape = config.shape(self.corpus.vocab_size)
        rule = config.parametrization
        check_memory(scale, self.shape)
        try:
            self.model = Transformer(scale, self.shape, rule, config.model.rope_base).initialize(config.seed)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
            raise ValueError(f"scale must be of a model that fits in memory, got {scale} ({error})") from None
        self.model.to(self.device)
        runtime = config.runtime
        self.parallel = ParallelModel(self.model, runtime.parallel, self.ranks, self.device, runtime.compile)
        present = set(roles_of(self.model).values())
        self.rates: dict[Role, LearningRate] = {
            role: rule.effective_lr(role, scale, config.base_lr) for role in ROLES if role in present
        }
        self.optimizer = self._build_optimizer()
        self.optimizer.project_()
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.divergence = DivergenceMonitor(self.corpus.vocab_size, self.device)
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
        optim, rule, scale = self.config.optim, self.config.parametrization, self.config.scale
        try:
            optimizer = build(
                self.model,
                optim.name,
                lr={role: rate.lr for role, rate in self.rates.items()},
                algorithms=cast("dict[Role, str]", optim.algorithms),
                options=optim.options,
                process_group=self.parallel.group,
            )
        except ValueError as error:
            raise ValueError(f"optim: {error}") from None
        for group in optimizer.param_groups:
            for option, factor in rule.option_factors(group["role"], scale).items():
                if option in group:
                    group[option] *= factor
        return optimizer

    def loss(self, x_BT: Tensor, y_BT: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """Mean cross entropy, nats per token; adds the routing of each layer with experts to `routings`."""
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
        self.stability.before_step(self.step + 1)
        norm = clip_gradients(self.model.parameters(), config.optim.clip)
        factor = config.schedule.factor(self.step, config.scale.steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.stability.after_step(x_BT)
        self.optimizer.zero_grad(set_to_none=True)
        self.divergence.update(total, norm)
        self.step += 1
        return total

    def _backward(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Compute the gradient of the mean loss over equal parts of a batch, averaged over the ranks.

        Returns the mean cross entropy over all ranks, nats per token, without the balance loss.
        """
        total = torch.zeros((), device=self.device)
        weight, loads = self.config.model.balance_weight, []
        whole_LE = self._batch_load(xs) if weight and len(xs) > 1 else None
        for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
            routings: list[Routing] | None = None if self.loads is None else []
            with self.parallel.gradient_sync(last=i + 1 == len(xs)):
                loss = objective = self.loss(x, y, routings)
                if routings:
                    loads.append(self.ranks.total(stack_loads(routings)))
                if routings and weight:
                    balance = balance_loss(routings, loads[-1] if whole_LE is None else whole_LE)
                    objective = loss + weight * balance
                (objective / len(xs)).backward()
            total += loss.detach() / len(xs)
        if self.loads is not None:
            self.loads.update(torch.stack(loads).sum(dim=0))
        return self.ranks.mean(total)

    @torch.no_grad()
    def _batch_load(self, xs: Sequence[Tensor]) -> Tensor:
        """Tokens of every expert (L, E) over the whole batch of all ranks, at the cost of one forward pass.

        Without them the balance loss, and so the run, would depend on the size of the micro-batches.
        """
        loads = []
        for x in xs:
            routings: list[Routing] = []
            with self.autocast:
                self.model(x.to(self.device, non_blocking=True), routings)
            loads.append(stack_loads(routings))
        return self.ranks.total(torch.stack(loads).sum(dim=0))

    def balance_metrics(self) -> dict[str, list[float]]:
        """MaxVio of every layer for the log, mean since the last call; empty for a dense model."""
        return {} if self.loads is None else {"max_vio": self.loads.take_mean()}

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss on the held-out windows, nats per token; every run on a corpus sees the same windows.

        The ranks take equal parts in turn. A sharded model needs all ranks in every forward pass, so a rank
        that has no part left computes the last one again and discards it.
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
        """What a later process needs to resume to the same bits, of a run with a single rank."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return self.progress() | tensors

    def progress(self) -> dict[str, Any]:
        """The part of the state that is small and the same on all ranks."""
        return {
            "made_with": self.made_with(),
            "step": self.step,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "monitor": self.divergence.state,
            "unlogged": self.unlogged,
            "stability": self.stability.state,
            **({} if self.loads is None else {"loads": self.loads.state_5L}),
        }

    def made_with(self) -> dict[str, str]:
        """What must be the same when the run resumes, or its result would belong to no configuration."""
        return {
            "run_id": self.config.run_id(),
            "data.source": f"{self.corpus.name}, text with SHA-256 {self.corpus.digest}",
            "precision": self.precision,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state()`. Raises ValueError if it is of another run, text or precision."""
        self.check_checkpoint(state)
        if self.parallel.sharded:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.model, state["model"], options=options)
        else:
            self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.restore_progress(state)

    def check_checkpoint(self, progress: dict[str, Any]) -> None:
        """Raise ValueError unless a checkpoint is of this run, this text and this precision."""
        for name, value in self.made_with().items():
            saved = progress["made_with"].get(name)
            if saved != value:
                raise ValueError(
                    f"{name} must be that of the checkpoint, {saved}, got {value}; "
                    "remove the run's folder to start over"
                )

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Take over the state that `progress()` returned."""
        self.divergence.state = progress["monitor"].to(self.device)
        self.unlogged = [loss.to(self.device) for loss in progress.get("unlogged", [])]
        self.stability.state = progress.get("stability", self.stability.state)
        if self.loads is not None:
            self.loads.state_5L = progress["loads"].to(self.device)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.resumed = progress["resumed"] + 1
