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
    once; the partial sums 8 bytes a column and program, twice. A Philox call for 16 elements forward, for 8 (4 of
    float32) backward. Shared memory: reductions, in backward of rows of more than 1,024 columns alone; forward the
    exchange of the dropout mask, 1 byte per element of the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layer_norm import PROGRAMS, backward_tile, config, gradient_of_z, means_of_both, normalised
from .reduce import SUM_COLS, SUM_ROWS, layer_norm_sum_kernel
from .row_dropout import LAYER_NORM_TAG, keep_scale, numbered_keep, threshold
from .rows import as_rows, flat, row_vector

TAG = tl.constexpr(LAYER_NORM_TAG)
MAX_COLS = 8192
"""Beyond it x, dout and the two sums, each in float32, outgrow the registers of one block."""


@triton.jit(do_not_specialize=["n_rows"])
def layer_norm_fwd_kernel(
    out_ptr,
    mean_ptr,
    rstd_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    index_ptr,
    rng_ptr,
    n_rows,
    n_cols,
    stride_xm,
    stride_rm,
    threshold,
    keep_scale,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    INDEXED: tl.constexpr,
):
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


@triton.jit(do_not_specialize=["n_rows"])
def layer_norm_bwd_kernel(
    dx_ptr,
    dresidual_ptr,
    partial_ptr,
    dout_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    index_ptr,
    rng_ptr,
    n_rows,
    n_cols,
    stride_dm,
    stride_xm,
    stride_rm,
    threshold,
    keep_scale,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIECES: tl.constexpr,
    VECTOR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WEIGHT: tl.constexpr,
    DROPOUT: tl.constexpr,
    INDEXED: tl.constexpr,
    DX: tl.constexpr,
    DRESIDUAL: tl.constexpr,
    DWEIGHT: tl.constexpr,
    DBIAS: tl.constexpr,
):
    """partial_ptr: float32 (DWEIGHT + DBIAS, programs, n_cols), the sums of each program."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    piece = tl.arange(0, COLS)
    zeros = tl.zeros([ROWS, COLS], tl.float32)
    dweight, dbias = (), ()
    for _ in tl.static_range(PIECES):
        dweight, dbias = dweight + (zeros,), dbias + (zeros,)
    for tile in range(pid, tl.cdiv(n_rows, ROWS), programs):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row_ok = rows < n_rows
        long_rows = rows.to(tl.int64)[:, None]
        mean = tl.load(mean_ptr + rows, mask=row_ok, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=row_ok, other=0.0)
        g_xhat, g_all = zeros, zeros
        gs, xhats, keeps, dweight_next, dbias_next = (), (), (), (), ()
        for i in tl.static_range(PIECES):
            cols = i * COLS + piece
            col_ok = (cols < n_cols)[None, :]
            ok = row_ok[:, None] & col_ok
            dout = tl.load(dout_ptr + long_rows * stride_dm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
            if DBIAS:
                dbias_next = dbias_next + (dbias[i] + dout,)
            if DROPOUT:
                keep = numbered_keep(
                    rng_ptr, index_ptr, rows, row_ok, i * COLS, TAG, threshold, INDEXED, ROWS, COLS, VECTOR
                )
                keeps = keeps + (keep,)
            if DX or DRESIDUAL or DWEIGHT:
                z = tl.load(x_ptr + long_rows * stride_xm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
                if DROPOUT:
                    z = tl.where(keep, z * keep_scale, 0.0)
                if RESIDUAL:
                    at = residual_ptr + long_rows * stride_rm + cols[None, :]
                    z += tl.load(at, mask=ok, other=0.0).to(tl.float32)
                # dout is 0 beyond the row, so that no sum needs the 0; without it ptxas spills on sm_100 (768 columns)
                xhat = tl.where(col_ok, (z - mean[:, None]) * rstd[:, None], 0.0)
                if DWEIGHT:
                    dweight_next = dweight_next + (dweight[i] + dout * xhat,)
                if DX or DRESIDUAL:
                    g = dout
                    if WEIGHT:
                        # by every row, so that the thread that needs it loads it, from L1: one row of it would go
                        # through shared memory, and to keep it across tiles takes as many registers as either sum
                        at = weight_ptr + tl.zeros([ROWS, 1], tl.int32) + cols[None, :]
                        g *= tl.load(at, mask=col_ok, other=0.0).to(tl.float32)
                    g_xhat += g * xhat
                    g_all += g
                    gs, xhats = gs + (g,), xhats + (xhat,)
        if DWEIGHT:
            dweight = dweight_next
        if DBIAS:
            dbias = dbias_next
        if DX or DRESIDUAL:
            c1, c2 = means_of_both(g_xhat, g_all, n_cols)
            for i in tl.static_range(PIECES):
                cols = i * COLS + piece
                ok = row_ok[:, None] & (cols < n_cols)[None, :]
                at = long_rows * n_cols + cols[None, :]
                dz = gradient_of_z(gs[i], xhats[i], rstd, c1, c2)
                if DRESIDUAL:
                    tl.store(dresidual_ptr + at, dz.to(dresidual_ptr.dtype.element_ty), mask=ok)
                if DX:
                    if DROPOUT:
                        dz = tl.where(keeps[i], dz * keep_scale, 0.0)
                    tl.store(dx_ptr + at, dz.to(dx_ptr.dtype.element_ty), mask=ok)
    for i in tl.static_range(PIECES):
        cols = i * COLS + piece
        col_ok = cols < n_cols
        # PROGRAMS x MAX_COLS are counted in 32 bits
        if DWEIGHT:
            tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dweight[i], 0), mask=col_ok)
        if DBIAS:
            at = (pid + DWEIGHT * programs) * n_cols + cols
            tl.store(partial_ptr + at, tl.sum(dbias[i], 0), mask=col_ok)


# ----------------------------------------------------------------------------------------------------------- launchers


def dropout_add_layer_norm_fwd(
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> None:
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/dropout_add_layer_norm/op.py)."""
    x_rows, stride_xm = as_rows(x)
    residual_rows, stride_rm = as_rows(residual)
    n_cols, n_rows = x.shape[-1], mean.shape[0]
    block = config("fwd", n_cols)
    dropout = rng_state is not None
    layer_norm_fwd_kernel[(triton.cdiv(n_rows, block.rows),)](
        out,
        mean,
        rstd,
        x_rows,
        residual_rows,
        flat(weight),
        flat(bias),
        flat(row_index),
        rng_state,
        n_rows,
        n_cols,
        stride_xm,
        stride_rm,
        threshold(dropout_p),
        keep_scale(dropout_p),
        eps,
        ROWS=block.rows,
        BLOCK_N=block.block_n,
        RESIDUAL=residual is not None,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        DROPOUT=dropout,
        INDEXED=dropout and row_index is not None,
        num_warps=block.num_warps,
        enable_fp_fusion=False,
    )


def dropout_add_layer_norm_bwd(
    dx: Tensor,
    dresidual: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dout: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> None:
    """Writes the gradients that are needed; the others are of no element."""
    dout_rows, stride_dm = as_rows(dout)
    x_rows, stride_xm = as_rows(x)
    residual_rows, stride_rm = as_rows(residual)
    n_cols, n_rows = x.shape[-1], mean.shape[0]
    block = backward_tile(n_cols, max(x.element_size(), dout.element_size()))
    dropout = rng_state is not None
    sums = int(needs_dweight) + int(needs_dbias)
    tiles = triton.cdiv(n_rows, block.rows)
    programs = min(tiles, PROGRAMS) if sums else tiles
    partial = torch.empty((sums, programs, n_cols), dtype=torch.float32, device=x.device) if sums else None
    layer_norm_bwd_kernel[(programs,)](
        dx,
        dresidual,
        partial,
        dout_rows,
        x_rows,
        residual_rows,
        flat(weight),
        mean,
        rstd,
        flat(row_index),
        rng_state,
        n_rows,
        n_cols,
        stride_dm,
        stride_xm,
        stride_rm,
        threshold(dropout_p),
        keep_scale(dropout_p),
        ROWS=block.rows,
        COLS=block.cols,
        PIECES=block.pieces,
        VECTOR=block.vector,
        RESIDUAL=residual is not None,
        WEIGHT=weight is not None,
        DROPOUT=dropout,
        INDEXED=dropout and row_index is not None,
        DX=needs_dx,
        DRESIDUAL=needs_dresidual,
        DWEIGHT=needs_dweight,
        DBIAS=needs_dbias,
        num_warps=block.num_warps,
    )
    if sums:
        layer_norm_sum_kernel[(triton.cdiv(n_cols, SUM_COLS),)](
            dweight,
            dbias,
            partial,
            programs,
            n_cols,
            DWEIGHT=needs_dweight,
            DBIAS=needs_dbias,
            R=SUM_ROWS,
            C=SUM_COLS,
            num_warps=4,
        )
