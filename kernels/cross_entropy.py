"""Cross-entropy over rows of logits: forward; and what backward, cross_entropy_bwd.py, shares with it.

Mathematics. For a row x of C logits, lse = log(sum_j exp(x_j)), p = exp(x - lse), class weights w (1 where there are
none) and smoothing e:

    class index y:      loss = (1 - e) w_y (lse - x_y) + e/C sum_j w_j (lse - x_j),   dx = a p - b, with
                        a = (1 - e) w_y + e/C sum_j w_j,   b_j = e/C w_j + [j = y] (1 - e) w_y
    probabilities q:    t_j = w_j ((1 - e) q_j + e/C),   loss = sum_j t_j (lse - x_j),   dx = p sum_j t_j - t

The mean divides by sum_i w_{y_i} over the rows that are not ignored, or by the number of rows for probabilities. lse is
accumulated online (Milakov and Gimelshein 2018, Online normalizer calculation for softmax, algorithm 3): every lane
keeps a running maximum and rescaled sums, so that lanes meet once a row; sums against x are kept relative to that
maximum too.

Contract. x (n_rows, n_cols) is read by its row stride in int64, columns contiguous; sums and losses are float32. Narrow
rows: one program takes ROWS of them in one tile. Wide rows: a program takes one row (forward) or COLS columns of it
(backward) in tiles of LANES x VEC, VEC elements being 16 bytes. They start at the first 16-byte boundary of the row,
whatever the stride is; the fewer than 2 VEC elements before and behind are the edge tile. dx has the alignment of x
where the strides agree modulo VEC. Programs write only their own rows: loss (or one partial sum a program), lse; then
one program adds the partial sums in a fixed order, so results are deterministic. An ignored row is not read: loss 0,
lse 0, dx 0. An index outside [0, n_cols) that is not ignored makes loss, the mean's divisor and dx of that row NaN;
nothing is read out of bounds.

Cost. Forward: n_cols (1 + 1/VEC) exponentials a row and one read of x (and of q). Backward: one exponential an element,
one read of x, one write of dx; with probabilities q is read twice, the second time from the L2. No shared memory beyond
the reductions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reduce import MEAN, NONE, REDUCE_BLOCK, reduce_partial_sums
from .rows import as_rows, flat, row_geometry


class RowConfig(NamedTuple):
    """How rows are cut: `rows` > 0 rows of `block` columns a program, or 0 for one row in tiles of `block` elements."""

    rows: int
    block: int
    vec: int
    num_warps: int


def config(n_cols: int, dtype: torch.dtype) -> RowConfig:
    """The tile for a row length; a pure function, the same for every arch.

    Below 256 columns a row is too short to fill even one warp with 16-byte loads, so several rows share a tile of at
    most 2048 elements (16 a thread, as in the long case). Longer rows get 16 elements a thread, at most 4096 a tile:
    two (half) or four (fp32) independent loads in flight a thread.
    """
    vec = 16 // dtype.itemsize
    if n_cols < 256:
        block = triton.next_power_of_2(n_cols)
        return RowConfig(1024 // block if block == 256 else 2048 // block, block, vec, 4)
    block = min(triton.next_power_of_2(n_cols), 4096)
    return RowConfig(0, block, vec, block // 512 if block >= 512 else 1)


# --------------------------------------------------------------------------------------------------------- forward


@triton.jit
def _zero_for_no_max(m):
    """A maximum that can be subtracted: of nothing but -inf, 0 (exp(-inf - 0) is then 0, not NaN)."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _accumulate(m, l, s, c, x, coef, valid, WITH_SUM: tl.constexpr):
    """One tile (lanes, vec) into the lanes' running max m, sum l of exp(x - m), s of coef (x - m) and c of coef."""
    m_new = tl.maximum(m, tl.max(x, 1))
    old = _zero_for_no_max(m)
    new = _zero_for_no_max(m_new)
    l = l * tl.exp(m - new) + tl.sum(tl.exp(x - new[:, None]), 1)
    if WITH_SUM:
        s += (old - new) * c + tl.sum(tl.where(valid, coef * (x - new[:, None]), 0.0), 1)
        c += tl.sum(tl.where(valid, coef, 0.0), 1)
    return m_new, l, s, c


@triton.jit
def coefficients(t_ptr, w_ptr, cols, valid, smoothing, per_class, PROBS: tl.constexpr, WEIGHTED: tl.constexpr):
    """t_j for probabilities, else w_j; `t_ptr` points at column 0 of the row (or rows), `valid` has the shape of the
    tile.
    """
    if WEIGHTED:
        # Triton 3.4 does not widen pointers to the shape of their mask
        w = tl.load(w_ptr + tl.broadcast_to(cols, valid.shape), mask=valid, other=0.0).to(tl.float32)
    else:
        w = tl.full(valid.shape, 1.0, tl.float32)
    if PROBS:
        q = tl.load(t_ptr, mask=valid, other=0.0).to(tl.float32)
        w = w * (q * (1.0 - smoothing) + per_class)
    return w


@triton.jit
def _forward_wide(
    loss_ptr,
    lse_ptr,
    total_ptr,
    x_ptr,
    t_ptr,
    w_ptr,
    stride_x,
    stride_t,
    n_cols,
    ignore_index,
    smoothing,
    PROBS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    REDUCTION: tl.constexpr,
    T_ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n_rows = tl.num_programs(0)
    with_sum: tl.constexpr = PROBS or SMOOTHED
    per_class = smoothing / n_cols
    y = 0
    ignored = False
    if not PROBS:
        label = tl.load(t_ptr + row)
        ignored = label == ignore_index
        y = label
    if ignored:
        tl.store(lse_ptr + row, 0.0)
        tl.store(loss_ptr + row, 0.0)
        if REDUCTION == 1:
            tl.store(loss_ptr + n_rows + row, 0.0)
    else:
        start, lead, middle = row_geometry(row, stride_x, n_cols, VEC)
        row_ptr = x_ptr + start
        body_ptr = x_ptr + tl.multiple_of(start + lead, VEC)
        t_start = row * stride_t
        t_row_ptr = t_ptr + t_start
        if T_ALIGNED:
            t_body_ptr = t_ptr + tl.multiple_of(t_start + lead, VEC)
        else:
            t_body_ptr = t_ptr + (t_start + lead)

        # The edge tile: columns [0, lead) and [lead + middle, n_cols).
        e = tl.arange(0, 16 // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
        edge_cols = tl.where(e < lead, e, e + middle)
        edge = edge_cols < n_cols
        x_e = tl.load(row_ptr + edge_cols, mask=edge, other=float("-inf")).to(tl.float32)
        zero = tl.zeros([16 // VEC], tl.float32)
        coef_e = x_e
        if with_sum:
            coef_e = coefficients(t_row_ptr + edge_cols, w_ptr, edge_cols, edge, smoothing, per_class, PROBS, WEIGHTED)
        em, el, es, ec = _accumulate(zero + float("-inf"), zero, zero, zero, x_e, coef_e, edge, with_sum)

        m = tl.full([LANES], float("-inf"), tl.float32)
        l = tl.zeros([LANES], tl.float32)
        s = tl.zeros([LANES], tl.float32)
        c = tl.zeros([LANES], tl.float32)
        offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
        for first in range(0, middle, LANES * VEC):
            valid = first + offs < middle
            x = tl.load(body_ptr + first + offs, mask=valid, other=float("-inf")).to(tl.float32)
            coef = x
            if with_sum:
                coef = coefficients(
                    t_body_ptr + first + offs, w_ptr, lead + first + offs, valid, smoothing, per_class, PROBS, WEIGHTED
                )
            m, l, s, c = _accumulate(m, l, s, c, x, coef, valid, with_sum)

        top = _zero_for_no_max(tl.maximum(tl.max(m, 0), tl.max(em, 0)))
        log_sum = tl.log(tl.sum(l * tl.exp(m - top), 0) + tl.sum(el * tl.exp(em - top), 0))
        tl.store(lse_ptr + row, top + log_sum)
        loss = 0.0
        if with_sum:
            s += (_zero_for_no_max(m) - top) * c
            es += (_zero_for_no_max(em) - top) * ec
            loss = log_sum * (tl.sum(c, 0) + tl.sum(ec, 0)) - (tl.sum(s, 0) + tl.sum(es, 0))
        w_y = 1.0
        if not PROBS:
            inside = (y >= 0) & (y < n_cols)
            if WEIGHTED:
                w_y = tl.load(w_ptr + y, mask=inside, other=0.0).to(tl.float32)
            x_y = tl.load(row_ptr + y, mask=inside, other=0.0).to(tl.float32)
            loss = (1.0 - smoothing) * w_y * (log_sum - (x_y - top)) + per_class * loss
            loss = tl.where(inside, loss, float("nan"))
            w_y = tl.where(inside, w_y, float("nan"))
        tl.store(loss_ptr + row, loss)
        if REDUCTION == 1:
            tl.store(loss_ptr + n_rows + row, w_y)
    if REDUCTION == 0:
        if row == 0:
            tl.store(total_ptr, 1.0)


@triton.jit(do_not_specialize=["n_rows"])
def _forward_narrow(
    loss_ptr,
    lse_ptr,
    total_ptr,
    x_ptr,
    t_ptr,
    w_ptr,
    n_rows,
    stride_x,
    stride_t,
    n_cols,
    ignore_index,
    smoothing,
    PROBS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    REDUCTION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    pid = tl.program_id(0)
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)[None, :]
    per_class = smoothing / n_cols
    read = rows < n_rows
    y = rows
    if not PROBS:
        y = tl.load(t_ptr + rows, mask=read, other=0)
        read = read & (y != ignore_index)
    valid = read[:, None] & (cols < n_cols)
    x = tl.load(x_ptr + rows[:, None] * stride_x + cols, mask=valid, other=float("-inf")).to(tl.float32)
    top = _zero_for_no_max(tl.max(x, 1))
    log_sum = tl.log(tl.where(read, tl.sum(tl.exp(x - top[:, None]), 1), 1.0))
    tl.store(lse_ptr + rows, tl.where(read, top + log_sum, 0.0), mask=rows < n_rows)
    loss = tl.zeros([ROWS], tl.float32)
    if PROBS or SMOOTHED:
        t_ptrs = t_ptr + rows[:, None] * stride_t + cols
        coef = coefficients(t_ptrs, w_ptr, cols, valid, smoothing, per_class, PROBS, WEIGHTED)
        loss = tl.sum(tl.where(valid, coef * (log_sum[:, None] - (x - top[:, None])), 0.0), 1)
    w_y = tl.where(read, 1.0, 0.0)
    if not PROBS:
        inside = (y >= 0) & (y < n_cols)
        if WEIGHTED:
            w_y = tl.load(w_ptr + y, mask=read & inside, other=0.0).to(tl.float32)
        x_y = tl.load(x_ptr + rows * stride_x + y, mask=read & inside, other=0.0).to(tl.float32)
        loss = (1.0 - smoothing) * w_y * (log_sum - (x_y - top)) + per_class * loss
        bad = read & (inside == 0)
        loss = tl.where(read, loss, 0.0)
        loss = tl.where(bad, float("nan"), loss)
        w_y = tl.where(bad, float("nan"), w_y)
    if REDUCTION == 0:
        tl.store(loss_ptr + rows, loss, mask=rows < n_rows)
        if pid == 0:
            tl.store(total_ptr, 1.0)
    else:
        tl.store(loss_ptr + pid, tl.sum(loss, 0))
        if REDUCTION == 1:
            tl.store(loss_ptr + tl.num_programs(0) + pid, tl.sum(w_y, 0))


# ------------------------------------------------------------------------------------------------------- launchers


def cross_entropy_fwd(
    loss: Tensor,
    lse: Tensor,
    total_weight: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    """Launcher of the forward kernels; arguments as the operator's, outputs first (docs/design.md)."""
    n_rows, n_cols = logits.shape
    cfg = config(n_cols, logits.dtype)
    probs = target.is_floating_point()
    logits, target, weight = as_rows(logits)[0], as_rows(target)[0] if probs else flat(target), flat(weight)
    programs = triton.cdiv(n_rows, cfg.rows) if cfg.rows else n_rows
    rows_out = loss if reduction == NONE else torch.empty(2 * programs, dtype=torch.float32, device=loss.device)
    pointers = (rows_out, lse, total_weight, logits, target, weight if weight is not None else logits)
    scalars = (logits.stride(0), target.stride(0), n_cols, ignore_index, float(label_smoothing))
    options = dict(
        PROBS=probs,
        WEIGHTED=weight is not None,
        SMOOTHED=label_smoothing > 0.0,
        REDUCTION=reduction,
        num_warps=cfg.num_warps,
    )
    if cfg.rows:
        _forward_narrow[(programs,)](*pointers, n_rows, *scalars, ROWS=cfg.rows, COLS=cfg.block, **options)
    else:
        aligned = probs and (target.stride(0) - logits.stride(0)) % cfg.vec == 0
        _forward_wide[(programs,)](
            *pointers, *scalars, T_ALIGNED=aligned, LANES=cfg.block // cfg.vec, VEC=cfg.vec, **options
        )
    if reduction != NONE:
        from_partials = reduction == MEAN and not probs
        divisor = float(n_rows) if reduction == MEAN else 1.0
        reduce_partial_sums[(1,)](
            loss,
            total_weight,
            rows_out,
            programs,
            divisor,
            FROM_PARTIALS=from_partials,
            BLOCK=REDUCE_BLOCK,
            num_warps=4,
        )
