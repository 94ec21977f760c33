"""Binary cross-entropy with logits, forward and backward, element by element.

Mathematics. With softplus(-x) = max(-x, 0) + log(1 + exp(-|x|)), targets y, weights w and weights v of the positive
class:

    loss = w ((1 - y) x + (1 + (v - 1) y) softplus(-x))
    dx   = w ((v y + 1 - y) sigmoid(x) - v y)

Neither exponentiates a positive number, so neither overflows.

Contract. Tensors are contiguous and flat. A weight of `period` elements repeats along the flat index, which is how it
broadcasts over leading dimensions; the launcher spreads out any other. A program takes BLOCK elements; all but the last
do so without masks, by 16-byte accesses, whatever the number of elements is. Sums: one partial sum a program, added by
one program in a fixed order; deterministic. Losses are float32, dx has the dtype of x.

Cost. Forward: one exponential and one logarithm an element, one read of x, y and the weights; backward: the same reads,
one exponential, one write. No shared memory beyond the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reduce import MEAN, NONE, REDUCE_BLOCK, reduce_partial_sums
from .rows import load

BLOCK = 1024
"""8 elements a thread, x, y and the weights in flight together; with 16 ptxas spills a register on sm_100."""


@triton.jit
def _load_repeated(ptr, offs, n, period, PRESENT: tl.constexpr, FULL: tl.constexpr, MASKED: tl.constexpr):
    value = tl.full(offs.shape, 1.0, tl.float32)
    if PRESENT:
        if FULL:
            value = load(ptr, offs, n, MASKED)
        else:
            # offs are consecutive, and the product is below 1024 * 2**20 = 2**30: no 64-bit remainder, which is slow.
            first = (tl.program_id(0) % period) * (offs.shape[0] % period) % period
            value = tl.load(ptr + (first + tl.arange(0, offs.shape[0])) % period).to(tl.float32)
    return value


@triton.jit
def _losses(
    x_ptr,
    y_ptr,
    w_ptr,
    v_ptr,
    offs,
    n,
    period_w,
    period_v,
    HAS_W: tl.constexpr,
    HAS_V: tl.constexpr,
    FULL_W: tl.constexpr,
    FULL_V: tl.constexpr,
    MASKED: tl.constexpr,
):
    x = load(x_ptr, offs, n, MASKED)
    y = load(y_ptr, offs, n, MASKED)
    e = tl.exp(-tl.abs(x))
    # log(1 + e) loses e below one rounding of 1; scaled by e over what the rounded sum holds of it, it does not.
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    softplus = tl.maximum(-x, 0.0) + log1p
    positive = _load_repeated(v_ptr, offs, n, period_v, HAS_V, FULL_V, MASKED)
    loss = (1.0 - y) * x + (1.0 + (positive - 1.0) * y) * softplus
    return loss * _load_repeated(w_ptr, offs, n, period_w, HAS_W, FULL_W, MASKED)


@triton.jit(do_not_specialize=["n"])
def _forward(
    loss_ptr,
    x_ptr,
    y_ptr,
    w_ptr,
    v_ptr,
    n,
    period_w,
    period_v,
    HAS_W: tl.constexpr,
    HAS_V: tl.constexpr,
    FULL_W: tl.constexpr,
    FULL_V: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    if (pid + 1) * BLOCK <= n:
        loss = _losses(x_ptr, y_ptr, w_ptr, v_ptr, offs, n, period_w, period_v, HAS_W, HAS_V, FULL_W, FULL_V, False)
        if REDUCED:
            tl.store(loss_ptr + pid, tl.sum(loss, 0))
        else:
            tl.store(loss_ptr + offs, loss)
    else:
        loss = _losses(x_ptr, y_ptr, w_ptr, v_ptr, offs, n, period_w, period_v, HAS_W, HAS_V, FULL_W, FULL_V, True)
        if REDUCED:
            tl.store(loss_ptr + pid, tl.sum(tl.where(offs < n, loss, 0.0), 0))
        else:
            tl.store(loss_ptr + offs, loss, mask=offs < n)


@triton.jit
def _gradients(
    dloss_ptr,
    x_ptr,
    y_ptr,
    w_ptr,
    v_ptr,
    offs,
    n,
    period_w,
    period_v,
    scale,
    HAS_W: tl.constexpr,
    HAS_V: tl.constexpr,
    FULL_W: tl.constexpr,
    FULL_V: tl.constexpr,
    REDUCED: tl.constexpr,
    MASKED: tl.constexpr,
):
    x = load(x_ptr, offs, n, MASKED)
    y = load(y_ptr, offs, n, MASKED)
    e = tl.exp(-tl.abs(x))
    sigmoid = tl.where(x < 0.0, e, 1.0) / (1.0 + e)
    vy = y * _load_repeated(v_ptr, offs, n, period_v, HAS_V, FULL_V, MASKED)
    d = (vy + 1.0 - y) * sigmoid - vy
    d *= _load_repeated(w_ptr, offs, n, period_w, HAS_W, FULL_W, MASKED)
    if REDUCED:
        g = tl.load(dloss_ptr)
    else:
        g = load(dloss_ptr, offs, n, MASKED)
    return d * (g * scale)


@triton.jit(do_not_specialize=["n"])
def _backward(
    dx_ptr,
    dloss_ptr,
    x_ptr,
    y_ptr,
    w_ptr,
    v_ptr,
    n,
    period_w,
    period_v,
    scale,
    HAS_W: tl.constexpr,
    HAS_V: tl.constexpr,
    FULL_W: tl.constexpr,
    FULL_V: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    if (pid + 1) * BLOCK <= n:
        d = _gradients(
            dloss_ptr,
            x_ptr,
            y_ptr,
            w_ptr,
            v_ptr,
            offs,
            n,
            period_w,
            period_v,
            scale,
            HAS_W,
            HAS_V,
            FULL_W,
            FULL_V,
            REDUCED,
            False,
        )
        tl.store(dx_ptr + offs, d.to(dx_ptr.dtype.element_ty))
    else:
        d = _gradients(
            dloss_ptr,
            x_ptr,
            y_ptr,
            w_ptr,
            v_ptr,
            offs,
            n,
            period_w,
            period_v,
            scale,
            HAS_W,
            HAS_V,
            FULL_W,
            FULL_V,
            REDUCED,
            True,
        )
        tl.store(dx_ptr + offs, d.to(dx_ptr.dtype.element_ty), mask=offs < n)


# ------------------------------------------------------------------------------------------------------- launchers


def _repeating(weight: Tensor | None, x: Tensor) -> tuple[Tensor, int]:
    """The weight, flat, and its period along the flat index of x (x itself and 1 where there is no weight)."""
    if weight is None:
        return x, 1
    sizes = list(weight.shape)
    while sizes and sizes[0] == 1:
        del sizes[0]
    # Within a period the kernels count in 32 bits.
    if sizes != list(x.shape[x.dim() - len(sizes) :]) or weight.numel() >= 2**20:
        weight = weight.expand(x.shape)
    return weight.contiguous(), weight.numel()


def _common(x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None):
    x, target = x.contiguous(), target.contiguous()
    w, period_w = _repeating(weight, x)
    v, period_v = _repeating(pos_weight, x)
    n = x.numel()
    full_w, full_v = weight is not None and period_w == n, pos_weight is not None and period_v == n
    options = dict(HAS_W=weight is not None, HAS_V=pos_weight is not None, FULL_W=full_w, FULL_V=full_v, num_warps=4)
    return (x, target, w, v, n, 0 if full_w else period_w, 0 if full_v else period_v), options


def binary_cross_entropy_fwd(
    loss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> None:
    """Launcher of the forward kernel; arguments as the operator's, outputs first (docs/design.md)."""
    arguments, options = _common(x, target, weight, pos_weight)
    n = x.numel()
    programs = triton.cdiv(n, BLOCK)
    reduced = reduction != NONE
    out = torch.empty(programs + 1, dtype=torch.float32, device=x.device) if reduced else loss
    _forward[(programs,)](out, *arguments, REDUCED=reduced, BLOCK=BLOCK, **options)
    if reduced:
        divisor = float(n) if reduction == MEAN else 1.0
        total = out[programs:]  # the kernel stores the divisor, which nobody needs here
        reduce_partial_sums[(1,)](
            loss, total, out, programs, divisor, FROM_PARTIALS=False, BLOCK=REDUCE_BLOCK, num_warps=4
        )


def binary_cross_entropy_bwd(
    dx: Tensor,
    dloss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
) -> None:
    """Launcher of the backward kernel; arguments as the operator's, outputs first (docs/design.md)."""
    arguments, options = _common(x, target, weight, pos_weight)
    scale = 1.0 / x.numel() if reduction == MEAN else 1.0
    _backward[(triton.cdiv(x.numel(), BLOCK),)](
        dx, dloss.contiguous(), *arguments, scale, REDUCED=reduction != NONE, BLOCK=BLOCK, **options
    )
