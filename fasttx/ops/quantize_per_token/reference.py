"""quantize_per_token in float64, from the formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .composed import LEAST_ABSMAX, LEVELS


def forward(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float64, with the roundings to float32 that the definition has: a quotient of two float32 in float64, rounded
    to float32, is the quotient rounded once, and their product is exact in float64."""
    x64 = x.double()
    if x.shape[-1] == 0:
        value = torch.tensor(LEAST_ABSMAX / LEVELS) if scale is None else scale
        return x64, value.to(x64).expand(x.shape[:-1])
    absmax = x64.abs().amax(-1, keepdim=True)
    finite = x64.isfinite().all(-1, keepdim=True)
    if scale is None:
        absmax = absmax.clamp(min=LEAST_ABSMAX)
        x_scale, inverse = absmax / LEVELS, torch.full_like(absmax, LEVELS) / absmax
    else:
        x_scale, inverse = scale.double().expand(absmax.shape), 1.0 / scale.double().expand(absmax.shape)
        inverse32 = inverse.float()
        finite = finite & (x_scale > 0) & x_scale.isfinite() & inverse32.isfinite()
    product = (torch.where(finite, x64, 0.0) * inverse.float().double()).float().double()
    x_q = torch.where(finite, product.round().clamp(-LEVELS, LEVELS), 0.0)
    return x_q, torch.where(finite, x_scale, math.nan).squeeze(-1)


def unrounded(x64: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The reference for rows that are computed themselves, float64 and not rounded: the real numbers that x_q rounds,
    and the scales. Of what is rounded on the way no integer could be foretold.
    """
    absmax = x64.abs().amax(-1, keepdim=True)  # NaN where the row has one
    x_scale = absmax.clamp(min=LEAST_ABSMAX) / LEVELS if scale is None else scale.double().expand(absmax.shape)
    finite = (absmax < math.inf) & (x_scale > 0) & (x_scale < math.inf)
    if scale is not None:
        finite = finite & scale.reciprocal().isfinite()
    x_q = torch.where(finite, x64 / x_scale, 0.0).clamp(-LEVELS, LEVELS)
    return x_q, torch.where(finite, x_scale, math.nan).squeeze(-1)
