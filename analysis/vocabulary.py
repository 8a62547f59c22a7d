"""Names and defaults that every part of the analysis shares; imports nothing heavy."""

from typing import Literal

# What a law is for, and what it may depend on: the columns that define a slice, in the order of every table.
CONTEXT = ("optimizer", "parametrization", "schedule", "data", "metric")
COVARIATES = ("width", "depth", "tokens", "batch_tokens", "granularity", "sparsity")

State = Literal["bracketed", "edge_low", "edge_high", "too_few_rates", "not_convex"]

WINDOW = 1.5  # octaves each side of the vertex
LEVEL = 0.95  # coverage of every interval
