"""Symmetric int8 of rows that lie in registers, for quantize_per_token and kernels that quantise their own result.

Mathematics
    absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
    even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
    round(v) = (v + 1.5 2^23) - 1.5 2^23 for |v| < 2^22: between 2^23 and 2^24 float32 holds the integers alone.

Contract
    A row with a NaN or infinity, and every row of a scale that is not positive and finite with a finite inverse, gets
    integers 0 and the scale NaN. x is 0 beyond the end of a row. A compiler that contracts must not make one
    fma(x, inverse, 1.5 2^23) of product and sum, which would round other integers than the definition: the clamp
    stands between the two, and without a scale given it changes nothing.

Cost
    4 flop an element. Shared memory: that of the maximum.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

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
def store_quantised(x_q_ptr, x_scale_ptr, scale_ptr, x, rows, at, row_ok, ok, ROWS: tl.constexpr, STATIC: tl.constexpr):
    """Writes the integers of x, float32 (ROWS, BLOCK_N), at the offsets `at` of x_q, and the scales of its rows."""
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
    # needed without a scale given too: on sm_100 ptxas fuses packed pairs though both say .rn
    v = tl.minimum(tl.maximum(v, -127.0), 127.0)
    q = ((v + MAGIC) - MAGIC).to(tl.int8)
    tl.store(x_q_ptr + at, q, mask=ok)
    tl.store(x_scale_ptr + rows, tl.where(good, scale, float("nan")), mask=row_ok)
