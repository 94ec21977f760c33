"""dropout_add_layer_norm in float64, from the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from . import composed


def _z(
    x: Tensor, residual: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float
) -> tuple[Tensor, Tensor | float]:
    """z, and what x is multiplied by: keep / (1 - p_hat)."""
    factor: Tensor | float = 1.0
    if rng_state is not None:
        factor = composed.exact_keep(x, row_index, rng_state, dropout_p).double()
        factor = factor * composed.keep_scale(dropout_p)
    z = x.double() * factor
    return z if residual is None else z + residual.double(), factor


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    z, _ = _z(x, residual, row_index, rng_state, dropout_p)
    mean = z.mean(-1, keepdim=True)
    rstd = ((z - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    out = (z - mean) * rstd
    if weight is not None:
        out = out * weight.double()
    if bias is not None:
        out = out + bias.double()
    return out, mean.flatten(), rstd.flatten()


def backward(
    dout: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, factor = _z(x, residual, row_index, rng_state, dropout_p)
    statistics = (*x.shape[:-1], 1)
    rstd = rstd.double().view(statistics)
    xhat = (z - mean.double().view(statistics)) * rstd
    dy = dout.double()
    g = dy if weight is None else dy * weight.double()
    dz = rstd * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))
    none, rows = dy.new_empty((0,)), (-1, x.shape[-1])
    return (
        dz * factor if needs_dx else none,
        dz if needs_dresidual else none,
        (dy * xhat).reshape(rows).sum(0) if needs_dweight else none,
        dy.reshape(rows).sum(0) if needs_dbias else none,
    )
