"""Softmax and log-softmax of rows, with scale, mask and row-wise dropout: forward and backward.

Mathematics
    s = scale * x (+ mask),  m = max_j s_j,  l = sum_j exp(s_j - m),  p = exp(s - m) / l,  log p = s - m - log l
    forward:  out = p,  keep * p / (1 - p_hat) with dropout,  or log p
    backward: ds = p (dp - sum_j dp_j p_j) with dp = dout, or keep * dout / (1 - p_hat);
              log: ds = dout - p sum_j dout_j;  dx = scale * ds
    A row longer than a block is read twice: the first pass keeps (m, l), and with dropout d = sum_j exp(s_j - m) dp_j,
    and multiplies them by exp(m_old - m_new) when the maximum moves (Milakov and Gimelshein, "Online normalizer
    calculation for softmax", 2018); the second pass writes.

Contract
    One program computes ROWS whole rows (ROWS > 1 only where a row fits into one block) and is the only writer of them:
    no atomics, bitwise deterministic. Rows lie at one stride, columns at stride 1; outputs are contiguous. 16-byte
    accesses where base and stride allow. Masks: four leading dims and the columns by stride, 0 where broadcast. A
    masked row in which every score is -inf gives zeros (-inf with LOG) and no gradient; without a mask it gives NaN.

Cost
    Forward 7 flop, backward 5 (12 where p is recomputed) per element; bytes: x and out, or dout, saved and dx, once.
    The second read of a long row comes from L2 where the rows in flight fit it. Shared memory: reductions only, and the
    exchange of the dropout mask, 1 byte per element of the tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_dropout import SOFTMAX_TAG, keep_scale, row_keep, threshold
from .rows import as_rows
from .softmax_scores import MASK_NONE, finite_max, gradient_of_scores, mask_of_rows, masked_scores, out_and_dout
from .softmax_unaligned import softmax_unaligned_bwd_kernel, softmax_unaligned_fwd_kernel

TAG = tl.constexpr(SOFTMAX_TAG)


class Config(NamedTuple):
    """Tile of one launch: ROWS x BLOCK_N elements by num_warps warps; `multi` says that a row takes several blocks."""

    rows: int
    block_n: int
    num_warps: int
    multi: bool


# kernel -> (elements of a tile of short rows, longest row in one block, block of a longer row, its warps).
# A short tile is 16 elements a thread of 4 warps: two 16-byte accesses in half precision, enough independent loads to
# cover the latency. A row in one block is read once, so blocks are as large as the registers carry without a spill: 32
# elements of each input a thread in the widest block. Chosen by registers, not yet timed (docs/kernels/softmax.md).
TABLE: dict[str, tuple[int, int, int, int]] = {
    "fwd": (2048, 32768, 8192, 8),
    "fwd_dropout": (2048, 16384, 4096, 8),
    "bwd": (2048, 16384, 8192, 8),
    "bwd_dropout": (2048, 16384, 4096, 8),
}


def config(kernel: str, n_cols: int) -> Config:
    """The tile for rows of n_cols elements.

    Args:
        kernel: "fwd" or "bwd", with "_dropout" appended where there is dropout.
        n_cols: length of a row.
    """
    tile, longest, block, warps = TABLE[kernel]
    if n_cols > longest:
        return Config(1, block, warps, True)
    block_n = max(16, triton.next_power_of_2(n_cols))  # 16: the columns of one Philox call
    if block_n <= tile // 2:
        return Config(tile // block_n, block_n, 4, False)
    return Config(1, block_n, 32 if block_n == 32768 else min(16, max(4, block_n // 512)), False)


@triton.jit
def _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK: tl.constexpr):
    """Scores of whole rows, float32 (ROWS, BLOCK_N)."""
    mask_at = mask_rows[:, None] + cols[None, :].to(tl.int64) * stride_kn
    return masked_scores(x_rows[:, None] + cols[None, :], mask_at, ok, scale, MASK)


@triton.jit(do_not_specialize=["n_rows"])
def softmax_fwd_kernel(
    out_ptr, x_ptr, mask_ptr, rng_ptr, n_rows, n_cols, stride_xm,
    d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3, stride_kn,
    scale, threshold, keep_scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, MULTI: tl.constexpr,
    LOG: tl.constexpr, MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < n_rows
    x_rows = x_ptr + rows.to(tl.int64) * stride_xm
    out_rows = out_ptr + rows.to(tl.int64) * n_cols
    mask_rows = x_rows
    if MASK != MASK_NONE:
        mask_rows = mask_of_rows(mask_ptr, rows, d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3)

    if MULTI:
        m_i = tl.full([ROWS], float("-inf"), tl.float32)
        l_i = tl.zeros([ROWS], tl.float32)
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK)
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = finite_max(m_new)
            l_i = l_i * tl.exp(m_i - m_safe) + tl.sum(tl.exp(s - m_safe[:, None]), 1)
            m_i = m_new
        m_i = finite_max(m_i)
        # a row without a score has l = 0: NaN (0 / 0, -inf + inf) unless a mask says that it may be so
        if MASK != MASK_NONE:
            l_i = tl.where(l_i == 0.0, 1.0, l_i)
        inv_l = 1.0 / l_i
        log_l = tl.log(l_i)
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK) - m_i[:, None]
            if LOG:
                out = s - log_l[:, None]
            else:
                out = tl.exp(s) * inv_l[:, None]
            if DROPOUT:
                keep = row_keep(rng_ptr, rows, start, TAG, threshold, ROWS, BLOCK_N)
                out = tl.where(keep, out * keep_scale, 0.0)
            tl.store(out_rows[:, None] + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=ok)
    else:
        cols = tl.arange(0, BLOCK_N)
        ok = row_ok[:, None] & (cols < n_cols)[None, :]
        s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK)
        m_i = tl.max(s, 1)
        if MASK != MASK_NONE:
            m_i = finite_max(m_i)
        s -= m_i[:, None]
        e = tl.exp(s)
        l_i = tl.sum(e, 1)
        if MASK != MASK_NONE:
            l_i = tl.where(l_i == 0.0, 1.0, l_i)
        if LOG:
            out = s - tl.log(l_i)[:, None]
        else:
            out = e * (1.0 / l_i)[:, None]
        if DROPOUT:
            keep = row_keep(rng_ptr, rows, 0, TAG, threshold, ROWS, BLOCK_N)
            out = tl.where(keep, out * keep_scale, 0.0)
        tl.store(out_rows[:, None] + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["n_rows"])
def softmax_bwd_kernel(
    dx_ptr, dout_ptr, out_ptr, n_rows, n_cols, stride_dm, stride_om, scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, MULTI: tl.constexpr, LOG: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """dx from out, without dropout."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < n_rows
    dout_rows = dout_ptr + rows.to(tl.int64) * stride_dm
    out_rows = out_ptr + rows.to(tl.int64) * stride_om
    dx_rows = dx_ptr + rows.to(tl.int64) * n_cols
    if MULTI:
        total = tl.zeros([ROWS], tl.float32)
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            of_out, of_dout = out_rows[:, None] + cols[None, :], dout_rows[:, None] + cols[None, :]
            out, dout = out_and_dout(of_out, of_dout, ok, LOG, MASK)
            total += tl.sum(dout if LOG else dout * out, 1)
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            of_out, of_dout = out_rows[:, None] + cols[None, :], dout_rows[:, None] + cols[None, :]
            out, dout = out_and_dout(of_out, of_dout, ok, LOG, MASK)
            dx = gradient_of_scores(dout, out, total[:, None], LOG) * scale
            tl.store(dx_rows[:, None] + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)
    else:
        cols = tl.arange(0, BLOCK_N)
        ok = row_ok[:, None] & (cols < n_cols)[None, :]
        of_out, of_dout = out_rows[:, None] + cols[None, :], dout_rows[:, None] + cols[None, :]
        out, dout = out_and_dout(of_out, of_dout, ok, LOG, MASK)
        total = tl.sum(dout if LOG else dout * out, 1)
        dx = gradient_of_scores(dout, out, total[:, None], LOG) * scale
        tl.store(dx_rows[:, None] + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _dropped_dout(
    dout_rows, cols, ok, rng_ptr, rows, start, threshold, keep_scale, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    dp = tl.load(dout_rows[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    keep = row_keep(rng_ptr, rows, start, TAG, threshold, ROWS, BLOCK_N)
    return tl.where(keep, dp * keep_scale, 0.0)


@triton.jit(do_not_specialize=["n_rows"])
def softmax_dropout_bwd_kernel(
    dx_ptr, dout_ptr, x_ptr, mask_ptr, rng_ptr, n_rows, n_cols, stride_dm, stride_xm,
    d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3, stride_kn,
    scale, threshold, keep_scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, MULTI: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """dx from x: p is recomputed, because out has lost the elements that were dropped."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < n_rows
    dout_rows = dout_ptr + rows.to(tl.int64) * stride_dm
    x_rows = x_ptr + rows.to(tl.int64) * stride_xm
    dx_rows = dx_ptr + rows.to(tl.int64) * n_cols
    mask_rows = x_rows
    if MASK != MASK_NONE:
        mask_rows = mask_of_rows(mask_ptr, rows, d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3)

    if MULTI:
        m_i = tl.full([ROWS], float("-inf"), tl.float32)
        l_i = tl.zeros([ROWS], tl.float32)
        d_i = tl.zeros([ROWS], tl.float32)
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK)
            dp = _dropped_dout(dout_rows, cols, ok, rng_ptr, rows, start, threshold, keep_scale, ROWS, BLOCK_N)
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = finite_max(m_new)
            alpha = tl.exp(m_i - m_safe)
            e = tl.exp(s - m_safe[:, None])
            l_i = l_i * alpha + tl.sum(e, 1)
            d_i = d_i * alpha + tl.sum(e * dp, 1)
            m_i = m_new
        m_i = finite_max(m_i)
        if MASK != MASK_NONE:
            l_i = tl.where(l_i == 0.0, 1.0, l_i)
        inv_l = 1.0 / l_i
        total = d_i * inv_l
        for start in range(0, n_cols, BLOCK_N):
            cols = start + tl.arange(0, BLOCK_N)
            ok = row_ok[:, None] & (cols < n_cols)[None, :]
            s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK)
            dp = _dropped_dout(dout_rows, cols, ok, rng_ptr, rows, start, threshold, keep_scale, ROWS, BLOCK_N)
            p = tl.exp(s - m_i[:, None]) * inv_l[:, None]
            dx = p * (dp - total[:, None]) * scale
            tl.store(dx_rows[:, None] + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)
    else:
        cols = tl.arange(0, BLOCK_N)
        ok = row_ok[:, None] & (cols < n_cols)[None, :]
        s = _scores(x_rows, mask_rows, cols, ok, scale, stride_kn, MASK)
        m_i = tl.max(s, 1)
        if MASK != MASK_NONE:
            m_i = finite_max(m_i)
        e = tl.exp(s - m_i[:, None])
        l_i = tl.sum(e, 1)
        if MASK != MASK_NONE:
            l_i = tl.where(l_i == 0.0, 1.0, l_i)
        p = e * (1.0 / l_i)[:, None]
        dp = _dropped_dout(dout_rows, cols, ok, rng_ptr, rows, 0, threshold, keep_scale, ROWS, BLOCK_N)
        total = tl.sum(p * dp, 1)
        dx = p * (dp - total[:, None]) * scale
        tl.store(dx_rows[:, None] + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=ok)


# ----------------------------------------------------------------------------------------------------------- launchers


def _mask_arguments(mask: Tensor | None, shape: torch.Size) -> tuple[Tensor | None, tuple[int, ...], int]:
    """(mask, (d1, d2, d3, its four leading strides, its column stride), MASK) for x of this shape."""
    if mask is None:
        return None, (1, 1, 1, 0, 0, 0, 0, 0), 0
    strides = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride())]
    missing = 5 - len(shape)
    _, d1, d2, d3 = [1] * missing + list(shape[:-1])
    numbers = (d1, d2, d3, *[0] * missing, *strides)
    return (mask.view(torch.uint8), numbers, 1) if mask.dtype == torch.bool else (mask, numbers, 2)


LEAST_LEADS = 1024
"""Rows of more columns, which have a program each, are read from their first 16-byte boundary on where they begin
elsewhere."""


def _has_leads(rows: Tensor, dropout: bool) -> bool:
    """Not with dropout: a call of Philox serves 16 columns from a multiple of 16 on, whatever the row's address is."""
    unaligned = rows.stride(0) * rows.element_size() % 16 != 0
    return unaligned and not dropout and rows.shape[0] > 1 and rows.shape[1] > LEAST_LEADS


def softmax_fwd(
    out: Tensor, x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/softmax/op.py)."""
    rows = as_rows(x)[0]
    n_rows, n_cols = rows.shape
    dropout = rng_state is not None
    block = config("fwd_dropout" if dropout else "fwd", n_cols)
    mask, numbers, kind = _mask_arguments(mask, x.shape)
    vec = 16 // x.element_size()
    if _has_leads(rows, dropout):
        softmax_unaligned_fwd_kernel[(n_rows,)](
            out, rows, mask, n_rows, n_cols, rows.stride(0), *numbers, scale,
            BLOCK_N=block.block_n, VEC=vec, OUT_ALIGNED=(n_cols - rows.stride(0)) % vec == 0, MULTI=block.multi,
            LOG=log, MASK=kind, num_warps=block.num_warps,
        )  # fmt: skip
        return
    softmax_fwd_kernel[(triton.cdiv(n_rows, block.rows),)](
        out, rows, mask, rng_state, n_rows, n_cols, rows.stride(0), *numbers,
        scale, threshold(dropout_p), keep_scale(dropout_p),
        ROWS=block.rows, BLOCK_N=block.block_n, MULTI=block.multi, LOG=log, MASK=kind, DROPOUT=dropout,
        num_warps=block.num_warps,
    )  # fmt: skip


def softmax_bwd(
    dx: Tensor, dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float,
    dropout_p: float, log: bool,
) -> None:  # fmt: skip
    """Writes dx; saved is out without dropout, x with it."""
    dout_rows, rows = as_rows(dout)[0], as_rows(saved)[0]
    n_rows, n_cols = rows.shape
    if rng_state is None:
        block = config("bwd", n_cols)
        if _has_leads(rows, False):
            vec, stride = 16 // rows.element_size(), rows.stride(0)
            softmax_unaligned_bwd_kernel[(n_rows,)](
                dx, dout_rows, rows, n_rows, n_cols, dout_rows.stride(0), stride, scale,
                BLOCK_N=block.block_n, VEC=vec, DX_ALIGNED=(n_cols - stride) % vec == 0,
                DOUT_ALIGNED=(dout_rows.stride(0) - stride) % vec == 0, MULTI=block.multi, LOG=log,
                MASK=0 if mask is None else 1, num_warps=block.num_warps,
            )  # fmt: skip
            return
        softmax_bwd_kernel[(triton.cdiv(n_rows, block.rows),)](
            dx, dout_rows, rows, n_rows, n_cols, dout_rows.stride(0), rows.stride(0), scale,
            ROWS=block.rows, BLOCK_N=block.block_n, MULTI=block.multi, LOG=log, MASK=0 if mask is None else 1,
            num_warps=block.num_warps,
        )  # fmt: skip
        return
    block = config("bwd_dropout", n_cols)
    mask, numbers, kind = _mask_arguments(mask, saved.shape)
    softmax_dropout_bwd_kernel[(triton.cdiv(n_rows, block.rows),)](
        dx, dout_rows, rows, mask, rng_state, n_rows, n_cols, dout_rows.stride(0), rows.stride(0), *numbers,
        scale, threshold(dropout_p), keep_scale(dropout_p),
        ROWS=block.rows, BLOCK_N=block.block_n, MULTI=block.multi, MASK=kind,
        num_warps=block.num_warps,
    )  # fmt: skip
