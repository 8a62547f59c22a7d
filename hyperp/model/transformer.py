"""Decoder: pre-norm RMSNorm, rotary grouped-query attention with QK-norm, SwiGLU, untied unembedding.

The MLP of a dense model is a single SwiGLU; a mixture of experts takes its place (`hyperp.model.moe`).

Shape suffixes
    B  sequences in a batch      T  positions (context)      D  width (d_model)
    H  query heads               K  key-value heads          N  head size
    F  hidden width of the MLP   V  vocabulary

Every matrix is a parameter of its own, (d_out, d_in), so that each has its own sphere. Every module declares
the roles of its parameters; optimizers and parametrizations read the role, never the name.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperp.flops import Experts, Shape, experts_of
from hyperp.model.moe import MoE, Routing
from hyperp.parametrization import Parametrization
from hyperp.roles import Role
from hyperp.scale import Scale

NORM_EPS = 1e-12  # embeddings start at a std of 1e-4 (arXiv 2603.28743): the mean square is 1e-8


class Embedding(nn.Module):
    """Token ids (..., T) -> vectors (..., T, D)."""

    param_roles: ClassVar[dict[str, Role]] = {"weight": "embedding"}

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.embedding(ids_BT, self.weight)


class Linear(nn.Module):
    """A hidden matrix without bias: (..., d_in) -> (..., d_out)."""

    param_roles: ClassVar[dict[str, Role]] = {"weight": "hidden"}

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Unembedding(Linear):
    """The matrix that turns the last hidden state into logits."""

    param_roles: ClassVar[dict[str, Role]] = {"weight": "unembedding"}


class RMSNorm(nn.Module):
    """RMS normalisation over the last dimension with a learned gain."""

    param_roles: ClassVar[dict[str, Role]] = {"weight": "vector"}

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


def rotary_tables(positions: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Tables (T, N), float32, of rotary embedding (arXiv 2104.09864): (cos, cos) and (-sin, sin)."""
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHN: Tensor, cos_TN: Tensor, sin_TN: Tensor) -> Tensor:
    """Rotate the two halves (a, b) of every head by its position: (a cos - b sin, b cos + a sin)."""
    cos, sin = cos_TN[:, None, :].to(x_BTHN.dtype), sin_TN[:, None, :].to(x_BTHN.dtype)
    return x_BTHN * cos + x_BTHN.roll(x_BTHN.shape[-1] // 2, dims=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention, optionally gated per head by its input (arXiv 2505.06708)."""

    def __init__(self, width: int, shape: Shape):
        super().__init__()
        self.shape = shape
        n = shape.head_size
        self.query = Linear(width, shape.query_heads * n)
        self.key = Linear(width, shape.kv_heads * n)
        self.value = Linear(width, shape.kv_heads * n)
        self.out = Linear(shape.query_heads * n, width)
        self.gate = Linear(width, shape.query_heads) if shape.gated_attention else None
        self.query_norm = RMSNorm(n) if shape.qk_norm else None
        self.key_norm = RMSNorm(n) if shape.qk_norm else None

    def queries_and_keys(self, x_BTD: Tensor, cos_TN: Tensor, sin_TN: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, T, H, N) and keys (B, T, K, N); the scores are q.k / sqrt(N)."""
        s = self.shape
        q_BTHN = self.query(x_BTD).unflatten(-1, (s.query_heads, s.head_size))
        k_BTKN = self.key(x_BTD).unflatten(-1, (s.kv_heads, s.head_size))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHN, k_BTKN = self.query_norm(q_BTHN), self.key_norm(k_BTKN)
        return rotate(q_BTHN, cos_TN, sin_TN), rotate(k_BTKN, cos_TN, sin_TN)

    def forward(self, x_BTD: Tensor, cos_TN: Tensor, sin_TN: Tensor) -> Tensor:
        s = self.shape
        q_BTHN, k_BTKN = self.queries_and_keys(x_BTD, cos_TN, sin_TN)
        v_BTKN = self.value(x_BTD).unflatten(-1, (s.kv_heads, s.head_size))
        y_BHTN = F.scaled_dot_product_attention(
            q_BTHN.transpose(1, 2),
            k_BTKN.transpose(1, 2),
            v_BTKN.transpose(1, 2),
            is_causal=True,
            enable_gqa=s.kv_heads != s.query_heads,
        )
        y_BTHN = y_BHTN.transpose(1, 2)
        if self.gate is not None:
            y_BTHN = y_BTHN * torch.sigmoid(self.gate(x_BTD)).unsqueeze(-1)
        return self.out(y_BTHN.flatten(-2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = Linear(width, hidden)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = F.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(h_BTF)


class Block(nn.Module):
    """x + m attention(norm x), then x + m mlp(norm x), with m the parametrization's residual multiplier.

    Returns the routing of its experts beside the output, or None if it has a dense MLP.
    """

    def __init__(self, width: int, shape: Shape, residual_multiplier: float, experts: Experts | None = None):
        super().__init__()
        self.residual_multiplier = residual_multiplier
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, shape)
        self.mlp_norm = RMSNorm(width)
        if experts is None:
            self.mlp: MLP | MoE = MLP(width, shape.mlp_ratio * width)
        else:
            shared = MLP(width, experts.hidden) if experts.shared else None
            self.mlp = MoE(width, experts, shape.sqrt_gate, shared)

    def forward(self, x_BTD: Tensor, cos_TN: Tensor, sin_TN: Tensor) -> tuple[Tensor, Routing | None]:
        m = self.residual_multiplier
        x_BTD = torch.add(x_BTD, self.attention(self.attention_norm(x_BTD), cos_TN, sin_TN), alpha=m)
        y_BTD, routing = self.mlp(self.mlp_norm(x_BTD)), None
        if isinstance(self.mlp, MoE):
            y_BTD, routing = y_BTD
        return torch.add(x_BTD, y_BTD, alpha=m), routing


class Transformer(nn.Module):
    """Decoder of one Scale: ids (B, T) -> logits (B, T, V) in float32.

    Weights are uninitialised until `initialize`. Raises ValueError for experts that do not divide the MLP.
    """

    cos_TN: Tensor
    sin_TN: Tensor

    def __init__(self, scale: Scale, shape: Shape, rule: Parametrization, rope_base: float = 10_000.0):
        super().__init__()
        if not (math.isfinite(rope_base) and rope_base > 0):
            raise ValueError(f"rope_base must be finite and positive, got {rope_base}")
        self.shape, self.rule, self.width = shape, rule, scale.width
        self.logit_multiplier = rule.logit_multiplier(scale.width)
        self.embedding = Embedding(shape.vocab, scale.width)
        multiplier = rule.residual_multiplier(scale.depth)
        experts = experts_of(scale, shape.mlp_ratio, shape.shared_expert)
        self.blocks = nn.ModuleList(
            Block(scale.width, shape, multiplier, experts) for _ in range(scale.depth)
        )
        self.norm = RMSNorm(scale.width)
        self.unembedding = Unembedding(scale.width, shape.vocab)
        cos, sin = rotary_tables(shape.context, shape.head_size, rope_base)
        self.register_buffer("cos_TN", cos, persistent=False)
        self.register_buffer("sin_TN", sin, persistent=False)

    def forward(self, ids_BT: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """Logits (B, T, V), float32; appends the routing of every layer with experts to `routings`."""
        t = ids_BT.shape[-1]
        cos_TN, sin_TN = self.cos_TN[:t], self.sin_TN[:t]
        x_BTD = self.embedding(ids_BT)
        for block in self.blocks:
            x_BTD, routing = block(x_BTD, cos_TN, sin_TN)
            if routings is not None and routing is not None:
                routings.append(routing)
        logits_BTV = self.unembedding(self.norm(x_BTD)).float()
        return logits_BTV if self.logit_multiplier == 1.0 else logits_BTV * self.logit_multiplier

    @torch.no_grad()
    def initialize(self, seed: int) -> "Transformer":
        """Draw all weights with the rule's init std; a seed gives the same weights on every device.

        Hidden matrices are uniform, like Kaiming's with a = sqrt(5) (arXiv 2603.28743); embedding and
        unembedding are normal.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            for name, role in getattr(module, "param_roles", {}).items():
                weight = getattr(module, name)
                if role == "vector":
                    weight.fill_(1.0)
                    continue
                std = self.rule.init_std(role, d_in=weight.shape[-1], width=self.width)
                draw = torch.empty(weight.shape)
                if role in ("embedding", "unembedding"):
                    draw.normal_(std=std, generator=generator)
                else:
                    draw.uniform_(-std * 3**0.5, std * 3**0.5, generator=generator)
                weight.copy_(draw)
        return self
