"""The steepest step that is tangent to the spectral sphere, in a fixed number of matrix signs.

Shapes: B matrices of m = d_out rows and n = d_in columns.

SSO's direction (arXiv 2601.08393) maximises <M, Phi> over |Phi| <= 1 in the spectral norm and <u v^T, Phi> = 0,
with M the momentum of Frobenius norm 1 and (u, v) the top singular pair of the weight. It is Phi(lambda) =
msign(M + lambda u v^T) at the root of h(lambda) = <u v^T, Phi(lambda)>, which increases and has its root within
sqrt(2) of 0. The published code brackets the root and bisects: 9 to 19 matrix signs. Here two are enough:

- Once h is known on both sides of its root, (h_R Phi_L - h_L Phi_R) / (h_R - h_L) is tangent exactly, of norm at
  most 1 as a convex combination, and short of the best <M, Phi> by at most
  |h_L h_R| (lambda_R - lambda_L) / (h_R - h_L). Near a maximum that is second order: the root itself is not needed.
- One side is lambda = 0. The other is 1.6 times as far as the root should be, to land beyond it, by the slope of h
  that the steps before have seen. The slope is remembered in units of 1 / (mean singular value of M), as a
  geometric mean over steps, which makes it nearly a constant: 0.3 to 7, and 1/0.6 before the first step.

Measured in float32 on the momenta of byte-level models (16 x 32 to 256 x 64, 2,560 steps of SSO in four runs at
rates from 0.006, where |h(0)| is 0.07 to 0.14 in the median, to 0.05, where it is 0.5):

    evaluations   bracketed    <M, Phi> short of its optimum: median, 90%, most
    1             -            5e-5 to 1.4e-2   4e-4 to 4e-2   0.12 (the matrix sign less its part along u v^T)
    2             94 to 100%   1e-5 to 6e-3     1e-4 to 2e-2   0.05
    3             100%         1e-7 to 3e-4     1e-6 to 3e-3   0.04

and |<u v^T, Phi>| 4e-8 in the median, 2e-7 at most. A third evaluation on the first step alone changes nothing: the
constant brackets all first steps, 9e-4 short at most. The slope of the last step in absolute units brackets 92 to
99% and is up to a third shorter of the optimum; an overshoot of 1.4 brackets 86 to 99% and is a third closer; 2.0
brackets 99% and is twice as far.

Tried, and left out. (1) Newton-Schulz on the combination, 1.5 Phi - 0.5 Phi Phi^T Phi, combined again with the end
of the other sign: twice divides the median shortfall by 3 to 30 for a sixth of an evaluation. It is sound, and worth
adding where 0.5% of a step matter; nowhere yet. (2) A block Krylov space from u and v serves every lambda at once by
matrix-vector products, but its estimate of the root beats the remembered slope only from 32 vectors of 64 on: h
depends on all of the spectrum.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

OVERSHOOT = 1.6  # of the first secant step, so that it lands beyond the root and brackets it
COLD_SLOPE = 1 / 0.6  # of h, times the mean singular value of M, before any was seen
NOISE = 1e-3  # in h: bfloat16 matrix signs err by as much, and no slope is learnt from less
SLOPES = (1e-2, 1e2)


class TangentStep(NamedTuple):
    """Phi, and how it was found: all but Phi are (B,).

    `multiplier_B` is lambda, `shortfall_B` the certified distance of <M, Phi> from its optimum, `excess_B` what |Phi|
    can exceed 1 by (0 where bracketed), `slope_B` what the next step wants to know.
    """

    phi_Bmn: Tensor
    multiplier_B: Tensor
    shortfall_B: Tensor
    excess_B: Tensor
    slope_B: Tensor


class _Point(NamedTuple):
    """One end of the bracket: t = |lambda|, g = h with the sign that makes g(0) >= 0, and Phi."""

    t_B: Tensor
    g_B: Tensor
    phi_Bmn: Tensor

    def replaced(self, mask_B: Tensor, new: "_Point") -> "_Point":
        return _Point(
            torch.where(mask_B, new.t_B, self.t_B),
            torch.where(mask_B, new.g_B, self.g_B),
            torch.where(mask_B[:, None, None], new.phi_Bmn, self.phi_Bmn),
        )


def tangent_step(
    M_Bmn: Tensor,
    u_Bm: Tensor,
    v_Bn: Tensor,
    sign: Callable[[Tensor], Tensor],
    slope_B: Tensor,
    evaluations: int = 2,
) -> TangentStep:
    """Steepest direction of unit spectral norm that is tangent to the sphere, by `evaluations` matrix signs.

    `M_Bmn` has Frobenius norm 1, or 0, which gives a Phi of 0; `slope_B` is that of the step before, at first
    COLD_SLOPE. <u v^T, Phi> is 0 to rounding. Where the root is not bracketed, the point nearest to it loses its part
    along u v^T, so that |Phi| <= 1 + |h| there. From the third evaluation on a bracketed secant search (regula falsi,
    Illinois) closes in; dozens are exact. Nothing is read back to the host: masks stand for branches.
    """
    tiny = torch.finfo(M_Bmn.dtype).tiny
    phi = sign(M_Bmn)
    h_B = _component(phi, u_Bm, v_Bn)
    side_B = torch.where(h_B < 0, -1.0, 1.0).to(h_B.dtype)
    mean_B = (M_Bmn * phi).sum((-2, -1)) / min(M_Bmn.shape[-2:])  # singular value of M
    near = start = _Point(torch.zeros_like(h_B), h_B.abs(), phi)
    far = _Point(torch.full_like(h_B, math.sqrt(2)), torch.full_like(h_B, -1.0), phi)
    bracketed_B = torch.zeros_like(h_B, dtype=torch.bool)
    fall_B = slope_B.to(h_B.dtype) / mean_B.clamp_min(tiny)
    weights = near.g_B, far.g_B
    was_near_B = ~bracketed_B
    for _ in range(evaluations - 1):
        beyond_B = near.t_B + OVERSHOOT * near.g_B / fall_B.clamp_min(tiny)
        secant_B = (weights[0] * far.t_B - weights[1] * near.t_B) / (weights[0] - weights[1]).clamp_min(tiny)
        t_B = torch.where(bracketed_B, secant_B, torch.minimum(beyond_B, far.t_B))
        phi = sign(torch.baddbmm(M_Bmn, (-side_B * t_B)[:, None, None] * u_Bm[:, :, None], v_Bn[:, None, :]))
        new = _Point(t_B, _component(phi, u_Bm, v_Bn) * side_B, phi)
        is_near_B = new.g_B >= 0
        seen_B = (near.g_B - new.g_B) / (t_B - near.t_B).clamp_min(tiny)
        fall_B = torch.where(seen_B > 0, seen_B, fall_B)
        # Illinois: an end that stays twice in a row weighs half, or the search would creep up from one side.
        half_B = torch.where(is_near_B == was_near_B, 0.5, 1.0).to(h_B.dtype)
        weights = (
            torch.where(is_near_B, new.g_B, weights[0] * half_B),
            torch.where(is_near_B, weights[1] * half_B, new.g_B),
        )
        near, far = near.replaced(is_near_B, new), far.replaced(~is_near_B, new)
        bracketed_B, was_near_B = bracketed_B | ~is_near_B, is_near_B
    return _finish(start.g_B)
