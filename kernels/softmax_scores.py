"""What the kernels of softmax.py and softmax_unaligned.py share: the mask of a row, scores, their gradient."""

from __future__ import annotations

import triton
import triton.language as tl

MASK_NONE, MASK_BOOL, MASK_ADD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def mask_of_rows(mask_ptr, rows, d1, d2, d3, stride_k0, stride_k1, stride_k2, stride_k3):
    """Pointers to the mask of each row: the row number taken apart into four dims of sizes (.., d1, d2, d3)."""
    i3 = rows % d3
    rest = rows // d3
    i2 = rest % d2
    rest = rest // d2
    i1 = rest % d1
    i0 = rest // d1
    return (
        mask_ptr
        + i0.to(tl.int64) * stride_k0
        + i1.to(tl.int64) * stride_k1
        + i2.to(tl.int64) * stride_k2
        + i3.to(tl.int64) * stride_k3
    )


@triton.jit
def masked_scores(x_at, mask_at, ok, scale, MASK: tl.constexpr):
    """scale * x (+ mask) as float32, of the elements at x_at and mask_at; -inf outside of the tensor."""
    s = tl.load(x_at, mask=ok, other=0.0).to(tl.float32) * scale
    if MASK == MASK_BOOL:
        s = tl.where(tl.load(mask_at, mask=ok, other=0) != 0, s, float("-inf"))
    if MASK == MASK_ADD:
        s += tl.load(mask_at, mask=ok, other=0.0).to(tl.float32)
    return tl.where(ok, s, float("-inf"))


@triton.jit
def finite_max(m):
    """0 for the -inf of a row without a score, so that differences from it are no NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def gradient_of_scores(dout, out, total, LOG: tl.constexpr):
    """From out = p or log p and the row's total."""
    if LOG:
        ds = dout - tl.exp(out) * total
    else:
        ds = out * (dout - total)
    return ds


@triton.jit
def out_and_dout(out_at, dout_at, ok, LOG: tl.constexpr, MASK: tl.constexpr):
    """out and dout as float32; dout is 0 where out is the constant of a masked element of a log row."""
    out = tl.load(out_at, mask=ok, other=0.0).to(tl.float32)
    dout = tl.load(dout_at, mask=ok, other=0.0).to(tl.float32)
    if LOG and MASK != 0:
        dout = tl.where(out == float("-inf"), 0.0, dout)
    return out, dout
