"""add_layer_norm_quantize composed of PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dropout_add_layer_norm import composed as norm
from ..quantize_per_token import composed as quantising


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    out, _, _ = norm.forward(x, residual, weight, bias, None, None, 0.0, eps, out_dtype)
    return (out, *quantising.forward(out, scale))
