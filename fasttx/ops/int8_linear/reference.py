"""int8_linear in float64, from the formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward(
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    y = (x_q.double() @ w_q.double().t()) * x_scale.double()[:, None] * w_scale.double()
    if bias is not None:
        y = y + bias.double()
    if activation == "gelu":
        y = 0.5 * y * (1.0 + torch.erf(y / math.sqrt(2.0)))
    elif activation == "gelu_tanh":
        y = 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))
    return y if residual is None else y + residual.double()
