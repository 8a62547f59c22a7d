"""The steepest step tangent to the spectral sphere, in two matrix signs.

Shapes: B matrices of m = d_out rows and n = d_in columns.

SSO's direction (arXiv 2601.08393) maximises <M, Phi> over |Phi| <= 1 in the spectral norm with <u v^T, Phi> =
0; M is the momentum, of Frobenius norm 1, and (u, v) the top singular pair of the weight. It is Phi(lambda) =
msign(M + lambda u v^T) at the root of h(lambda) = <u v^T, Phi(lambda)>, which increases and has its root
within sqrt(2) of 0. The published code doubles a bracket and bisects it, 9 to 19 matrix signs. Two are
enough:

- With h known on both sides of its root, (h_R Phi_L - h_L Phi_R) / (h_R - h_L) is tangent exactly, of norm at
  most 1 as a convex combination, and short of the best <M, Phi> by at most |h_L h_R| (lambda_R - lambda_L) /
  (h_R - h_L).
- One side is lambda = 0. The other lies 1.6 times as far as the root should, to be beyond it, going by the
  slope of h in the steps before. Over the reciprocal of the mean singular value of M, and as a geometric mean
  over steps, that slope is nearly a constant: 0.6 to 2.3 in the median of a run, which leaves the first step
  nothing to search for.

Measured in float32 on the momenta of byte-level models (16 x 32 to 256 x 64, 21,000 steps of single matrices
in four runs of SSO; |h(0)| is 0.06 in the median where steps are small, 0.5 where they are large; the optimum
from SVDs in float64):

    signs   bracketed   relative shortfall of <M, Phi>: median, 90%, largest
    1       -           2.6e-3   2.2e-2   1.2e-1   (the matrix sign less its part along u v^T)
    2       97.2%       7.6e-4   7.6e-3   4.6e-2
    3       99.96%      2.3e-5   7.2e-4   3.7e-2

With two, |<u v^T, Phi>| is 1e-8 in the median and 4e-7 at most, and |Phi| at most 1.10 where the root is not
bracketed. All first steps are bracketed, short by 2e-3 at most, so that they need no third sign. The bound on
the shortfall holds to 1e-3, by which eight polynomial steps miss the matrix sign. The slope of the last step
alone, in absolute units, brackets 92 to 99% by kind of matrix where this one does 94 to 99.7%, and is as
short in the median. An overshoot of 1.4 brackets 86 to 99% and is a third closer, 2.0 brackets 99% and is
twice as far.

Held-out loss with 1, 2, 3 and 20 signs (width 32, 131,072 tokens, mean of two seeds): 2.1099, 2.1093, 2.1090
and 2.1090 at rate 0.01; 2.024, 2.027, 2.027 and 2.029 at 0.04, where seeds differ by 0.02.

Tried and left out:

- One Newton-Schulz step on the combination, combined again with the end of the other sign, divides the median
  shortfall by 2 to 8, a second by another 2 to 4, each for a tenth of a sign. They keep every promise above,
  and are what to add where half a percent of a step matters.
- A block Krylov space from u and v gives h for every lambda from matrix-vector products, but a root is found
  to |h| = 0.1 only with 16 vectors of 32 and 32 of 64: h depends on the whole spectrum.
- All singular values within 1% of the first as the constraint, <U A V^T, Phi> = 0 for every symmetric A: the
  norm strays from its radius before a retraction by 2.5e-4 and not 1.9e-3 (99% quantile, rate 0.01; 0.018 and
  not 0.024 at 0.04), and the loss is the same: 1.958, 1.903 against 1.956, 1.902 with the first alone (width
  64, 131,072 tokens, two seeds).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

OVERSHOOT = 1.6  # of the second point, so that it lands beyond the root and brackets it
COLD_SLOPE = 1 / 0.6  # of h, times the mean singular value of M, before any was seen
LEAST_SLOPE, GREATEST_SLOPE = 1e-2, 1e2
NOISE = 1e-3  # in h: bfloat16 matrix signs err by as much, and no slope is learnt from less


class TangentStep(NamedTuple):
    """Phi, and how it was found; all but Phi are (B,).

    `multiplier_B` is lambda. <M, Phi> is at most `shortfall_B` below its optimum. |Phi| <= 1 + `excess_B`,
    which is 0 where the root is bracketed. `slope_B` is for the next step.
    """

    phi_Bmn: Tensor
    multiplier_B: Tensor
    shortfall_B: Tensor
    excess_B: Tensor
    slope_B: Tensor


def tangent_step(
    M_Bmn: Tensor,
    u_Bm: Tensor,
    v_Bn: Tensor,
    sign: Callable[[Tensor], Tensor],
    slope_B: Tensor,
    evaluations: int = 2,
) -> TangentStep:
    """Steepest direction of unit spectral norm that is tangent to the sphere, by `evaluations` matrix signs.

    `M_Bmn` has Frobenius norm 1, or 0, which gives a Phi of 0; `slope_B` comes from the step before, at first
    COLD_SLOPE. <u v^T, Phi> is 0 to rounding. Where the root is not bracketed, the point nearest to it loses
    its part along u v^T, so that |Phi| <= 1 + |h| there. From the third evaluation on a bracketed secant
    search closes in; dozens are exact. Nothing is read back to the host: masks stand for branches.
    """

    def along_pair(X_Bmn: Tensor) -> Tensor:
        return ((X_Bmn @ v_Bn[:, :, None]).squeeze(-1) * u_Bm).sum(-1)

    def add_pair(X_Bmn: Tensor, factor_B: Tensor) -> Tensor:
        return torch.baddbmm(X_Bmn, (factor_B[:, None] * u_Bm)[:, :, None], v_Bn[:, None, :])

    phi_Bmn = sign(M_Bmn)
    h_B = along_pair(phi_Bmn)
    side_B = torch.where(h_B < 0, -1.0, 1.0).to(h_B.dtype)
    mean_B = (M_Bmn * phi_Bmn).sum((-2, -1)) / min(M_Bmn.shape[-2:])  # singular value of M
    start = _Point(torch.zeros_like(h_B), h_B.abs(), phi_Bmn)
    bracket = _Bracket.from_start(start, slope_B.to(h_B.dtype) / _above_zero(mean_B))
    for _ in range(evaluations - 1):
        t_B = bracket.candidate()
        phi_Bmn = sign(add_pair(M_Bmn, -side_B * t_B))
        bracket = bracket.with_point(_Point(t_B, side_B * along_pair(phi_Bmn), phi_Bmn))

    near, far, bracketed_B = bracket.near, bracket.far, bracket.bracketed_B
    share_B = bracket.share_of_far()
    phi_Bmn = torch.lerp(near.phi_Bmn, far.phi_Bmn, share_B[:, None, None])
    root_B = torch.lerp(near.t_B, far.t_B, share_B)
    fall_B = torch.where(bracketed_B, start.g_B / _above_zero(root_B), bracket.fall_B)
    reach_B = torch.where(
        bracketed_B, (1 - share_B) * far.t_B + share_B * near.t_B, side_B * along_pair(M_Bmn)
    )
    return TangentStep(
        phi_Bmn=add_pair(phi_Bmn, -along_pair(phi_Bmn)),
        multiplier_B=-side_B * root_B,
        shortfall_B=near.g_B * (reach_B - near.t_B),
        excess_B=torch.where(bracketed_B, 0.0, near.g_B),
        slope_B=_learn(slope_B, fall_B * mean_B, start.g_B),
    )


def _learn(slope_B: Tensor, seen_B: Tensor, h_B: Tensor) -> Tensor:
    """Geometric mean of the slopes remembered and seen, where h is more than noise and falls."""
    mean_B = (slope_B * seen_B.clamp(LEAST_SLOPE, GREATEST_SLOPE)).sqrt()
    return torch.where((h_B > NOISE) & (seen_B > 0), mean_B, slope_B)


def _above_zero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


class _Point(NamedTuple):
    """Phi at t = |lambda|, and g = |h| or, beyond the root, -|h|."""

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

    The weights are g, halved for a point that stayed twice in a row, or the search would creep up from one
    side (regula falsi, Illinois).
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
        """t by the secant between both points, or well beyond where the root should be."""
        near, far = self.near, self.far
        span_B = _above_zero(self.near_weight_B - self.far_weight_B)
        secant_B = (self.near_weight_B * far.t_B - self.far_weight_B * near.t_B) / span_B
        beyond_B = near.t_B + OVERSHOOT * near.g_B / _above_zero(self.fall_B)
        return torch.where(self.bracketed_B, secant_B, torch.minimum(beyond_B, far.t_B))

    def with_point(self, new: _Point) -> "_Bracket":
        """The bracket that a new point inside of it leaves."""
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
