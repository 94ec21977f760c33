"""GELU of x + bias, and symmetric int8 of its rows, in one pass.

Mathematics
    a = gelu(x + bias), as in kernels/bias_gelu.py, rounded to the dtype of x;
    x_q and x_scale are those of the rounded a, as in kernels/row_scale.py.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them; a is not written. The tile is that of
    quantize_per_token, and the expressions and options of the compiler are bias_gelu's, so that a has the same bits. x
    lies by rows at one stride with columns at stride 1; x_q and x_scale are contiguous. 16-byte loads where base and
    stride allow. A row of a with a NaN or infinity gets integers 0 and the scale NaN. Deterministic. Rows of at most
    quantize_per_token's MAX_COLS columns, with a scale given too: then no row needs to be whole, but a kernel of its
    own would save one maximum a row and no byte.

Cost
    About 34 flop an element (gelu.py); x once, a byte an element and 4 bytes a row. Shared memory: that of
    the maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .gelu import gelu, shifted
from .row_scale import config, store_quantised
from .rows import as_rows, flat


@triton.jit(do_not_specialize=["n_rows"])
def bias_gelu_quantize_kernel(
    x_q_ptr,
    x_scale_ptr,
    x_ptr,
    bias_ptr,
    scale_ptr,
    n_rows,
    n_cols,
    stride_xm,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr,
    TANH: tl.constexpr,
    STATIC: tl.constexpr,
):
    first, local = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + local
    cols = tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_cols
    ok = row_ok[:, None] & col_ok[None, :]
    z = shifted(x_ptr, bias_ptr, rows.to(tl.int64)[:, None] * stride_xm + cols[None, :], cols, ok, col_ok, BIAS)
    rounded = gelu(z, TANH).to(x_ptr.dtype.element_ty).to(tl.float32)  # gelu(0) = 0 beyond the end of a row
    if ROWS == 1:
        at = rows.to(tl.int64)[:, None] * n_cols + cols[None, :]
    else:  # offsets of 32 bits within the tile: those of 64 bits spill on sm_100 where rows are not aligned
        x_q_ptr += first.to(tl.int64) * n_cols
        at = local[:, None] * n_cols + cols[None, :]
    store_quantised(x_q_ptr, x_scale_ptr, scale_ptr, rounded, rows, at, row_ok, ok, ROWS, STATIC)


def bias_gelu_quantize_fwd(
    x_q: Tensor, x_scale: Tensor, x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool
) -> None:
    """Writes x_q and x_scale; arguments as of the op (fasttx/ops/bias_gelu_quantize/op.py)."""
    rows, stride_xm = as_rows(x)
    n_rows, n_cols = rows.shape
    block = config(n_cols)
    bias_gelu_quantize_kernel[(triton.cdiv(n_rows, block.rows),)](
        x_q,
        x_scale,
        rows,
        flat(bias),
        scale,
        n_rows,
        n_cols,
        stride_xm,
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        BIAS=bias is not None,
        TANH=tanh,
        STATIC=scale is not None,
        num_warps=block.num_warps,
    )
