"""How rates, weight decay, epsilon, initialisation and multipliers depend on a run's size: rules, as tables.

Every learning rate is

    lr = base_lr (B/B0)^batch (d/d0)^depth (T/T0)^token (w/w0)^width

with batch, depth, training tokens and width of the run relative to a reference run, for which base_lr was
tuned. The weight decay and Adam's epsilon are multiplied by such products too, with exponents of their own.
The rules differ only in the exponents of `TABLES`, and each exponent is a field of `Parametrization`
that can be set by itself. An exponent of 0 gives a factor of exactly 1.

hyperp
    arXiv 2603.28743, for sphere optimizers. sqrt(B), 1/sqrt(d), T^-0.32 and no width factor; residual
    branches times 1/sqrt(2 d). Its code (microsoft/ArchScale, pretrain.py) applies one global rate to every
    role; its Table 1 has T on hidden matrices only, and 1/sqrt(d) alone on embeddings and unembedding.
    `token_exponent_on` chooses.
raw
    The model of hyperp, with every factor of the learning rate 1: for experiments that measure an exponent.
mup++
    arXiv 2507.06607, for AdamW, as ArchScale runs it (pretrain.py: setup and get_param_groups;
    lit_gpt/model.py: GPT and Block). sqrt(B) and 1/sqrt(d) on every role; 1/w on hidden matrices, while
    embeddings, unembedding and vectors keep the global rate; logits times w0/w; residual branches times
    1/sqrt(2 d). In that code width is proportional to depth, so it writes d0/d for what is w0/w here. It also
    sets the weight decay of embeddings, unembedding and vectors to zero; here that is an option of the
    optimizer.
mup
    arXiv 2203.03466, Table 8, for Adam. 1/w on hidden matrices, logits times w0/w, the rest constant; the
    initial std of the unembedding must not depend on width. No rule for depth, batch or tokens.
completep
    arXiv 2505.01618, Table 1 with alpha = 1, for AdamW. 1/w on the rates of hidden matrices; residual
    branches times d0/d, so that no rate depends on depth; logits times w0/w; weight decay of hidden matrices
    times w; epsilon times 1/w, and inside the blocks times 1/d too (the final norm counts as inside here).
    The authors' code (EleutherAI/nanoGPT-mup, branch completep, configure_optimizers in model.py) gives
    embeddings the epsilon of the blocks. No rule for batch or tokens. Another alpha is
    residual_exponent = -alpha, depth_exponent = alpha - 1 and epsilon_depth_exponent = -alpha; the table
    has no depth factor on embedding and unembedding, while depth_exponent here is of every role.
completedp
    arXiv 2512.22382, Complete(d)P, for AdamW: completep, and with n = (T/T0) / (B/B0) times the steps, rates
    and weight decay times n^-1/2 and epsilon times n^1/2, on every role. The paper moves the factor of the
    logits into initialisation and rate of the unembedding, which under Adam is the same model. Three of its
    rules are not here: 1 - beta of both moments times 1/n (betas are constants), scales for the gains of QK
    normalisation, and multipliers of single modules. The rules are those on which several public summaries
    and implementations of its Table 1 agree; the paper itself has not been compared line by line.
standard
    Every factor is 1; the initialisation is HyperP's, as in every rule here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from hyperp.scale import Scale
from hyperp.validation import Finite, Positive, Whole, is_finite, validated

if TYPE_CHECKING:
    from hyperp.roles import Role

RuleName = Literal["hyperp", "raw", "mup++", "mup", "completep", "completedp", "standard"]
ExponentOn = Literal["all", "hidden"]
ResidualFrom = Literal["one branch", "reference"]

MATRIX_ROLES = ("hidden", "router", "expert")
OTHER_ROLES = ("embedding", "unembedding", "vector")
BLOCK_ROLES = (*MATRIX_ROLES, "vector")
FACTORS = ("batch", "depth", "tokens", "width")
INVERSE_ROOT_WIDTH = "1/sqrt(width)"

# For every rule: the sizes of the depth-8 model of arXiv 2603.28743 and the initialisation of its code.
REFERENCE: dict[str, Any] = {
    "reference_width": 1024,
    "reference_depth": 8,
    "reference_tokens": 10_400_000_000,
    "reference_batch_tokens": 2**21,
    "token_exponent_on": "all",
    "init_hidden_gain": 1 / math.sqrt(3),
    "init_hidden_exponent": -0.5,
    "init_embedding_std": 1e-4,
    "init_unembedding_std": 0.02,
}

EXPONENTS = (
    "batch_exponent",
    "depth_exponent",
    "token_exponent",
    "width_exponent",
    "residual_exponent",
    "logit_exponent",
)
# Of weight decay and epsilon: zero in the rules that say nothing about them. These fields came later than the
# first runs, whose ids stay as long as they have the values here; see `hyperp.config.Config.identity`.
LATER_FIELDS: dict[str, Any] = {
    "residual_from": "one branch",
    "weight_decay_batch_exponent": 0.0,
    "weight_decay_token_exponent": 0.0,
    "weight_decay_width_exponent": 0.0,
    "epsilon_batch_exponent": 0.0,
    "epsilon_depth_exponent": 0.0,
    "epsilon_token_exponent": 0.0,
    "epsilon_width_exponent": 0.0,
}
# Both CompleteP rules: with depth (residual branches and epsilon) and width. The authors' code starts
# embeddings as wide as the rest, at 0.02.
COMPLETE: dict[str, Any] = {
    "residual_from": "reference",
    "weight_decay_width_exponent": 1.0,
    "epsilon_depth_exponent": -1.0,
    "epsilon_width_exponent": -1.0,
    "init_embedding_std": 0.02,
}
STEPS: dict[str, Any] = {
    "weight_decay_batch_exponent": 0.5,
    "weight_decay_token_exponent": -0.5,
    "epsilon_batch_exponent": -0.5,
    "epsilon_token_exponent": 0.5,
}

TABLES: dict[RuleName, dict[str, Any]] = {
    #                                    batch depth  token  width residual logit
    "hyperp": dict(zip(EXPONENTS, (0.5, -0.5, -0.32, 0.0, -0.5, 0.0), strict=True)),
    "raw": dict(zip(EXPONENTS, (0.0, 0.0, 0.00, 0.0, -0.5, 0.0), strict=True)),
    "mup++": dict(zip(EXPONENTS, (0.5, -0.5, 0.00, -1.0, -0.5, -1.0), strict=True)),
    "mup": dict(zip(EXPONENTS, (0.0, 0.0, 0.00, -1.0, 0.0, -1.0), strict=True)),
    "completep": dict(zip(EXPONENTS, (0.0, 0.0, 0.00, -1.0, -1.0, -1.0), strict=True)) | COMPLETE,
    "completedp": dict(zip(EXPONENTS, (0.5, 0.0, -0.50, -1.0, -1.0, -1.0), strict=True)) | COMPLETE | STEPS,
    "standard": dict(zip(EXPONENTS, (0.0, 0.0, 0.00, 0.0, 0.0, 0.0), strict=True)),
}


@dataclass(frozen=True)
class LearningRate:
    """The peak learning rate of one role: `lr` is `base_lr` times every factor.

    `factors` always has the keys batch, depth, tokens and width, in this order; a factor that does not apply
    is 1.0.
    """

    role: Role
    base_lr: float
    factors: dict[str, float]
    lr: float


def _unembedding_std(value: Any) -> float | str:
    if value == INVERSE_ROOT_WIDTH:
        return value
    if is_finite(value) and value > 0:
        return float(value)
    raise ValueError(f'must be finite and positive or "{INVERSE_ROOT_WIDTH}", got {value!r}')


@validated
class Parametrization:
    """One rule. A field that is None is replaced by its value in the table of the rule.

    Args:
        name: hyperp, raw, mup++, mup, completep, completedp or standard.
        reference_width, reference_depth, reference_tokens, reference_batch_tokens: the sizes at which every
            factor is 1.
        batch_exponent, depth_exponent, token_exponent: of the learning rate.
        token_exponent_on: all, or hidden. With hidden, only hidden matrices, routers and experts get the
            batch and token factors; the other roles get the depth factor only.
        width_exponent: of the learning rate of hidden matrices, routers and experts only.
        residual_exponent: residual branches are multiplied to this power by what residual_from says.
        residual_from: "one branch": the number of branches, 2 depth; "reference": depth / reference_depth.
        logit_exponent: logits are multiplied by (width / reference_width) to this power.
        weight_decay_batch_exponent, weight_decay_token_exponent: of the optimizer's weight decay.
        weight_decay_width_exponent: the same, of hidden matrices, routers and experts only.
        epsilon_batch_exponent, epsilon_token_exponent, epsilon_width_exponent: of Adam's epsilon.
        epsilon_depth_exponent: the same, of what lies inside the blocks: matrices and vectors.
        init_hidden_gain, init_hidden_exponent: hidden std = gain d_in^exponent.
        init_embedding_std: std of the embedding.
        init_unembedding_std: std of the unembedding, a number or the text "1/sqrt(width)".

    Raises:
        ValueError: an unknown name, a number that is not finite, a size or std that is not positive.
    """

    name: RuleName = "hyperp"
    reference_width: Whole | None = None
    reference_depth: Whole | None = None
    reference_tokens: Whole | None = None
    reference_batch_tokens: Whole | None = None
    batch_exponent: Finite | None = None
    depth_exponent: Finite | None = None
    token_exponent: Finite | None = None
    token_exponent_on: ExponentOn | None = None
    width_exponent: Finite | None = None
    residual_exponent: Finite | None = None
    logit_exponent: Finite | None = None
    init_hidden_gain: Positive | None = None
    init_hidden_exponent: Finite | None = None
    init_embedding_std: Positive | None = None
    init_unembedding_std: Annotated[float | int | str, BeforeValidator(_unembedding_std)] | None = None
    residual_from: ResidualFrom | None = None
    weight_decay_batch_exponent: Finite | None = None
    weight_decay_token_exponent: Finite | None = None
    weight_decay_width_exponent: Finite | None = None
    epsilon_batch_exponent: Finite | None = None
    epsilon_depth_exponent: Finite | None = None
    epsilon_token_exponent: Finite | None = None
    epsilon_width_exponent: Finite | None = None

    def __post_init__(self) -> None:
        table = {**REFERENCE, **LATER_FIELDS, **TABLES[self.name]}
        for field in fields(self):
            if getattr(self, field.name) is None:
                object.__setattr__(self, field.name, table[field.name])

    def effective_lr(self, role: Role, scale: Scale, base_lr: float) -> LearningRate:
        """The peak learning rate of `role` at `scale`, and its factors.

        Raises ValueError for an unknown role, and for a base_lr that is not finite and positive.
        """
        _check_role(role)
        if not (is_finite(base_lr) and base_lr > 0):
            raise ValueError(f"base_lr must be finite and positive, got {base_lr!r}")
        matrix = role in MATRIX_ROLES
        horizon = matrix or self.token_exponent_on == "all"
        factors = {
            "batch": _scaling_factor(
                scale.batch_tokens, self.reference_batch_tokens, self.batch_exponent, horizon
            ),
            "depth": _scaling_factor(scale.depth, self.reference_depth, self.depth_exponent),
            "tokens": _scaling_factor(scale.tokens, self.reference_tokens, self.token_exponent, horizon),
            "width": _scaling_factor(scale.width, self.reference_width, self.width_exponent, matrix),
        }
        return LearningRate(role, base_lr, factors, base_lr * math.prod(factors.values()))

    def weight_decay_factor(self, role: Role, scale: Scale) -> float:
        """What the weight decay of `role` is multiplied by. Raises ValueError for an unknown role."""
        _check_role(role)
        return (
            _scaling_factor(scale.batch_tokens, self.reference_batch_tokens, self.weight_decay_batch_exponent)
            * _scaling_factor(scale.tokens, self.reference_tokens, self.weight_decay_token_exponent)
            * _scaling_factor(
                scale.width, self.reference_width, self.weight_decay_width_exponent, role in MATRIX_ROLES
            )
        )

    def epsilon_factor(self, role: Role, scale: Scale) -> float:
        """What Adam's epsilon for `role` is multiplied by. Raises ValueError for an unknown role."""
        _check_role(role)
        return (
            _scaling_factor(scale.batch_tokens, self.reference_batch_tokens, self.epsilon_batch_exponent)
            * _scaling_factor(scale.tokens, self.reference_tokens, self.epsilon_token_exponent)
            * _scaling_factor(scale.width, self.reference_width, self.epsilon_width_exponent)
            * _scaling_factor(
                scale.depth, self.reference_depth, self.epsilon_depth_exponent, role in BLOCK_ROLES
            )
        )

    def option_factors(self, role: Role, scale: Scale) -> dict[str, float]:
        """What options of the optimizer are multiplied by for `role`, by the option's name there."""
        return {
            "weight_decay": self.weight_decay_factor(role, scale),
            "eps": self.epsilon_factor(role, scale),
        }

    def residual_multiplier(self, depth: int) -> float:
        """The factor on the output of every attention and MLP, before it is added to the residual stream."""
        if self.residual_from == "reference":
            return _scaling_factor(depth, self.reference_depth, self.residual_exponent)
        return _scaling_factor(2 * depth, 1, self.residual_exponent)

    def logit_multiplier(self, width: int) -> float:
        """The factor on the logits of a model of this width."""
        return _scaling_factor(width, self.reference_width, self.logit_exponent)

    def init_std(self, role: Role, d_in: int, width: int) -> float:
        """Standard deviation of a matrix (d_out, d_in) of `role` at initialisation.

        Raises ValueError for the role vector, which starts at 1.
        """
        _check_role(role)
        if role == "vector":
            raise ValueError(
                "role must be a matrix to have an init std, got 'vector', whose gains start at 1"
            )
        if role == "embedding":
            assert self.init_embedding_std is not None
            return self.init_embedding_std
        if role == "unembedding":
            std = self.init_unembedding_std
            assert std is not None
            return 1 / math.sqrt(width) if isinstance(std, str) else std
        assert self.init_hidden_gain is not None
        return self.init_hidden_gain * _scaling_factor(d_in, 1, self.init_hidden_exponent)


def factors_table(rule: Parametrization, scale: Scale, base_lr: float, roles: Sequence[Role]) -> str:
    """A table as text: for each role base_lr, every factor, and their product, the learning rate."""
    rows: list[tuple[str, ...]] = [("role", "base_lr", *FACTORS, "lr")]
    for role in roles:
        rate = rule.effective_lr(role, scale, base_lr)
        numbers = (rate.base_lr, *(rate.factors[name] for name in FACTORS), rate.lr)
        rows.append((role, *(f"{number:.6g}" for number in numbers)))
    return _aligned(rows)


def multipliers_text(rule: Parametrization, scale: Scale, roles: Sequence[Role]) -> str:
    """What the rule multiplies besides rates: branches, logits, and per role weight decay and epsilon."""
    residual, logit = rule.residual_multiplier(scale.depth), rule.logit_multiplier(scale.width)
    lines = [f"Residual branches are multiplied by {residual:.6g}, logits by {logit:.6g}."]
    factors = {
        role: (rule.weight_decay_factor(role, scale), rule.epsilon_factor(role, scale)) for role in roles
    }
    if any(one != (1.0, 1.0) for one in factors.values()):
        rows = [("role", "weight decay times", "epsilon times")]
        rows += [(role, f"{decay:.6g}", f"{epsilon:.6g}") for role, (decay, epsilon) in factors.items()]
        lines += ["", _aligned(rows)]
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(text.rjust(n) for text, n in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _scaling_factor(size: int, reference: int | None, exponent: float | None, applies: bool = True) -> float:
    assert reference is not None
    assert exponent is not None
    return (size / reference) ** exponent if applies else 1.0


def _check_role(role: str) -> None:
    if role not in MATRIX_ROLES + OTHER_ROLES:
        raise ValueError(f"role must be one of {', '.join(MATRIX_ROLES + OTHER_ROLES)}, got {role!r}")
