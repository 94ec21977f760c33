"""What kernels share that normalise the rows of a tile in registers: the tile, xhat, and its gradient.

The formulas stand in dropout_add_layer_norm.py; csrc/common/layer_norm.cuh is the same in CUDA C++.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

PROGRAMS = 264
"""Programs of a backward with sums at most: two, as many as the registers hold, for each of an H100's multiprocessors
(132). A constant, not the device's own number: the same sums on every device."""


class Config(NamedTuple):
    """Tile of one program: ROWS x BLOCK_N elements by num_warps warps."""

    rows: int
    block_n: int
    num_warps: int


SHORT_TILE = 2048
"""Elements of a tile of rows that are not longer."""
# kernel -> {columns of a tile: its warps}. Chosen by registers, not yet timed (docs/kernels/dropout_add_layer_norm.md):
# forward holds one array and loads two, backward five. 32 elements a thread in the widest row: with more warps the
# registers of a thread are fewer, and ptxas spills; at 4,096 columns it does so with 8 warps and not with 16.
TABLE: dict[str, dict[int, int]] = {
    "fwd": {SHORT_TILE: 4, 4096: 8, 8192: 8},
    "bwd": {SHORT_TILE: 8, 4096: 16, 8192: 8},
}


def config(kernel: str, n_cols: int) -> Config:
    """The tile for rows of n_cols elements, at most MAX_COLS.

    Args:
        kernel: "fwd" or "bwd".
        n_cols: length of a row.
    """
    block_n = max(16, triton.next_power_of_2(n_cols))  # 16: the columns of one Philox call
    return Config(max(SHORT_TILE // block_n, 1), block_n, TABLE[kernel][max(SHORT_TILE, block_n)])


@triton.jit
def normalised(z, col_ok, n_cols, eps):
    """xhat, mean and rstd of the rows of z, which is 0 beyond n_cols."""
    mean = tl.sum(z, 1) / n_cols
    d = tl.where(col_ok[None, :], z - mean[:, None], 0.0)
    delta = tl.sum(d, 1) / n_cols
    var = tl.sum(d * d, 1) / n_cols - delta * delta
    var = tl.where(var < 0.0, 0.0, var)  # a constant row, by rounding; a NaN stays
    rstd = tl.rsqrt(var + eps)
    return (d - delta[:, None]) * rstd[:, None], mean + delta, rstd


@triton.jit
def gradient_of_z(g, xhat, rstd, n_cols):
    """dz from g, the gradient of xhat; both are 0 beyond n_cols."""
    c1 = tl.sum(g * xhat, 1) / n_cols
    c2 = tl.sum(g, 1) / n_cols
    return (g - c2[:, None] - xhat * c1[:, None]) * rstd[:, None]
