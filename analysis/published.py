"""Exponents that others measured, to stand beside a fitted one. A fit never uses them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published exponent of the optimal learning rate, and where it was measured."""

    exponent: float
    domain: str
    source: str


# All for MuonH under HyperP; 0.56 and -0.32 are fits, 0.5 and -0.5 the rules that the authors' code applies.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "tokens": (Published(-0.32, "10B to 166B tokens, 208M parameters, linear decay", "arXiv 2603.28743"),),
    "batch_tokens": (Published(0.56, "256K to 2M tokens a step", "arXiv 2603.28743"),),
    "depth": (Published(-0.5, "8 to 24 blocks, as a rule", "arXiv 2603.28743"),),
    "width": (Published(0.0, "as a rule", "arXiv 2603.28743"),),
}
