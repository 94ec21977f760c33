"""Symmetric int8 by rows.

Mathematics
    absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
    even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
    How that is computed: kernels/row_scale.py.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them. x lies by rows at one stride with
    columns at stride 1; x_q and x_scale are contiguous. 16-byte loads where base and stride allow. A row with a NaN or
    infinity, and every row of a scale that is not positive and finite with a finite inverse, gets integers 0 and the
    scale NaN. Compiled without contraction (kernels/row_scale.py). Deterministic. Rows of at most MAX_COLS
    columns.

Cost
    4 flop an element; x once, a byte an element and 4 bytes a row. Shared memory: that of the maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .row_scale import config, store_quantised
from .rows import as_rows

MAX_COLS = 16384


@triton.jit(do_not_specialize=["n_rows"])
def quantize_per_token_kernel(
    x_q_ptr,
    x_scale_ptr,
    x_ptr,
    scale_ptr,
    n_rows,
    n_cols,
    stride_xm,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STATIC: tl.constexpr,
):
    first, local = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    rows = first + local
    cols = tl.arange(0, BLOCK_N)
    row_ok = rows < n_rows
    ok = row_ok[:, None] & (cols < n_cols)[None, :]
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    # offsets of 32 bits within the tile: those of 64 bits spill on sm_100 where rows are not aligned
    x_q_ptr += first.to(tl.int64) * n_cols
    at = local[:, None] * n_cols + cols[None, :]
    store_quantised(x_q_ptr, x_scale_ptr, scale_ptr, x, rows, at, row_ok, ok, ROWS, STATIC)


def quantize_per_token_fwd(x_q: Tensor, x_scale: Tensor, x: Tensor, scale: Tensor | None) -> None:
    rows, stride_xm = as_rows(x)
    n_rows, n_cols = rows.shape
    block = config(n_cols)
    quantize_per_token_kernel[(triton.cdiv(n_rows, block.rows),)](
        x_q,
        x_scale,
        rows,
        scale,
        n_rows,
        n_cols,
        stride_xm,
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        STATIC=scale is not None,
        num_warps=block.num_warps,
        enable_fp_fusion=False,
    )
