"""Launcher of bias_gelu_quantize in CUDA C++ (csrc/bias_gelu_quantize): signature and contract are those of
kernels/bias_gelu_quantize.py.
"""

from __future__ import annotations

from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, flat


def bias_gelu_quantize_fwd(
    x_q: Tensor, x_scale: Tensor, x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool
) -> None:
    """Writes x_q and x_scale; arguments as of the op (fasttx/ops/bias_gelu_quantize/op.py)."""
    rows = as_rows(x)
    launch(
        "bias_gelu_quantize_fwd",
        x_q=x_q,
        x_scale=x_scale,
        x=rows,
        bias=flat(bias),
        scale=scale,
        dtype=x.dtype,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
        tanh=tanh,
    )
