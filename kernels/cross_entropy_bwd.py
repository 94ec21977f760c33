"""Cross-entropy over rows of logits, backward; cross_entropy.py has the formulas.

Mathematics. dx = g / divisor (a p - b), p = exp(x - lse), a = sum_j b_j: b as cross_entropy.py defines it for class
indices, t for probabilities.

Contract. As in forward: narrow rows share a tile, wide ones start at their first 16-byte boundary. A program of the
wide kernel takes `cols_per_program` columns of one row, with probabilities the whole row, because a then has to be
summed first. Every element of dx is written once, by one program: 0 in an ignored row, which is not read, NaN in a row
whose index is out of range. dx has the alignment of x where their strides agree modulo VEC. Deterministic.

Cost. One exponential an element, one read of x, one write of dx; probabilities are read twice, the second time from the
L2. Shared memory only for the sum a.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import coefficients, config
from .reduce import NONE
from .rows import as_rows, flat, row_geometry


@triton.jit
def _backward_wide(
    dx_ptr,
    dloss_ptr,
    x_ptr,
    t_ptr,
    w_ptr,
    w_sum_ptr,
    lse_ptr,
    total_ptr,
    stride_dloss,
    stride_dx,
    stride_x,
    stride_t,
    n_cols,
    cols_per_program,
    ignore_index,
    smoothing,
    PROBS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    DX_ALIGNED: tl.constexpr,
    T_ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    per_class = smoothing / n_cols
    start, lead, middle = row_geometry(row, stride_x, n_cols, VEC)
    dx_start = row * stride_dx
    if DX_ALIGNED:
        dx_body_ptr = dx_ptr + tl.multiple_of(dx_start + lead, VEC)
    else:
        dx_body_ptr = dx_ptr + (dx_start + lead)
    t_start = row * stride_t
    t_row_ptr = t_ptr + t_start
    if T_ALIGNED:
        t_body_ptr = t_ptr + tl.multiple_of(t_start + lead, VEC)
    else:
        t_body_ptr = t_ptr + (t_start + lead)
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    begin = part * cols_per_program
    end = tl.multiple_of(tl.minimum(begin + cols_per_program, middle), VEC)
    e = tl.arange(0, 16)
    edge_cols = tl.where(e < lead, e, e + middle)
    edge = edge_cols < n_cols

    y = -1
    ignored = False
    if not PROBS:
        label = tl.load(t_ptr + row)
        ignored = label == ignore_index
        y = label.to(tl.int32)
        if (label < 0) | (label >= n_cols):
            y = -1
    if ignored:
        zeros = tl.zeros([LANES, VEC], tl.float32).to(dx_ptr.dtype.element_ty)
        for first in range(begin, end, LANES * VEC):
            tl.store(dx_body_ptr + first + offs, zeros, mask=first + offs < end)
        if part == 0:
            tl.store(dx_ptr + dx_start + edge_cols, tl.zeros([16], tl.float32).to(dx_ptr.dtype.element_ty), mask=edge)
    else:
        scale = tl.load(dloss_ptr + row * stride_dloss) / tl.load(total_ptr)
        lse = tl.load(lse_ptr + row)
        at_label = 0.0  # b_y - e/C w_y
        a = 0.0
        if PROBS:
            acc = tl.zeros([LANES], tl.float32)
            for first in range(0, middle, LANES * VEC):
                inside = first + offs < middle
                t = coefficients(
                    t_body_ptr + first + offs, w_ptr, lead + first + offs, inside, smoothing, per_class, True, WEIGHTED
                )
                acc += tl.sum(tl.where(inside, t, 0.0), 1)
            t = coefficients(t_row_ptr + edge_cols, w_ptr, edge_cols, edge, smoothing, per_class, True, WEIGHTED)
            a = tl.sum(acc, 0) + tl.sum(tl.where(edge, t, 0.0), 0)
        else:
            w_y = 1.0
            if WEIGHTED:
                w_y = tl.load(w_ptr + y, mask=y >= 0, other=0.0).to(tl.float32)
            at_label = tl.where(y >= 0, (1.0 - smoothing) * w_y, float("nan"))
            a = at_label
            if SMOOTHED:
                a += per_class * tl.load(w_sum_ptr) if WEIGHTED else smoothing
        for first in range(begin, end, LANES * VEC):
            inside = first + offs < end
            x = tl.load(x_ptr + tl.multiple_of(start + lead, VEC) + first + offs, mask=inside, other=0.0).to(tl.float32)
            d = a * tl.exp(x - lse)
            if PROBS or SMOOTHED:
                b = coefficients(
                    t_body_ptr + first + offs, w_ptr, lead + first + offs, inside, smoothing, per_class, PROBS, WEIGHTED
                )
                d -= b if PROBS else per_class * b
            if not PROBS:
                d -= tl.where(lead + first + offs == y, at_label, 0.0)
            tl.store(dx_body_ptr + first + offs, (d * scale).to(dx_ptr.dtype.element_ty), mask=inside)
        if part == 0:
            x = tl.load(x_ptr + start + edge_cols, mask=edge, other=0.0).to(tl.float32)
            d = a * tl.exp(x - lse)
            if PROBS or SMOOTHED:
                b = coefficients(t_row_ptr + edge_cols, w_ptr, edge_cols, edge, smoothing, per_class, PROBS, WEIGHTED)
                d -= b if PROBS else per_class * b
            if not PROBS:
                d -= tl.where(edge_cols == y, at_label, 0.0)
            tl.store(dx_ptr + dx_start + edge_cols, (d * scale).to(dx_ptr.dtype.element_ty), mask=edge)


@triton.jit(do_not_specialize=["n_rows"])
def _backward_narrow(
    dx_ptr,
    dloss_ptr,
    x_ptr,
    t_ptr,
    w_ptr,
    w_sum_ptr,
    lse_ptr,
    total_ptr,
    n_rows,
    stride_dloss,
    stride_dx,
    stride_x,
    stride_t,
    n_cols,
    ignore_index,
    smoothing,
    PROBS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)[None, :]
    per_class = smoothing / n_cols
    written = rows < n_rows
    read = written
    y = rows
    if not PROBS:
        y = tl.load(t_ptr + rows, mask=written, other=0)
        read = written & (y != ignore_index)
    valid = read[:, None] & (cols < n_cols)
    x = tl.load(x_ptr + rows[:, None] * stride_x + cols, mask=valid, other=0.0).to(tl.float32)
    lse = tl.load(lse_ptr + rows, mask=read, other=0.0)
    scale = tl.load(dloss_ptr + rows * stride_dloss, mask=read, other=0.0) / tl.load(total_ptr)
    p = tl.exp(x - lse[:, None])
    t_ptrs = t_ptr + rows[:, None] * stride_t + cols
    if PROBS:
        b = coefficients(t_ptrs, w_ptr, cols, valid, smoothing, per_class, True, WEIGHTED)
        d = p * tl.sum(tl.where(valid, b, 0.0), 1)[:, None] - b
    else:
        inside = (y >= 0) & (y < n_cols)
        w_y = tl.where(inside, 1.0, float("nan"))
        if WEIGHTED:
            w_y = tl.load(w_ptr + y, mask=read & inside, other=float("nan")).to(tl.float32)
        a = (1.0 - smoothing) * w_y
        d = tl.where(cols == y[:, None], -a[:, None], 0.0)
        if SMOOTHED:
            d -= per_class * coefficients(t_ptrs, w_ptr, cols, valid, smoothing, per_class, False, WEIGHTED)
            a += per_class * tl.load(w_sum_ptr) if WEIGHTED else smoothing
        d += a[:, None] * p
    d = tl.where(read[:, None], d * scale[:, None], 0.0)
    out = dx_ptr + rows[:, None] * stride_dx + cols
    tl.store(out, d.to(dx_ptr.dtype.element_ty), mask=written[:, None] & (cols < n_cols))


def cross_entropy_bwd(
    dlogits: Tensor,
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    """Launcher of the backward kernels; arguments as the operator's, outputs first (docs/design.md)."""
    n_rows, n_cols = logits.shape
    cfg = config(n_cols, logits.dtype)
    probs, smoothed = target.is_floating_point(), label_smoothing > 0.0
    logits, target, weight = as_rows(logits)[0], as_rows(target)[0] if probs else flat(target), flat(weight)
    weight_sum = lse if weight is None or not smoothed or probs else weight.sum(dtype=torch.float32)
    pointers = (
        dlogits,
        dloss,
        logits,
        target,
        weight if weight is not None else logits,
        weight_sum,
        lse.contiguous(),
        total_weight,
    )
    strides = (dloss.stride(0) if reduction == NONE else 0, dlogits.stride(0), logits.stride(0), target.stride(0))
    options = dict(PROBS=probs, WEIGHTED=weight is not None, SMOOTHED=smoothed, num_warps=cfg.num_warps)
    if cfg.rows:
        grid = (triton.cdiv(n_rows, cfg.rows),)
        _backward_narrow[grid](
            *pointers,
            n_rows,
            *strides,
            n_cols,
            ignore_index,
            float(label_smoothing),
            ROWS=cfg.rows,
            COLS=cfg.block,
            **options,
        )
        return
    # With probabilities every program needs sum_j t_j of the whole row, so the row is not divided.
    per_program = triton.cdiv(n_cols, cfg.block) * cfg.block if probs else 4 * cfg.block
    _backward_wide[(n_rows, triton.cdiv(n_cols, per_program))](
        *pointers,
        *strides,
        n_cols,
        per_program,
        ignore_index,
        float(label_smoothing),
        DX_ALIGNED=(dlogits.stride(0) - logits.stride(0)) % cfg.vec == 0,
        T_ALIGNED=probs and (target.stride(0) - logits.stride(0)) % cfg.vec == 0,
        LANES=cfg.block // cfg.vec,
        VEC=cfg.vec,
        **options,
    )
