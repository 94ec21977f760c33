"""Softmax and log-softmax of long rows that do not begin at multiples of 16 bytes: forward and backward.

Mathematics
    That of softmax.py, without dropout.

Contract
    One program computes one row. It starts at the row's first 16-byte boundary and ends at its last, in whole vectors,
    so that every access there moves 16 bytes; what is left at both ends, fewer than two vectors, is a tile of 16
    elements (cross_entropy.py does the same). The boundaries are those of x, in backward of out; another operand has
    them too where its stride agrees modulo VEC, else its accesses are narrower. Masks are read by element: they are
    broadcast over rows, and come from L1 and L2. No atomics, bitwise deterministic.

Cost
    As of softmax.py. Shared memory: reductions only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import row_geometry
from .softmax_scores import MASK_NONE, finite_max, gradient_of_scores, mask_of_rows, masked_scores, out_and_dout


@triton.jit
def _body_of(ptr, row, stride, lead, VEC: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to column `lead` of a row, known to lie at a multiple of VEC elements where ALIGNED."""
    at = row * stride + lead
    if ALIGNED:
        at = tl.multiple_of(at, VEC)
    return ptr + at


@triton.jit
def _edge_columns(lead, middle, n_cols):
    """Columns (16,) before and after the vectors, and which of them there are."""
    e = tl.arange(0, 16)
    cols = tl.where(e < lead, e, e + middle)
    return cols, cols < n_cols


@triton.jit(do_not_specialize=["n_rows"])
def softmax_unaligned_fwd_kernel(
    out_ptr,
    x_ptr,
    mask_ptr,
    n_rows,
    n_cols,
    stride_xm,
    d1,
    d2,
    d3,
    stride_k0,
    stride_k1,
    stride_k2,
    stride_k3,
    stride_kn,
    scale,
    BLOCK_N: tl.constexpr,
    VEC: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    MULTI: tl.constexpr,
    LOG: tl.constexpr,
    MASK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, lead, middle = row_geometry(row, stride_xm, n_cols, VEC)
    x_body = _body_of(x_ptr, row, stride_xm, lead, VEC, True)
    out_body = _body_of(out_ptr, row, n_cols, lead, VEC, OUT_ALIGNED)
    of_row = x_ptr
    if MASK != MASK_NONE:
        of_row = mask_of_rows(mask_ptr, row, d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3)
    offs = tl.arange(0, BLOCK_N)
    edge_cols, edge = _edge_columns(lead, middle, n_cols)
    es = masked_scores(x_ptr + start + edge_cols, of_row + edge_cols.to(tl.int64) * stride_kn, edge, scale, MASK)
    m = tl.max(es, 0)
    s = tl.zeros([BLOCK_N], tl.float32)
    if MULTI:
        l = tl.sum(tl.exp(es - finite_max(m)), 0)
        for first in range(0, middle, BLOCK_N):
            at = first + offs
            s = masked_scores(x_body + at, of_row + (lead + at).to(tl.int64) * stride_kn, at < middle, scale, MASK)
            m_new = tl.maximum(m, tl.max(s, 0))
            m_safe = finite_max(m_new)
            l = l * tl.exp(m - m_safe) + tl.sum(tl.exp(s - m_safe), 0)
            m = m_new
        m = finite_max(m)
    else:
        s = masked_scores(x_body + offs, of_row + (lead + offs).to(tl.int64) * stride_kn, offs < middle, scale, MASK)
        m = tl.maximum(m, tl.max(s, 0))
        if MASK != MASK_NONE:
            m = finite_max(m)
        l = tl.sum(tl.exp(s - m), 0) + tl.sum(tl.exp(es - m), 0)
    # a row without a score has l = 0: NaN (0 / 0, -inf + inf) unless a mask says that it may be so
    if MASK != MASK_NONE:
        l = tl.where(l == 0.0, 1.0, l)
    inv_l = 1.0 / l
    log_l = tl.log(l)
    for first in range(0, middle, BLOCK_N):
        at = first + offs
        if MULTI:
            s = masked_scores(x_body + at, of_row + (lead + at).to(tl.int64) * stride_kn, at < middle, scale, MASK)
        out = s - m - log_l if LOG else tl.exp(s - m) * inv_l
        tl.store(out_body + at, out.to(out_ptr.dtype.element_ty), mask=at < middle)
    out = es - m - log_l if LOG else tl.exp(es - m) * inv_l
    tl.store(out_ptr + row * n_cols + edge_cols, out.to(out_ptr.dtype.element_ty), mask=edge)


@triton.jit(do_not_specialize=["n_rows"])
def softmax_unaligned_bwd_kernel(
    dx_ptr,
    dout_ptr,
    out_ptr,
    n_rows,
    n_cols,
    stride_dm,
    stride_om,
    scale,
    BLOCK_N: tl.constexpr,
    VEC: tl.constexpr,
    DX_ALIGNED: tl.constexpr,
    DOUT_ALIGNED: tl.constexpr,
    MULTI: tl.constexpr,
    LOG: tl.constexpr,
    MASK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start, lead, middle = row_geometry(row, stride_om, n_cols, VEC)
    out_body = _body_of(out_ptr, row, stride_om, lead, VEC, True)
    dout_body = _body_of(dout_ptr, row, stride_dm, lead, VEC, DOUT_ALIGNED)
    dx_body = _body_of(dx_ptr, row, n_cols, lead, VEC, DX_ALIGNED)
    offs = tl.arange(0, BLOCK_N)
    edge_cols, edge = _edge_columns(lead, middle, n_cols)
    e_out, e_dout = out_and_dout(out_ptr + start + edge_cols, dout_ptr + row * stride_dm + edge_cols, edge, LOG, MASK)
    total = tl.sum(e_dout if LOG else e_dout * e_out, 0)
    out, dout = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, middle, BLOCK_N):
        at = first + offs
        out, dout = out_and_dout(out_body + at, dout_body + at, at < middle, LOG, MASK)
        total += tl.sum(dout if LOG else dout * out, 0)
    for first in range(0, middle, BLOCK_N):
        at = first + offs
        if MULTI:
            out, dout = out_and_dout(out_body + at, dout_body + at, at < middle, LOG, MASK)
        dx = gradient_of_scores(dout, out, total, LOG) * scale
        tl.store(dx_body + at, dx.to(dx_ptr.dtype.element_ty), mask=at < middle)
    dx = gradient_of_scores(e_dout, e_out, total, LOG) * scale
    tl.store(dx_ptr + row * n_cols + edge_cols, dx.to(dx_ptr.dtype.element_ty), mask=edge)
