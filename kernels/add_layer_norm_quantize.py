"""Layer norm of x + residual, and symmetric int8 of its rows, in one pass.

Mathematics
    out = layer norm of x + residual, as in kernels/dropout_add_layer_norm.py, rounded to its dtype;
    x_q and x_scale are those of the rounded out, as in kernels/row_scale.py.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them. Tile, layout, order of sums and options
    of the compiler (no contraction) are dropout_add_layer_norm's, so that out has the same bits; on sm_100, where ptxas
    fuses packed pairs all the same, up to the last one. x and residual lie by rows at one stride with columns at stride
    1; out, x_q and x_scale are contiguous. 16-byte accesses where base and stride allow, 4 to 16 bytes of x_q. z, mean
    and rstd are not written. A row of out with a NaN or infinity gets integers 0 and the scale NaN. Deterministic. Rows
    of at most dropout_add_layer_norm's MAX_COLS columns.

Cost
    About 14 flop an element; x, residual and out once, a byte an element and 4 bytes a row. Shared memory: reductions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layer_norm import config, normalised
from .row_scale import store_quantised
from .rows import as_rows, flat, row_vector


@triton.jit(do_not_specialize=["n_rows"])
def add_layer_norm_quantize_kernel(
    out_ptr,
    x_q_ptr,
    x_scale_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    n_rows,
    n_cols,
    stride_xm,
    stride_rm,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    STATIC: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_cols
    ok = row_ok[:, None] & col_ok[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    z = tl.load(x_ptr + long_rows * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        z += tl.load(residual_ptr + long_rows * stride_rm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    xhat, _, _ = normalised(z, col_ok, n_cols, eps)
    weight = row_vector(weight_ptr, cols, col_ok, WEIGHT, 1.0)
    out = (xhat * weight + row_vector(bias_ptr, cols, col_ok, BIAS, 0.0)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + long_rows * n_cols + cols[None, :], out, mask=ok)
    # bytes would ask for 16 columns in a row a thread, and move the elements, and so the order of the sums, with them
    run_cols = tl.max_contiguous(tl.arange(0, BLOCK_N), RUN)
    rounded = tl.where(col_ok[None, :], out.to(tl.float32), 0.0)
    at = long_rows * n_cols + run_cols[None, :]
    store_quantised(x_q_ptr, x_scale_ptr, scale_ptr, rounded, rows, at, row_ok, ok, ROWS, STATIC)


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
    x_rows, stride_xm = as_rows(x)
    residual_rows, stride_rm = as_rows(residual)
    n_cols, n_rows = x.shape[-1], x_scale.numel()
    block = config("fwd", n_cols)
    narrowest = min(t.element_size() for t in (x, residual, out) if t is not None)
    add_layer_norm_quantize_kernel[(triton.cdiv(n_rows, block.rows),)](
        out,
        x_q,
        x_scale,
        x_rows,
        residual_rows,
        flat(weight),
        flat(bias),
        scale,
        n_rows,
        n_cols,
        stride_xm,
        stride_rm,
        eps,
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        RUN=16 // narrowest,
        RESIDUAL=residual is not None,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        STATIC=scale is not None,
        num_warps=block.num_warps,
        enable_fp_fusion=False,
    )
