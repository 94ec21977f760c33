"""Launcher of quantize_per_token in C++ for a CPU (csrc/cpu/rows.h)."""

from __future__ import annotations

from torch import Tensor

from ..cpu.launch import address, at, kernels, threads
from ..cuda.rows import as_rows


def quantize_per_token_fwd(x_q: Tensor, x_scale: Tensor, x: Tensor, scale: Tensor | None) -> None:
    """Writes x_q and x_scale; arguments as of the op (fasttx/ops/quantize_per_token/op.py)."""
    rows = as_rows(x)
    (n_rows, n_cols), stride = rows.shape, rows.stride(0)
    kernels().quantize_per_token_fwd(
        *(x_q.data_ptr(), x_scale.data_ptr(), *at(rows), address(scale)),
        *(n_rows, n_cols, stride, threads()),
    )
