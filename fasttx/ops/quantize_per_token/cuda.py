"""Launcher of quantize_per_token in CUDA C++ (csrc/quantize_per_token): signature and contract are those of
kernels/quantize_per_token.py.
"""

from __future__ import annotations

from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows


def quantize_per_token_fwd(x_q: Tensor, x_scale: Tensor, x: Tensor, scale: Tensor | None) -> None:
    """Writes x_q and x_scale; arguments as of the op (fasttx/ops/quantize_per_token/op.py)."""
    rows = as_rows(x)
    launch(
        "quantize_per_token_fwd",
        x_q=x_q,
        x_scale=x_scale,
        x=rows,
        scale=scale,
        dtype=x.dtype,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
    )
