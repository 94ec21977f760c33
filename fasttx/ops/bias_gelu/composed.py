"""bias_gelu of PyTorch's own operators, on any device: in the dtype to which x and bias promote, as users write it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dropout import rows as row_dropout
from ..dropout.rows import GELU_TAG, keep_scale

_gelu_backward = torch.ops.aten.gelu_backward.default


def approximation(tanh: bool) -> str:
    """torch's name of it."""
    return "tanh" if tanh else "none"


def exact_keep(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the kernels for x, bool."""
    if row_index is None:
        row_index = torch.arange(math.prod(x.shape[:-1]), device=x.device)
    rows = row_index.to(torch.int64)
    return row_dropout.row_keep(rng_state, rows, x.shape[-1], GELU_TAG, dropout_p).reshape(x.shape)


def drawn_keep(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the `torch` backend: with numbered rows the exact one, a function of them, else the fast one."""
    if row_index is not None:
        return exact_keep(x, row_index, rng_state, dropout_p)
    return row_dropout.drawn_keep(rng_state, x.shape, GELU_TAG, dropout_p)


def _factor(
    x: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, dtype: torch.dtype
) -> Tensor | None:
    """What GELU's result is multiplied by, keep / (1 - p_hat); None where nothing is dropped."""
    if rng_state is None:
        return None
    return drawn_keep(x, row_index, rng_state, dropout_p).to(dtype).mul_(keep_scale(dropout_p))


def forward(
    x: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, tanh: bool
) -> Tensor:
    z = x if bias is None else x + bias
    out = F.gelu(z, approximate=approximation(tanh))
    factor = _factor(x, row_index, rng_state, dropout_p, z.dtype)
    if factor is not None:
        out = out * factor
    return out.to(x.dtype).contiguous()


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
    z = x if bias is None else x + bias
    dz = dout.to(z.dtype)
    factor = _factor(x, row_index, rng_state, dropout_p, z.dtype)
    if factor is not None:
        dz = dz * factor
    dz = _gelu_backward(dz, z, approximate=approximation(tanh))
    none = x.new_empty((0,))
    dbias = none
    if needs_dbias and bias is not None:
        dbias = dz.reshape(-1, x.shape[-1]).sum(0).to(bias.dtype)
    return (dz.to(x.dtype).contiguous() if needs_dx else none), dbias


def differentiable(x: Tensor, bias: Tensor | None, keep: Tensor | None, dropout_p: float, tanh: bool) -> Tensor:
    """out from operators that can be differentiated any number of times; `keep` is the mask."""
    z = x.float() if bias is None else x.float() + bias.float()
    out = F.gelu(z, approximate=approximation(tanh))
    return (out if keep is None else out * (keep.float() * keep_scale(dropout_p))).to(x.dtype)
