"""GELU of x + bias, then dropout, tile by tile: forward and backward.

Mathematics
    z = x + bias,   out = keep / (1 - p_hat) * gelu(z)
    erf:   gelu(z) = z (1 + erf(z / sqrt 2)) / 2,   gelu'(z) = (1 + erf(z / sqrt 2)) / 2 + z exp(-z^2 / 2) / sqrt(2 pi)
    tanh:  with u = sqrt(2 / pi) (z + 0.044715 z^3) and s = sigmoid(2 u) = (1 + tanh u) / 2:
           gelu(z) = z s,   gelu'(z) = s + z * 2 s (1 - s) u',   u' = sqrt(2 / pi) (1 + 3 * 0.044715 z^2)
    With e = exp(-|2 u|), s is 1 / (1 + e) or e / (1 + e), and s (1 - s) = e / (1 + e)^2: no exponential overflows, and
    no difference of nearly equal numbers is taken in either tail. erf is computed as its own tail: gelu.py.
    backward:   dx = gelu'(z) * keep * dout / (1 - p_hat),   dbias = sum over rows of dx

Contract
    A tile is ROWS x BLOCK_N elements; programs count the tiles of a row first, so that neighbours read neighbouring
    memory. Forward, and backward without dbias: one tile a program. Backward with dbias: a program keeps to its columns
    and takes tiles of rows in turn, i, i + P, ..., with a float32 sum of what it computed of dx before rounding; each
    writes one row of partial sums, and a second kernel adds these in the order of the programs. No atomics: bitwise
    deterministic, and P is a function of the shape alone. x and dout lie by rows at one stride with columns at
    stride 1; outputs are contiguous; 16-byte accesses where base and stride allow. z is never written.

Cost
    Forward about 30 flop an element, backward 35 (gelu.py counts them); bytes: x and out, or dout, x and dx, once; the
    partial sums 4 bytes a column and program of rows, twice. A Philox call for 16 elements in either direction.
    Shared memory: the sum over a tile's rows, and the exchange of the dropout mask, 1 byte per element of the tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gelu import gelu, gelu_derivative, shifted
from .reduce import SUM_COLS, SUM_ROWS, layer_norm_sum_kernel
from .row_dropout import GELU_TAG, keep_scale, numbered_keep, threshold
from .rows import as_rows, flat

TAG = tl.constexpr(GELU_TAG)
BLOCK_N = 256
"""Columns of a tile: a warp reads 512 bytes of a row of halves, and the widths of encoders are multiples of it."""
PROGRAMS = 1056
"""Programs of a backward with dbias at most: eight, as many as the registers hold in halves, for each of an
H100's multiprocessors (132). A constant, not the device's own number: the same sums on every device."""


class Config(NamedTuple):
    """Tile of one program: ROWS x BLOCK_N elements by num_warps warps."""

    rows: int
    block_n: int
    num_warps: int


# kernel -> (elements of a tile, its warps). Chosen by registers, not yet timed (docs/kernels/bias_gelu.md): 16 bytes of
# halves are 8 elements, hence two accesses a thread forward; backward has one of x and one of dout, and keeps a sum.
TABLE: dict[str, tuple[int, int]] = {"fwd": (2048, 4), "bwd": (1024, 4)}


def config(kernel: str, n_cols: int) -> Config:
    """The tile for rows of n_cols elements.

    Args:
        kernel: "fwd" or "bwd".
        n_cols: length of a row.
    """
    elements, num_warps = TABLE[kernel]
    block_n = min(BLOCK_N, max(16, triton.next_power_of_2(n_cols)))  # 16: the columns of one Philox call
    return Config(elements // block_n, block_n, num_warps)


@triton.jit(do_not_specialize=["n_rows"])
def bias_gelu_fwd_kernel(
    out_ptr,
    x_ptr,
    bias_ptr,
    index_ptr,
    rng_ptr,
    n_rows,
    n_cols,
    stride_xm,
    threshold,
    keep_scale,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr,
    TANH: tl.constexpr,
    DROPOUT: tl.constexpr,
    INDEXED: tl.constexpr,
):
    pid, col_tiles = tl.program_id(0), tl.cdiv(n_cols, BLOCK_N)
    rows = pid // col_tiles * ROWS + tl.arange(0, ROWS)
    col_start = pid % col_tiles * BLOCK_N
    cols = col_start + tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_cols
    ok = row_ok[:, None] & col_ok[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    z = shifted(x_ptr, bias_ptr, long_rows * stride_xm + cols[None, :], cols, ok, col_ok, BIAS)
    out = gelu(z, TANH)
    if DROPOUT:
        keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, col_start, TAG, threshold, INDEXED, ROWS, BLOCK_N)
        out = tl.where(keep, out * keep_scale, 0.0)
    tl.store(out_ptr + long_rows * n_cols + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["n_rows", "row_programs"])
def bias_gelu_bwd_kernel(
    dx_ptr,
    partial_ptr,
    dout_ptr,
    x_ptr,
    bias_ptr,
    index_ptr,
    rng_ptr,
    n_rows,
    n_cols,
    stride_dm,
    stride_xm,
    row_programs,
    threshold,
    keep_scale,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr,
    TANH: tl.constexpr,
    DROPOUT: tl.constexpr,
    INDEXED: tl.constexpr,
    DX: tl.constexpr,
    DBIAS: tl.constexpr,
):
    """partial_ptr: float32 (row_programs, n_cols), the sums of each program."""
    pid, col_tiles = tl.program_id(0), tl.cdiv(n_cols, BLOCK_N)
    row_program = pid // col_tiles
    col_start = pid % col_tiles * BLOCK_N
    cols = col_start + tl.arange(0, BLOCK_N)
    col_ok = cols < n_cols
    dbias = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for tile in range(row_program, tl.cdiv(n_rows, ROWS), row_programs):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row_ok = rows < n_rows
        ok = row_ok[:, None] & col_ok[None, :]
        long_rows = rows.to(tl.int64)[:, None]
        dx = tl.load(dout_ptr + long_rows * stride_dm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        z = shifted(x_ptr, bias_ptr, long_rows * stride_xm + cols[None, :], cols, ok, col_ok, BIAS)
        if DROPOUT:
            keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, col_start, TAG, threshold, INDEXED, ROWS, BLOCK_N)
            dx = tl.where(keep, dx * keep_scale, 0.0)
        dx *= gelu_derivative(z, TANH)
        if DX:
            tl.store(dx_ptr + long_rows * n_cols + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)
        if DBIAS:
            dbias += dx  # 0 beyond the tensor, as dout is
    if DBIAS:
        # row_programs x n_cols are counted in 32 bits
        tl.store(partial_ptr + row_program * n_cols + cols, tl.sum(dbias, 0), mask=col_ok)


# ----------------------------------------------------------------------------------------------------------- launchers


def _length_of_rows(x: Tensor, alike: bool, dout: Tensor | None = None) -> int:
    """n_cols; where all columns are treated alike and lie in one piece, a length without idle lanes at its end."""
    whole = alike and x.is_contiguous() and (dout is None or dout.is_contiguous())
    return BLOCK_N if whole and x.numel() % BLOCK_N == 0 else x.shape[-1]


def bias_gelu_fwd(
    out: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/bias_gelu/op.py)."""
    dropout = rng_state is not None
    n_cols = _length_of_rows(x, bias is None and not dropout)
    x_rows, stride_xm = as_rows(x, n_cols)
    n_rows = x_rows.shape[0]
    block = config("fwd", n_cols)
    bias_gelu_fwd_kernel[(triton.cdiv(n_rows, block.rows) * triton.cdiv(n_cols, block.block_n),)](
        out,
        x_rows,
        flat(bias),
        flat(row_index),
        rng_state,
        n_rows,
        n_cols,
        stride_xm,
        threshold(dropout_p),
        keep_scale(dropout_p),
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        BIAS=bias is not None,
        TANH=tanh,
        DROPOUT=dropout,
        INDEXED=dropout and row_index is not None,
        num_warps=block.num_warps,
    )


def bias_gelu_bwd(
    dx: Tensor,
    dbias: Tensor,
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    needs_dx: bool,
    needs_dbias: bool,
) -> None:
    """Writes the gradients that are needed; the others are of no element."""
    dropout = rng_state is not None
    n_cols = _length_of_rows(x, bias is None and not dropout, dout)
    x_rows, stride_xm = as_rows(x, n_cols)
    dout_rows, stride_dm = as_rows(dout, n_cols)
    n_rows = x_rows.shape[0]
    block = config("bwd", n_cols)
    tiles, col_tiles = triton.cdiv(n_rows, block.rows), triton.cdiv(n_cols, block.block_n)
    row_programs, partial = tiles, None
    if needs_dbias:
        row_programs = min(tiles, max(PROGRAMS // col_tiles, 1))
        partial = torch.empty((row_programs, n_cols), dtype=torch.float32, device=x.device)
    bias_gelu_bwd_kernel[(row_programs * col_tiles,)](
        dx,
        partial,
        dout_rows,
        x_rows,
        flat(bias),
        flat(row_index),
        rng_state,
        n_rows,
        n_cols,
        stride_dm,
        stride_xm,
        row_programs,
        threshold(dropout_p),
        keep_scale(dropout_p),
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        BIAS=bias is not None,
        TANH=tanh,
        DROPOUT=dropout,
        INDEXED=dropout and row_index is not None,
        DX=needs_dx,
        DBIAS=needs_dbias,
        num_warps=block.num_warps,
    )
    if needs_dbias:
        layer_norm_sum_kernel[(triton.cdiv(n_cols, SUM_COLS),)](
            None,
            dbias,
            partial,
            row_programs,
            n_cols,
            DWEIGHT=False,
            DBIAS=True,
            R=SUM_ROWS,
            C=SUM_COLS,
            num_warps=4,
        )
