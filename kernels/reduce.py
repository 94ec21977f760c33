"""Second kernels: they add what the programs of a first one left in a workspace, in a fixed order. No atomics."""

from __future__ import annotations

import triton
import triton.language as tl

NONE, MEAN, SUM = 0, 1, 2
REDUCE_BLOCK = 1024
"""Partial sums that one step of reduce_partial_sums adds."""
SUM_ROWS, SUM_COLS = 32, 32
"""Tile of the second kernel: 128-byte lines, and enough programs for a row of 768 to spread over 24 of them."""


# How many programs left partial sums, and so where the total lies behind them, varies from call to call.
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["total_ptr"])
def reduce_partial_sums(out_ptr, total_ptr, partial_ptr, n, divisor, FROM_PARTIALS: tl.constexpr, BLOCK: tl.constexpr):
    """out = sum(partial[:n]) / total, total = sum(partial[n:2n]) if FROM_PARTIALS else divisor; one program."""
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    total_acc = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        inside = first + offs < n
        acc += tl.load(partial_ptr + first + offs, mask=inside, other=0.0)
        if FROM_PARTIALS:
            total_acc += tl.load(partial_ptr + n + first + offs, mask=inside, other=0.0)
    total = divisor
    if FROM_PARTIALS:
        total = tl.sum(total_acc, 0)
    tl.store(total_ptr, total)
    tl.store(out_ptr, tl.sum(acc, 0) / total)


@triton.jit
def _sum_of_programs(partial_ptr, cols, col_ok, programs, n_cols, R: tl.constexpr, C: tl.constexpr):
    acc = tl.zeros([R, C], tl.float32)
    for start in range(0, programs, R):
        rows = start + tl.arange(0, R)
        ok = (rows < programs)[:, None] & col_ok[None, :]
        acc += tl.load(partial_ptr + rows[:, None] * n_cols + cols[None, :], mask=ok, other=0.0)
    return tl.sum(acc, 0)


@triton.jit(do_not_specialize=["programs"])
def layer_norm_sum_kernel(
    dweight_ptr,
    dbias_ptr,
    partial_ptr,
    programs,
    n_cols,
    DWEIGHT: tl.constexpr,
    DBIAS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
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
