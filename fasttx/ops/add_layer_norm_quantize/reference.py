"""add_layer_norm_quantize in float64, from the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dropout_add_layer_norm.reference import forward as norm
from ..quantize_per_token.reference import unrounded


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    out, _, _ = norm(x, residual, weight, bias, None, None, 0.0, eps, out_dtype)
    return (out, *unrounded(out, scale))
