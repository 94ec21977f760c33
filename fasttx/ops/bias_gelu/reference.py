"""bias_gelu in float64, from the formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import composed


def _factor(x: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float) -> Tensor | float:
    """What GELU's result is multiplied by: keep / (1 - p_hat)."""
    if rng_state is None:
        return 1.0
    return composed.exact_keep(x, row_index, rng_state, dropout_p).double() * composed.keep_scale(dropout_p)


def _z(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.double() if bias is None else x.double() + bias.double()


def forward(
    x: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, tanh: bool
) -> Tensor:
    z = _z(x, bias)
    if tanh:
        phi = 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))
    else:
        phi = 0.5 * torch.erfc(-z / math.sqrt(2.0))
    return z * phi * _factor(x, row_index, rng_state, dropout_p)


def backward(
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    needs_dx: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor]:
    z = _z(x, bias)
    if tanh:
        k = math.sqrt(2.0 / math.pi)
        t = torch.tanh(k * (z + 0.044715 * z**3))
        slope = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * k * (1.0 + 3.0 * 0.044715 * z * z)
    else:
        slope = 0.5 * torch.erfc(-z / math.sqrt(2.0)) + z * torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    dz = dout.double() * _factor(x, row_index, rng_state, dropout_p) * slope
    none = dz.new_empty((0,))
    return dz if needs_dx else none, dz.reshape(-1, x.shape[-1]).sum(0) if needs_dbias else none
