"""Launcher of add_layer_norm_quantize in CUDA C++ (csrc/add_layer_norm_quantize): signature and contract are those of
kernels/add_layer_norm_quantize.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.launch import launch
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
    launch(
        "add_layer_norm_quantize_fwd",
        out=out,
        x_q=x_q,
        x_scale=x_scale,
        x=rows,
        residual=residual_rows,
        weight=flat(weight),
        bias=flat(bias),
        scale=scale,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
        stride_rm=0 if residual_rows is None else residual_rows.stride(0),
        eps=eps,
    )
