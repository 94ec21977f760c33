"""Launcher of int8_linear in C++ for a CPU (csrc/cpu/int8_linear.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu.launch import at, kernels, threads
from ..cuda.rows import as_rows, flat
from .op import ACTIVATIONS


def int8_linear_fwd(
    out: Tensor,
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/int8_linear/op.py)."""
    x_rows, w_rows, bias = as_rows(x_q), as_rows(w_q), flat(bias)
    x_scale, w_scale = x_scale.contiguous(), w_scale.contiguous()
    residual = None if residual is None else as_rows(residual)
    n_rows, n_in = x_rows.shape
    kernels().int8_linear_fwd(
        *(*at(out), x_rows.data_ptr(), w_rows.data_ptr(), x_scale.data_ptr(), w_scale.data_ptr()),
        *(*at(bias), *at(residual)),
        *(n_rows, w_rows.shape[0], n_in, x_rows.stride(0), w_rows.stride(0)),
        *(0 if residual is None else residual.stride(0), ACTIVATIONS.index(activation), threads()),
    )
