"""Slow, obvious float64 twins of the rules in hyperp.optim, one matrix at a time, to test them against.

Every spectral quantity comes from a full SVD, and every root from plain bisection.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]
Sign = Callable[[Tensor], Tensor]


def polynomial_of_singular_values(X: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """U p(S) V^T, with p the composition of the quintics and S the singular values of X / |X|_F."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    S = S / S.norm() if S.norm() > 0 else S
    for a, b, c in quintics:
        S = a * S + b * S**3 + c * S**5
    return U @ torch.diag(S) @ Vh


def polar_factor(X: Tensor, rtol: float = 1e-12) -> Tensor:
    """U V^T over the singular values above rtol times the largest; zero for a zero matrix."""
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    kept = (rtol * S[0] < S) & (S > 0)
    return U[:, kept] @ Vh[kept]


def optimal_quintic(lower: float, upper: float) -> Quintic:
    """Odd quintic whose largest distance from 1 on [lower, upper] is least, by Remez exchange on four points.

    At its four alternation points, the ends and two extrema q < r inside, the error has the same size and
    changes its sign from each to the next.
    """
    if lower / upper >= 1 - 5e-6:  # the limit lower -> upper, where the linear system becomes singular
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    q, r, error = (3 * lower + upper) / 4, (lower + 3 * upper) / 4, math.inf
    while True:  # in exact arithmetic the error grows with every exchange and converges
        x = np.array([lower, q, r, upper])
        system = np.stack([x, x**3, x**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, new_error = np.linalg.solve(system, np.ones(4))
        if abs(new_error - error) <= 1e-15:
            return float(a), float(b), float(c)
        error = new_error
        root = math.sqrt(9 * b**2 - 20 * a * c)  # p'(x) = a + 3 b x^2 + 5 c x^4 vanishes at q and r
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))


def polar_express_quintics(
    lower: float = 1e-3, steps: int = 8, cushion: float = 0.02407327424182761
) -> list[Quintic]:
    """Greedy composition of optimal quintics for singular values in [lower, 1] (arXiv 2505.16932, section 3).

    The cushion keeps the first polynomial for a tiny `lower` from lowering mid-sized singular values (section
    4.4 there).
    """
    upper, quintics = 1.0, []
    for _ in range(steps):
        a, b, c = optimal_quintic(max(lower, cushion * upper), upper)

        def p(x: float, a: float = a, b: float = b, c: float = c) -> float:
            return a * x + b * x**3 + c * x**5

        scale = 2 / (p(lower) + p(upper)) if cushion * upper > lower else 1.0
        quintics.append((a * scale, b * scale, c * scale))
        lower = scale * p(lower)
        upper = 2 - lower
    return quintics


def tangent_direction(M: Tensor, u: Tensor, v: Tensor, sign: Sign = polar_factor) -> tuple[Tensor, float]:
    """Phi and lambda with <u v^T, Phi> = 0, Phi = msign(M + lambda u v^T), by bisection (arXiv 2601.08393).

    Where h jumps over 0, Phi is the combination of both sides of the jump.
    """
    theta = torch.outer(u, v)
    low, high = -math.sqrt(2), math.sqrt(2)
    for _ in range(80):
        middle = (low + high) / 2
        if float((theta * sign(M + middle * theta)).sum()) < 0:
            low = middle
        else:
            high = middle
    phi_low, phi_high = sign(M + low * theta), sign(M + high * theta)
    h_low, h_high = float((theta * phi_low).sum()), float((theta * phi_high).sum())
    if h_high - h_low < 1e-6:
        return phi_high, high
    return (h_high * phi_low - h_low * phi_high) / (h_high - h_low), high


def tangent_search(
    M: Tensor, u: Tensor, v: Tensor, sign: Sign = polar_factor, tolerance: float = 1e-3, most: int = 60
) -> tuple[Tensor, int]:
    """A readable version of `tangent.tangent_step` for one matrix: Phi, and the number of matrix signs.

    The search goes on until <M, Phi> is certainly within `tolerance` of its optimum, or <u v^T, Phi> within
    `tolerance` of 0.
    """
    theta, signs = torch.outer(u, v), 0

    def evaluate(multiplier: float) -> tuple[float, float, Tensor]:
        nonlocal signs
        signs += 1
        phi = sign(M + multiplier * theta)
        return multiplier, float((theta * phi).sum()), phi

    near, far = evaluate(0.0), None  # the ends of the bracket; while there is one, walk away from 0
    stride = -0.1 * near[1] * float((M * near[2]).sum())
    while abs(near[1]) > tolerance and signs < most and far is None:
        reached = evaluate(max(-math.sqrt(2), min(math.sqrt(2), near[0] + stride)))
        far = reached if reached[1] * near[1] <= 0 else None
        near, stride = (near, stride) if far else (reached, 3 * stride)
    if far is None:
        return near[2] - near[1] * theta, signs
    weights = [near[1], far[1]]
    while True:
        phi = (far[1] * near[2] - near[1] * far[2]) / (far[1] - near[1])
        shortfall = -near[1] * far[1] * (far[0] - near[0]) / (far[1] - near[1])
        enough = shortfall <= tolerance * float((M * phi).sum()) or abs(far[1]) <= tolerance
        if enough or abs(near[1]) <= tolerance or signs >= most:
            return phi - (theta * phi).sum() * theta, signs
        new = evaluate((weights[1] * near[0] - weights[0] * far[0]) / (weights[1] - weights[0]))
        # Illinois: halve the weight of the end that stays, since the search would creep up from one side.
        if new[1] * near[1] > 0:
            near, weights = new, [new[1], weights[1] / 2]
        else:
            far, weights = new, [weights[0] / 2, new[1]]


def sso_step(
    W: Tensor,
    M: Tensor,
    G: Tensor,
    lr: float,
    momentum: float,
    radius: float,
    length: float,
    tangent: bool = True,
    nesterov: bool = True,
    dynamic: bool = False,
    sign: Sign = polar_factor,
) -> tuple[Tensor, Tensor]:
    """One step of SSO, or of MuonSphere without `tangent`: new W and new momentum (arXiv 2601.08393)."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    W = W * (1 + 0.05 * lr * torch.sign(radius - S[0]) if dynamic else radius / S[0])
    M = momentum * M + (1 - momentum) * G
    ahead = momentum * M + (1 - momentum) * G if nesterov else M
    ahead = ahead / ahead.norm()
    phi = tangent_direction(ahead, U[:, 0], Vh[0], sign)[0] if tangent else sign(ahead)
    return W - lr * length * phi, M


def muonh_step(
    W: Tensor,
    M: Tensor,
    G: Tensor,
    lr: float,
    momentum: float,
    nesterov: bool = True,
    sign: Sign = polar_factor,
) -> tuple[Tensor, Tensor]:
    """One step of MuonH: new W and new momentum, a sum (arXiv 2603.28743)."""
    M = momentum * M + G
    U = sign(momentum * M + G if nesterov else M)
    moved = W - lr * W.norm() / U.norm() * U
    return moved * (W.norm() / moved.norm()), M


def muon_step(
    W: Tensor,
    M: Tensor,
    G: Tensor,
    lr: float,
    momentum: float,
    scale: float,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    sign: Sign = polar_factor,
) -> tuple[Tensor, Tensor]:
    """One step of Muon: new W and new momentum, an average (arXiv 2502.16982)."""
    M = momentum * M + (1 - momentum) * G
    U = sign(momentum * M + (1 - momentum) * G if nesterov else M)
    return W - lr * weight_decay * W - lr * scale * U, M


def adam_direction(
    m: Tensor, v: Tensor, G: Tensor, step: int, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Direction and both new moments at step 1, 2, ... (arXiv 1412.6980)."""
    m = betas[0] * m + (1 - betas[0]) * G
    v = betas[1] * v + (1 - betas[1]) * G**2
    return m / (1 - betas[0] ** step) / ((v / (1 - betas[1] ** step)).sqrt() + eps), m, v


def adamw_step(W: Tensor, direction: Tensor, lr: float, weight_decay: float) -> Tensor:
    """AdamW along Adam's direction (arXiv 1711.05101)."""
    return W - lr * weight_decay * W - lr * direction


def adamh_step(W: Tensor, direction: Tensor, lr: float) -> Tensor:
    """AdamH along Adam's direction (arXiv 2603.28743)."""
    moved = W - lr * W.norm() / direction.norm() * direction
    return moved * (W.norm() / moved.norm())
