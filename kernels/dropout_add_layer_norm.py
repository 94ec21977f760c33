"""Layer norm of dropout(x) + residual, row by row: forward and backward.

Mathematics
    z = keep * x / (1 - p_hat) + residual,   mean = sum_j z_j / n,   var = sum_j (z_j - mean)^2 / n,
    rstd = 1 / sqrt(var + eps),   xhat = (z - mean) rstd,   out = xhat weight + bias
    backward, with g = dout weight:   dz = rstd (g - sum_j g_j / n - xhat sum_j g_j xhat_j / n)
    dresidual = dz,  dx = keep * dz / (1 - p_hat),  dweight = sum over rows of dout xhat,  dbias = sum over rows of dout
    The sum of a row is rounded, hence the mean is off by some delta: with d = z - mean, delta = sum_j d_j / n, and
    var = sum_j d_j^2 / n - delta^2, xhat = (d - delta) rstd (the corrected two-pass algorithm of Chan, Golub and
    LeVeque, "Algorithms for computing the sample variance", 1983). So a mean far above the deviations cancels nothing.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them. Forward: one tile a program. Backward:
    programs take tiles in turn, program i the tiles i, i + PROGRAMS, ..., and keep sums of dout xhat and of dout in
    float32; each writes one row of partial sums, and a second kernel adds these in the order of the programs. No
    atomics: bitwise deterministic, and the number of programs is a function of the shape alone. x, residual and dout
    lie by rows at one stride with columns at stride 1; outputs are contiguous; 16-byte accesses where base and stride
    allow. z is never written: backward computes it again, unrounded. Rows of at most MAX_COLS columns. Forward is
    compiled without contraction: where mean is not stored, as in add_layer_norm_quantize, the compiler would fuse
    the product that it is into z - mean, and out would have other bits.

Cost
    Forward about 10 flop an element, backward 14; bytes: x, residual and out, or dout, x, residual, dx and dresidual,
    once; the partial sums 8 bytes a column and program, twice. A Philox call for 16 elements in either direction.
    Shared memory: reductions, and the exchange of the dropout mask, 1 byte per element of the tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_dropout import LAYER_NORM_TAG, keep_scale, numbered_keep, threshold

TAG = tl.constexpr(LAYER_NORM_TAG)
MAX_COLS = 8192
"""Beyond it x, dout and the two sums, each in float32, outgrow the registers of one block."""
PROGRAMS = 264
"""Programs of a backward with sums at most: two, as many as the registers hold, for each of an H100's multiprocessors
(132). A constant, not the device's own number: the same sums on every device."""
SUM_ROWS, SUM_COLS = 32, 32
"""Tile of the second kernel: 128-byte lines, and enough programs for a row of 768 to spread over 24 of them."""


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
def row_vector(ptr, cols, col_ok, PRESENT: tl.constexpr, default: tl.constexpr):
    """weight or bias as float32 (1, BLOCK_N); `default` where there is none."""
    value = tl.full([1, cols.shape[0]], default, tl.float32)
    if PRESENT:
        value = tl.load(ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    return value


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


@triton.jit
def layer_norm_fwd_kernel(
    out_ptr, mean_ptr, rstd_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, index_ptr, rng_ptr,
    n_rows, n_cols, stride_xm, stride_rm, threshold, keep_scale, eps,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_cols
    ok = row_ok[:, None] & col_ok[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    z = tl.load(x_ptr + long_rows * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if DROPOUT:
        keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, 0, TAG, threshold, INDEXED, ROWS, BLOCK_N)
        z = tl.where(keep, z * keep_scale, 0.0)
    if RESIDUAL:
        z += tl.load(residual_ptr + long_rows * stride_rm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    xhat, mean, rstd = normalised(z, col_ok, n_cols, eps)
    weight = row_vector(weight_ptr, cols, col_ok, WEIGHT, 1.0)
    out = xhat * weight + row_vector(bias_ptr, cols, col_ok, BIAS, 0.0)
    tl.store(out_ptr + long_rows * n_cols + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=ok)
    tl.store(mean_ptr + rows, mean, mask=row_ok)
    tl.store(rstd_ptr + rows, rstd, mask=row_ok)


@triton.jit
def layer_norm_bwd_kernel(
    dx_ptr, dresidual_ptr, partial_ptr, dout_ptr, x_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, index_ptr,
    rng_ptr, n_rows, n_cols, stride_dm, stride_xm, stride_rm, threshold, keep_scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT: tl.constexpr, DROPOUT: tl.constexpr,
    INDEXED: tl.constexpr, DX: tl.constexpr, DRESIDUAL: tl.constexpr, DWEIGHT: tl.constexpr, DBIAS: tl.constexpr,
):  # fmt: skip
    """partial_ptr: float32 (DWEIGHT + DBIAS, programs, n_cols), the sums of each program."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    cols = tl.arange(0, BLOCK_N)
    col_ok = cols < n_cols
    dweight = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for tile in range(pid, tl.cdiv(n_rows, ROWS), programs):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row_ok = rows < n_rows
        ok = row_ok[:, None] & col_ok[None, :]
        long_rows = rows.to(tl.int64)[:, None]
        dout = tl.load(dout_ptr + long_rows * stride_dm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, 0, TAG, threshold, INDEXED, ROWS, BLOCK_N)
        if DX or DRESIDUAL or DWEIGHT:
            z = tl.load(x_ptr + long_rows * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
            if DROPOUT:
                z = tl.where(keep, z * keep_scale, 0.0)
            if RESIDUAL:
                z += tl.load(residual_ptr + long_rows * stride_rm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
            mean = tl.load(mean_ptr + rows, mask=row_ok, other=0.0)
            rstd = tl.load(rstd_ptr + rows, mask=row_ok, other=0.0)
            # dout is 0 beyond the row, so that no sum needs the 0; without it ptxas spills on sm_100 (768 columns)
            xhat = tl.where(col_ok[None, :], (z - mean[:, None]) * rstd[:, None], 0.0)
            if DWEIGHT:
                dweight += dout * xhat
            if DX or DRESIDUAL:
                # loaded for each tile, from L1: across tiles it would hold as many registers as either sum
                g = dout * row_vector(weight_ptr, cols, col_ok, WEIGHT, 1.0)
                dz = gradient_of_z(g, xhat, rstd, n_cols)
                if DRESIDUAL:
                    at = dresidual_ptr + long_rows * n_cols + cols[None, :]
                    tl.store(at, dz.to(dresidual_ptr.dtype.element_ty), mask=ok)
                if DX:
                    if DROPOUT:
                        dz = tl.where(keep, dz * keep_scale, 0.0)
                    at = dx_ptr + long_rows * n_cols + cols[None, :]
                    tl.store(at, dz.to(dx_ptr.dtype.element_ty), mask=ok)
        if DBIAS:
            dbias += dout
    # PROGRAMS x MAX_COLS are counted in 32 bits
    if DWEIGHT:
        tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dweight, 0), mask=col_ok)
    if DBIAS:
        if DWEIGHT:
            pid += programs
        tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dbias, 0), mask=col_ok)


@triton.jit
def _sum_of_programs(partial_ptr, cols, col_ok, programs, n_cols, R: tl.constexpr, C: tl.constexpr):
    acc = tl.zeros([R, C], tl.float32)
    for start in range(0, programs, R):
        rows = start + tl.arange(0, R)
        ok = (rows < programs)[:, None] & col_ok[None, :]
        acc += tl.load(partial_ptr + rows[:, None] * n_cols + cols[None, :], mask=ok, other=0.0)
    return tl.sum(acc, 0)


@triton.jit
def layer_norm_sum_kernel(
    dweight_ptr, dbias_ptr, partial_ptr, programs, n_cols,
    DWEIGHT: tl.constexpr, DBIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dweight and dbias from the partial sums; the columns are shared out among the programs."""
    cols = tl.program_id(0) * C + tl.arange(0, C)
    col_ok = cols < n_cols
    if DWEIGHT:
        total = _sum_of_programs(partial_ptr, cols, col_ok, programs, n_cols, R, C)
        tl.store(dweight_ptr + cols, total.to(dweight_ptr.dtype.element_ty), mask=col_ok)
        partial_ptr += programs * n_cols
    if DBIAS:
        total = _sum_of_programs(partial_ptr, cols, col_ok, programs, n_cols, R, C)
        tl.store(dbias_ptr + cols, total.to(dbias_ptr.dtype.element_ty), mask=col_ok)


# ----------------------------------------------------------------------------------------------------------- launchers


def as_rows(x: Tensor | None) -> tuple[Tensor | None, int]:
    """x as (n_rows, n_cols) with columns at stride 1, and the stride of its rows; a copy only where it has to be."""
    if x is None:
        return None, 0
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 and rows.shape[1] != 1:
        rows = rows.contiguous()
    return rows, rows.stride(0)


def flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def dropout_add_layer_norm_fwd(
    out: Tensor, mean: Tensor, rstd: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float,
    out_dtype: torch.dtype,
) -> None:  # fmt: skip
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/dropout_add_layer_norm/op.py)."""
    x_rows, stride_xm = as_rows(x)
    residual_rows, stride_rm = as_rows(residual)
    n_cols, n_rows = x.shape[-1], mean.shape[0]
    block = config("fwd", n_cols)
    dropout = rng_state is not None
    layer_norm_fwd_kernel[(triton.cdiv(n_rows, block.rows),)](
        out, mean, rstd, x_rows, residual_rows, flat(weight), flat(bias), flat(row_index), rng_state,
        n_rows, n_cols, stride_xm, stride_rm, threshold(dropout_p), keep_scale(dropout_p), eps,
        ROWS=block.rows, BLOCK_N=block.block_n, RESIDUAL=residual is not None, WEIGHT=weight is not None,
        BIAS=bias is not None, DROPOUT=dropout, INDEXED=dropout and row_index is not None, num_warps=block.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def dropout_add_layer_norm_bwd(
    dx: Tensor, dresidual: Tensor, dweight: Tensor, dbias: Tensor, dout: Tensor, x: Tensor, residual: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, needs_dx: bool, needs_dresidual: bool, needs_dweight: bool,
    needs_dbias: bool,
) -> None:  # fmt: skip
    """Writes the gradients that are needed; the others are of no element."""
    dout_rows, stride_dm = as_rows(dout)
    x_rows, stride_xm = as_rows(x)
    residual_rows, stride_rm = as_rows(residual)
    n_cols, n_rows = x.shape[-1], mean.shape[0]
    block = config("bwd", n_cols)
    dropout = rng_state is not None
    sums = int(needs_dweight) + int(needs_dbias)
    tiles = triton.cdiv(n_rows, block.rows)
    programs = min(tiles, PROGRAMS) if sums else tiles
    partial = torch.empty((sums, programs, n_cols), dtype=torch.float32, device=x.device) if sums else None
    layer_norm_bwd_kernel[(programs,)](
        dx, dresidual, partial, dout_rows, x_rows, residual_rows, flat(weight), mean, rstd, flat(row_index),
        rng_state, n_rows, n_cols, stride_dm, stride_xm, stride_rm, threshold(dropout_p), keep_scale(dropout_p),
        ROWS=block.rows, BLOCK_N=block.block_n, RESIDUAL=residual is not None, WEIGHT=weight is not None,
        DROPOUT=dropout, INDEXED=dropout and row_index is not None, DX=needs_dx, DRESIDUAL=needs_dresidual,
        DWEIGHT=needs_dweight, DBIAS=needs_dbias, num_warps=block.num_warps,
    )  # fmt: skip
    if sums:
        layer_norm_sum_kernel[(triton.cdiv(n_cols, SUM_COLS),)](
            dweight, dbias, partial, programs, n_cols,
            DWEIGHT=needs_dweight, DBIAS=needs_dbias, R=SUM_ROWS, C=SUM_COLS, num_warps=4,
        )  # fmt: skip
