"""The steepest step tangent to the spectral sphere, in two matrix signs.

Shapes: B matrices of m = d_out rows and n = d_in columns.

SSO's direction (arXiv 2601.08393) maximises <M, Phi> over |Phi| <= 1 in the spectral norm with <u v^T, Phi> =
0. M is the momentum, of Frobenius norm 1, and (u, v) is the top singular pair of the weight. The solution is
Phi(lambda) = msign(M + lambda u v^T) at the root of h(lambda) = <u v^T, Phi(lambda)>, which increases and has
its root within sqrt(2) of 0. The published code doubles a bracket and bisects it, which takes 9 to 19 matrix
signs. Two are enough:

- With h known on both sides of its root, (h_R Phi_L - h_L Phi_R) / (h_R - h_L) is exactly tangent, has norm
  at most 1 as a convex combination, and falls short of the best <M, Phi> by at most
  |h_L h_R| (lambda_R - lambda_L) / (h_R - h_L).
- One side is lambda = 0. The other is placed 1.6 times as far as the root is expected, so that it lies beyond
  the root. The expectation comes from the slope of h in earlier steps. Multiplied by the mean singular value
  of M and averaged geometrically over steps, that slope is nearly constant (0.6 to 2.3 in the median of a
  run), so that the first step needs no search.

In training, two signs bracket 97.2% of the roots, and <M, Phi> falls short of its optimum by 0.08% in the
median and by less than 0.8% in nine steps of ten. reports/optimizers/tangent_step.md has the measurements
behind these figures and the alternatives that were tried and left out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

OVERSHOOT = 1.6  # distance of the second point over that of the expected root, so that it brackets the root
COLD_SLOPE = 1 / 0.6  # slope of h times the mean singular value of M, assumed before any was seen
LEAST_SLOPE, GREATEST_SLOPE = 1e-2, 1e2
NOISE = 1e-3  # error of h from bfloat16 matrix signs; no slope is learnt from a smaller h


class TangentStep(NamedTuple):
    """The direction Phi (B, m, n), and the slope (B,) to pass to the next step."""

    phi_Bmn: Tensor
    slope_B: Tensor


class TangentDiagnostics(NamedTuple):
    """How good a tangent step is; all are (B,).

    `multiplier_B` is lambda. <M, Phi> is at most `shortfall_B` below its optimum. |Phi| <= 1 + `excess_B`,
    which is 0 where the root is bracketed.
    """

    multiplier_B: Tensor
    shortfall_B: Tensor
    excess_B: Tensor


def tangent_step(
    M_Bmn: Tensor,
    u_Bm: Tensor,
    v_Bn: Tensor,
    sign: Callable[[Tensor], Tensor],
    slope_B: Tensor,
    evaluations: int = 2,
) -> TangentStep:
    """Steepest direction of unit spectral norm that is tangent to the sphere, by `evaluations` matrix signs.

    `M_Bmn` has Frobenius norm 1, or 0, which gives a Phi of 0. `slope_B` comes from the step before, and is
    COLD_SLOPE at first. <u v^T, Phi> is 0 to rounding. Where the root is not bracketed, the part along u v^T
    is taken out of the point nearest to it, so that |Phi| <= 1 + |h|. From the third evaluation on, a
    bracketed secant search closes in; dozens of evaluations are exact. Nothing is read back to the host:
    masks stand for branches.
    """
    return _search_root(M_Bmn, u_Bm, v_Bn, sign, slope_B, evaluations).step()


def diagnosed_tangent_step(
    M_Bmn: Tensor,
    u_Bm: Tensor,
    v_Bn: Tensor,
    sign: Callable[[Tensor], Tensor],
    slope_B: Tensor,
    evaluations: int = 2,
) -> tuple[TangentStep, TangentDiagnostics]:
    """The same step as `tangent_step` with its diagnostics, for one more matrix-vector product."""
    search = _search_root(M_Bmn, u_Bm, v_Bn, sign, slope_B, evaluations)
    return search.step(), search.diagnostics()


def _search_root(
    M_Bmn: Tensor,
    u_Bm: Tensor,
    v_Bn: Tensor,
    sign: Callable[[Tensor], Tensor],
    slope_B: Tensor,
    evaluations: int,
) -> "_Search":
    pair = _Pair(u_Bm, v_Bn)
    phi_Bmn = sign(M_Bmn)
    h_B = pair.along(phi_Bmn)
    side_B = torch.where(h_B < 0, -1.0, 1.0).to(h_B.dtype)
    mean_B = (M_Bmn * phi_Bmn).sum((-2, -1)) / min(M_Bmn.shape[-2:])
    start = _Point(torch.zeros_like(h_B), h_B.abs(), phi_Bmn)
    bracket = _Bracket.from_start(start, slope_B.to(h_B.dtype) / _above_zero(mean_B))
    for _ in range(evaluations - 1):
        t_B = bracket.candidate()
        phi_Bmn = sign(pair.add(M_Bmn, -side_B * t_B))
        bracket = bracket.with_point(_Point(t_B, side_B * pair.along(phi_Bmn), phi_Bmn))
    return _Search(M_Bmn, pair, slope_B, side_B, mean_B, start, bracket)


def _update_slope(slope_B: Tensor, seen_B: Tensor, h_B: Tensor) -> Tensor:
    """Geometric mean of the slopes remembered and seen, where h is more than noise and falls."""
    mean_B = (slope_B * seen_B.clamp(LEAST_SLOPE, GREATEST_SLOPE)).sqrt()
    return torch.where((h_B > NOISE) & (seen_B > 0), mean_B, slope_B)


def _above_zero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


class _Pair(NamedTuple):
    """The singular pair u (B, m), v (B, n)."""

    u_Bm: Tensor
    v_Bn: Tensor

    def along(self, X_Bmn: Tensor) -> Tensor:
        """<u v^T, X>."""
        return ((X_Bmn @ self.v_Bn[:, :, None]).squeeze(-1) * self.u_Bm).sum(-1)

    def add(self, X_Bmn: Tensor, factor_B: Tensor) -> Tensor:
        """X + factor u v^T."""
        return torch.baddbmm(X_Bmn, (factor_B[:, None] * self.u_Bm)[:, :, None], self.v_Bn[:, None, :])


class _Point(NamedTuple):
    """Phi at t = |lambda|, and g, which is |h| before the root and -|h| beyond it."""

    t_B: Tensor
    g_B: Tensor
    phi_Bmn: Tensor

    def replaced(self, by: "_Point", where_B: Tensor) -> "_Point":
        return _Point(
            torch.where(where_B, by.t_B, self.t_B),
            torch.where(where_B, by.g_B, self.g_B),
            torch.where(where_B[:, None, None], by.phi_Bmn, self.phi_Bmn),
        )


class _Bracket(NamedTuple):
    """The root of g, which falls from g(0) >= 0: a near point before it, and a far one once there is one.

    The weights are g, halved for a point that stayed twice in a row, since the search would otherwise creep
    up from one side (regula falsi, Illinois variant).
    """

    near: _Point
    far: _Point
    near_weight_B: Tensor
    far_weight_B: Tensor
    bracketed_B: Tensor
    was_near_B: Tensor
    fall_B: Tensor  # -dg/dt as last seen

    @classmethod
    def from_start(cls, near: _Point, fall_B: Tensor) -> "_Bracket":
        far = _Point(torch.full_like(near.t_B, math.sqrt(2)), torch.full_like(near.g_B, -1.0), near.phi_Bmn)
        nowhere_B = torch.zeros_like(near.g_B, dtype=torch.bool)
        return cls(near, far, near.g_B, far.g_B, nowhere_B, ~nowhere_B, fall_B)

    def candidate(self) -> Tensor:
        """Next t: by the secant between both points, or well beyond where the root is expected."""
        near, far = self.near, self.far
        span_B = _above_zero(self.near_weight_B - self.far_weight_B)
        secant_B = (self.near_weight_B * far.t_B - self.far_weight_B * near.t_B) / span_B
        beyond_B = near.t_B + OVERSHOOT * near.g_B / _above_zero(self.fall_B)
        return torch.where(self.bracketed_B, secant_B, torch.minimum(beyond_B, far.t_B))

    def with_point(self, new: _Point) -> "_Bracket":
        """The bracket with one of its ends replaced by a new point inside it."""
        is_near_B = new.g_B >= 0
        fall_B = (self.near.g_B - new.g_B) / _above_zero(new.t_B - self.near.t_B)
        half_B = torch.where(is_near_B == self.was_near_B, 0.5, 1.0).to(new.g_B.dtype)
        return _Bracket(
            self.near.replaced(new, is_near_B),
            self.far.replaced(new, ~is_near_B),
            torch.where(is_near_B, new.g_B, self.near_weight_B * half_B),
            torch.where(is_near_B, self.far_weight_B * half_B, new.g_B),
            self.bracketed_B | ~is_near_B,
            is_near_B,
            torch.where(fall_B > 0, fall_B, self.fall_B),
        )

    def share_of_far(self) -> Tensor:
        """Weight of the far point in the convex combination with g = 0; 0 where there is none."""
        return self.near.g_B / _above_zero(self.near.g_B - self.far.g_B) * self.bracketed_B


class _Search(NamedTuple):
    """A finished search, from the momentum to the last bracket."""

    M_Bmn: Tensor
    pair: _Pair
    slope_B: Tensor  # that of the step before
    side_B: Tensor  # sign of h at lambda = 0
    mean_B: Tensor  # singular value of M
    start: _Point
    bracket: _Bracket

    def step(self) -> TangentStep:
        near, far, share_B = self.bracket.near, self.bracket.far, self.bracket.share_of_far()
        phi_Bmn = torch.lerp(near.phi_Bmn, far.phi_Bmn, share_B[:, None, None])
        root_B = torch.lerp(near.t_B, far.t_B, share_B)
        seen_B = self.start.g_B / _above_zero(root_B)
        fall_B = torch.where(self.bracket.bracketed_B, seen_B, self.bracket.fall_B)
        return TangentStep(
            phi_Bmn=self.pair.add(phi_Bmn, -self.pair.along(phi_Bmn)),
            slope_B=_update_slope(self.slope_B, fall_B * self.mean_B, self.start.g_B),
        )

    def diagnostics(self) -> TangentDiagnostics:
        near, far, bracketed_B = self.bracket.near, self.bracket.far, self.bracket.bracketed_B
        share_B = self.bracket.share_of_far()
        between_B = (1 - share_B) * far.t_B + share_B * near.t_B
        reach_B = torch.where(bracketed_B, between_B, self.side_B * self.pair.along(self.M_Bmn))
        return TangentDiagnostics(
            multiplier_B=-self.side_B * torch.lerp(near.t_B, far.t_B, share_B),
            shortfall_B=near.g_B * (reach_B - near.t_B),
            excess_B=torch.where(bracketed_B, 0.0, near.g_B),
        )
