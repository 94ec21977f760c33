"""Symmetric int8 by rows, composed of PyTorch's own operators; what is written here in float32 is the definition.

The integers depend on how x * (127 / absmax) is rounded, so the contract names the operations: absmax, the quotients
and the product are float32, each rounded once, and the product is then rounded to the nearest integer, half to even.
Every implementation gives these integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = 127
"""The largest magnitude: -128 is not used, so that a row and its negative have the same integers."""
LEAST_ABSMAX = 2.0**-118
"""What absmax counts as at least: below it 127 / absmax or absmax / 127 leave float32's normal numbers."""


def forward(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.shape[-1] == 0:  # amax has no answer there
        ones = torch.ones(x.shape[:-1], dtype=torch.float32, device=x.device)
        return x.new_empty(x.shape, dtype=torch.int8), ones * (LEAST_ABSMAX / LEVELS if scale is None else scale)
    x32 = x.float()
    absmax = torch.linalg.vector_norm(x32, math.inf, -1, keepdim=True)  # NaN where the row has one
    ok = absmax < math.inf
    if scale is None:
        absmax = absmax.clamp(min=LEAST_ABSMAX)
        levels = torch.full_like(absmax, LEVELS)  # with a number torch multiplies by a reciprocal: two roundings
        x_scale, inverse = absmax / levels, levels / absmax
    else:
        x_scale, inverse = scale.expand(absmax.shape), scale.reciprocal()
        ok = ok & (scale > 0.0) & (scale < math.inf) & (inverse < math.inf)
        inverse = inverse.expand(absmax.shape)
    scaled = (x32 * torch.where(ok, inverse, 0.0)).round_()
    if scale is not None:
        scaled = scaled.clamp_(-LEVELS, LEVELS)
    x_q = torch.where(ok, scaled, 0.0).to(torch.int8).contiguous()
    return x_q, torch.where(ok, x_scale, math.nan).squeeze(-1).contiguous()
