"""Launcher of add_layer_norm_quantize in C++ for a CPU (csrc/cpu/rows.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu.launch import address, at, kernels, threads
from ..cuda.rows import as_rows, flat


def add_layer_norm_quantize_fwd(
    out: Tensor,
    x_q: Tensor,
    x_scale: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> None:
    """Writes out, x_q and x_scale; arguments as of the op (fasttx/ops/add_layer_norm_quantize/op.py)."""
    rows = as_rows(x)
    residual_rows = None if residual is None else as_rows(residual)
    weight, bias = flat(weight), flat(bias)
    kernels().add_layer_norm_quantize_fwd(
        *(*at(out), x_q.data_ptr(), x_scale.data_ptr()),
        *(*at(rows), *at(residual_rows), *at(weight), *at(bias), address(scale)),
        *(*rows.shape, rows.stride(0), 0 if residual_rows is None else residual_rows.stride(0)),
        *(eps, threads()),
    )
