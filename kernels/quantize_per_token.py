"""Symmetric int8 by rows.

Mathematics
    absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
    even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
    round(v) = (v + 1.5 2^23) - 1.5 2^23 for |v| < 2^22: between 2^23 and 2^24 float32 holds the integers alone.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them. x lies by rows at one stride with
    columns at stride 1; x_q and x_scale are contiguous. 16-byte loads where base and stride allow. A row with a NaN or
    infinity, and every row of a scale that is not positive and finite with a finite inverse, gets integers 0 and the
    scale NaN. The kernel must be compiled without contraction: fma(x, inverse, 1.5 2^23) would round other integers
    than the definition. Deterministic. Rows of at most MAX_COLS columns.

Cost
    4 flop an element; x once, a byte an element and 4 bytes a row. Shared memory: that of the maximum.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

MAX_COLS = 16384
LEAST_ABSMAX = tl.constexpr(2.0**-118)
MAGIC = tl.constexpr(1.5 * 2.0**23)


class Config(NamedTuple):
    """Tile of one program: ROWS x BLOCK_N elements by num_warps warps."""

    rows: int
    block_n: int
    num_warps: int


SHORT_TILE = 4096
TABLE: dict[int, int] = {SHORT_TILE: 4, 8192: 8, 16384: 16}
"""Columns of a tile -> warps: 32 elements a thread, all loads of which are in flight at once. Not yet timed."""


def config(n_cols: int) -> Config:
    """The tile for rows of n_cols: several short rows, so that a thread always has 32 elements."""
    block_n = max(32, triton.next_power_of_2(n_cols))
    return Config(max(SHORT_TILE // block_n, 1), block_n, TABLE[max(SHORT_TILE, block_n)])


@triton.jit
def quantize_per_token_kernel(
    x_q_ptr, x_scale_ptr, x_ptr, scale_ptr, n_rows, n_cols, stride_xm,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, STATIC: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)
    row_ok = rows < n_rows
    ok = row_ok[:, None] & (cols < n_cols)[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + long_rows * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    size = tl.abs(x)
    absmax = tl.max(tl.where(size < float("inf"), size, float("inf")), 1)  # a maximum may lose a NaN
    good = absmax < float("inf")
    if STATIC:
        scale = tl.load(scale_ptr) + tl.zeros([ROWS], tl.float32)
        inverse = tl.div_rn(1.0 + tl.zeros([ROWS], tl.float32), scale)
        good = good & (scale > 0.0) & (scale < float("inf")) & (inverse < float("inf"))
    else:
        absmax = tl.maximum(absmax, LEAST_ABSMAX)
        levels = 127.0 + tl.zeros([ROWS], tl.float32)
        scale = tl.div_rn(absmax, levels)
        inverse = tl.div_rn(levels, absmax)
    v = tl.where(good[:, None], x * tl.where(good, inverse, 0.0)[:, None], 0.0)
    # without a scale given nothing is clamped; but between product and sum it keeps ptxas from fusing them on sm_100,
    # which it does with packed pairs though both say .rn
    v = tl.minimum(tl.maximum(v, -127.0), 127.0)
    q = ((v + MAGIC) - MAGIC).to(tl.int8)
    tl.store(x_q_ptr + long_rows * n_cols + cols[None, :], q, mask=ok)
    tl.store(x_scale_ptr + rows, tl.where(good, scale, float("nan")), mask=row_ok)


def quantize_per_token_fwd(x_q: Tensor, x_scale: Tensor, x: Tensor, scale: Tensor | None) -> None:
    n_cols = x.shape[-1]
    rows = x.reshape(-1, n_cols)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    block = config(n_cols)
    quantize_per_token_kernel[(triton.cdiv(rows.shape[0], block.rows),)](
        x_q, x_scale, rows, scale, rows.shape[0], n_cols, rows.stride(0),
        ROWS=block.rows, BLOCK_N=block.block_n, STATIC=scale is not None,
        num_warps=block.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
