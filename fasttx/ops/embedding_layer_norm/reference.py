"""embedding_layer_norm in float64, from the formulas of kernels/embedding_layer_norm.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dropout.rows import keep_scale
from .composed import exact_keep


def _z(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
) -> Tensor:
    z = word.double()[ids.long()]
    rows = torch.arange(ids.shape[0], device=ids.device)
    for index, table in ((position_ids, position), (type_ids, token_type)):
        if index is not None and table is not None:
            z = z + table.double()[index.long()[rows % max(index.shape[0], 1)]]
    return z


def _factor(
    ids: Tensor, word: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float
) -> Tensor | float:
    if rng_state is None:
        return 1.0
    keep = exact_keep(ids, word.shape[1], row_index, rng_state, dropout_p)
    return keep.double() * keep_scale(dropout_p)


def forward(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    z = _z(ids, word, position_ids, position, type_ids, token_type)
    mean = z.mean(-1, keepdim=True)
    rstd = ((z - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    out = (z - mean) * rstd
    if weight is not None:
        out = out * weight.double()
    if bias is not None:
        out = out + bias.double()
    return out * _factor(ids, word, row_index, rng_state, dropout_p), mean.flatten(), rstd.flatten()


def backward(
    dout: Tensor,
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    needs_dz: bool,
    needs_dtoken_type: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = _z(ids, word, position_ids, position, type_ids, token_type)
    rstd = rstd.double().view(-1, 1)
    xhat = (z - mean.double().view(-1, 1)) * rstd
    dy = dout.double() * _factor(ids, word, row_index, rng_state, dropout_p)
    g = dy if weight is None else dy * weight.double()
    dz = rstd * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))
    none = dy.new_empty((0,))
    dtoken_type = none
    if needs_dtoken_type and token_type is not None and type_ids is not None:
        types = type_ids.long()[torch.arange(ids.shape[0], device=ids.device) % max(type_ids.shape[0], 1)]
        dtoken_type = torch.stack([dz[types == t].sum(0) for t in range(token_type.shape[0])])
    return (
        dz if needs_dz else none,
        dtoken_type,
        (dy * xhat).sum(0) if needs_dweight else none,
        dy.sum(0) if needs_dbias else none,
    )
