"""dropout_add_layer_norm of PyTorch's own operators, on any device.

native_layer_norm and its backward are what torch.layer_norm runs; called here in float32, whose statistics are float32
on every device (in half precision a CPU rounds them).  On a CPU float32 is copied nowhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dropout import rows as row_dropout
from ..dropout.rows import LAYER_NORM_TAG, keep_scale

_native = torch.ops.aten.native_layer_norm.default
_native_backward = torch.ops.aten.native_layer_norm_backward.default


def exact_keep(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the kernels for x, bool."""
    if row_index is None:
        row_index = torch.arange(math.prod(x.shape[:-1]), device=x.device)
    rows = row_index.to(torch.int64)
    return row_dropout.row_keep(rng_state, rows, x.shape[-1], LAYER_NORM_TAG, dropout_p).reshape(x.shape)


def drawn_keep(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the `torch` backend: with numbered rows the exact one, a function of them, else the fast one."""
    if row_index is not None:
        return exact_keep(x, row_index, rng_state, dropout_p)
    return row_dropout.drawn_keep(rng_state, x.shape, LAYER_NORM_TAG, dropout_p)


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()


def _factor(x: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float) -> Tensor | None:
    """What x is multiplied by, float32: keep / (1 - p_hat); None where nothing is dropped."""
    if rng_state is None:
        return None
    return drawn_keep(x, row_index, rng_state, dropout_p).float().mul_(keep_scale(dropout_p))


def _z(x: Tensor, residual: Tensor | None, factor: Tensor | None) -> Tensor:
    """dropout(x) + residual in float32."""
    z = x.float()
    if factor is None:
        return z if residual is None else z + residual.float()
    return z * factor if residual is None else torch.addcmul(residual.float(), z, factor)


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
    z = _z(x, residual, _factor(x, row_index, rng_state, dropout_p))
    out, mean, rstd = _native(z, [x.shape[-1]], _float(weight), _float(bias), eps)
    return out.to(out_dtype).contiguous(), mean.reshape(-1), rstd.reshape(-1)


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
    factor = _factor(x, row_index, rng_state, dropout_p)
    statistics = (*x.shape[:-1], 1)
    mask = [needs_dx or needs_dresidual, needs_dweight, needs_dbias]
    dz, dweight, dbias = _native_backward(
        dout.float(),
        _z(x, residual, factor),
        [x.shape[-1]],
        mean.view(statistics),
        rstd.view(statistics),
        _float(weight),
        _float(bias),
        mask,
    )
    # outputs of an operator may not share memory: dx and dresidual may both be dz
    dresidual = dz.to(residual.dtype).contiguous() if needs_dresidual and residual is not None else x.new_empty((0,))
    if not needs_dx:
        dx = x.new_empty((0,))
    elif factor is not None:
        dx = (dz * factor).to(x.dtype).contiguous()
    else:
        dx = (dz.clone() if dresidual is dz else dz).to(x.dtype).contiguous()
    return (
        dx,
        dresidual,
        dweight.to(weight.dtype) if needs_dweight and weight is not None else x.new_empty((0,)),
        dbias.to(bias.dtype) if needs_dbias and bias is not None else x.new_empty((0,)),
    )


def differentiable(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    keep: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """out from operators that can be differentiated any number of times; `keep` is the mask."""
    factor = None if keep is None else keep.float() * keep_scale(dropout_p)
    out = torch.layer_norm(_z(x, residual, factor), [x.shape[-1]], _float(weight), _float(bias), eps, False)
    return out.to(out_dtype)
