"""Launcher of bias_gelu_quantize in C++ for a CPU (csrc/cpu/rows.h)."""

from __future__ import annotations

from torch import Tensor

from ..cpu.launch import address, at, kernels, threads
from ..cuda.rows import as_rows, flat


def bias_gelu_quantize_fwd(
    x_q: Tensor, x_scale: Tensor, x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool
) -> None:
    """Writes x_q and x_scale; arguments as of the op (fasttx/ops/bias_gelu_quantize/op.py)."""
    rows, bias = as_rows(x), flat(bias)
    kernels().bias_gelu_quantize_fwd(
        *(x_q.data_ptr(), x_scale.data_ptr(), *at(rows), *at(bias), address(scale)),
        *(*rows.shape, rows.stride(0), tanh, threads()),
    )
