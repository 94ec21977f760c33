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


class BackwardTile(NamedTuple):
    """Tile of one program of dropout_add_layer_norm's backward: `pieces` times ROWS x COLS elements, side by side."""

    rows: int
    cols: int
    pieces: int
    vector: int
    num_warps: int


def backward_tile(n_cols: int, itemsize: int) -> BackwardTile:
    """The tile for rows of n_cols elements, at most MAX_COLS.

    A piece is what the warps of a row read by one access of 16 bytes each lane; the compiler gives warps to rows where
    a piece is no wider. So 768 halves are three pieces of 256, without an idle lane, where one power of two would be
    1,024, and the lanes of one warp add up a row among themselves, without a barrier.

    Args:
        n_cols: length of a row.
        itemsize: bytes of an element of x or dout, the larger.
    """
    vector = 16 // itemsize
    row_warps = 1 if n_cols <= 1024 else 4 if n_cols <= 4096 else 8  # at most 32 elements a thread
    num_warps = max(row_warps, 4)
    cols = min(row_warps * 32 * vector, max(16, triton.next_power_of_2(n_cols)))
    if triton.cdiv(n_cols, 128) == 3:  # 384, MiniLM's: three pieces of 128, two rows a warp
        cols = 128
    return BackwardTile(num_warps * 32 * vector // cols, cols, triton.cdiv(n_cols, cols), vector, num_warps)


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
def means_of_both(a, b, n_cols):
    """The sums of the rows of a and of b over n_cols; one reduction of pairs, so that both share its barriers."""
    return tl.split(tl.sum(tl.join(a, b), 1) / n_cols)


@triton.jit
def gradient_of_z(g, xhat, rstd, c1, c2):
    """dz from g, the gradient of xhat, and from the means of g xhat and of g over the row."""
    return (g - c2[:, None] - xhat * c1[:, None]) * rstd[:, None]
