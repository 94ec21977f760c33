"""Kullback-Leibler divergence from log-probabilities, forward and backward, element by element.

Mathematics. Of log-probabilities x and a target t, which holds probabilities, or with LOG their logarithms:

    loss = t log t - t x,  0 log 0 = 0        dx = -t
    loss = exp(t) (t - x)                     dx = -exp(t)      (LOG)

Contract. Tensors are contiguous and flat. A program takes BLOCK elements; all but the last do so without masks, by
16-byte accesses, whatever the number of elements is. Sums: one partial sum a program, added by one program in a fixed
order; deterministic. Losses are float32, dx has the dtype of x; backward does not read x.

Cost. Forward: one logarithm or exponential an element, one read of x and t; backward: one read of t, one write. No
shared memory beyond the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reduce import MEAN, NONE, REDUCE_BLOCK, reduce_partial_sums
from .rows import load

BATCHMEAN = 3
BLOCK = 1024
"""8 elements a thread, x and t in flight together: as in binary cross-entropy, not yet timed."""


@triton.jit
def _losses(x_ptr, t_ptr, offs, n, LOG: tl.constexpr, MASKED: tl.constexpr):
    x = load(x_ptr, offs, n, MASKED)
    t = load(t_ptr, offs, n, MASKED)
    if LOG:
        loss = tl.exp(t) * (t - x)
    else:
        loss = tl.where(t == 0.0, 0.0, t * tl.log(tl.where(t == 0.0, 1.0, t))) - t * x
    return loss


@triton.jit(do_not_specialize=["n"])
def _forward(loss_ptr, x_ptr, t_ptr, n, LOG: tl.constexpr, REDUCED: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    if (pid + 1) * BLOCK <= n:
        loss = _losses(x_ptr, t_ptr, offs, n, LOG, False)
        if REDUCED:
            tl.store(loss_ptr + pid, tl.sum(loss, 0))
        else:
            tl.store(loss_ptr + offs, loss)
    else:
        loss = _losses(x_ptr, t_ptr, offs, n, LOG, True)
        if REDUCED:
            tl.store(loss_ptr + pid, tl.sum(loss, 0))  # of x = t = 0 beyond the tensor, which is 0
        else:
            tl.store(loss_ptr + offs, loss, mask=offs < n)


@triton.jit
def _gradients(dloss_ptr, t_ptr, offs, n, scale, LOG: tl.constexpr, REDUCED: tl.constexpr, MASKED: tl.constexpr):
    t = load(t_ptr, offs, n, MASKED)
    if LOG:
        t = tl.exp(t)
    if REDUCED:
        g = tl.load(dloss_ptr)
    else:
        g = load(dloss_ptr, offs, n, MASKED)
    return -t * (g * scale)


@triton.jit(do_not_specialize=["n"])
def _backward(dx_ptr, dloss_ptr, t_ptr, n, scale, LOG: tl.constexpr, REDUCED: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    if (pid + 1) * BLOCK <= n:
        d = _gradients(dloss_ptr, t_ptr, offs, n, scale, LOG, REDUCED, False)
        tl.store(dx_ptr + offs, d.to(dx_ptr.dtype.element_ty))
    else:
        d = _gradients(dloss_ptr, t_ptr, offs, n, scale, LOG, REDUCED, True)
        tl.store(dx_ptr + offs, d.to(dx_ptr.dtype.element_ty), mask=offs < n)


# ------------------------------------------------------------------------------------------------------- launchers


def _divisor(target: Tensor, reduction: int) -> int:
    """What the sum is divided by."""
    return target.numel() if reduction == MEAN else target.shape[0] if reduction == BATCHMEAN else 1


def kl_div_fwd(loss: Tensor, x: Tensor, target: Tensor, reduction: int, log_target: bool) -> None:
    """Launcher of the forward kernel; arguments as the operator's, outputs first (docs/design.md)."""
    n = target.numel()
    programs = triton.cdiv(n, BLOCK)
    reduced = reduction != NONE
    out = torch.empty(programs + 1, dtype=torch.float32, device=x.device) if reduced else loss
    _forward[(programs,)](
        out, x.contiguous(), target.contiguous(), n, LOG=log_target, REDUCED=reduced, BLOCK=BLOCK, num_warps=4
    )
    if reduced:
        total = out[programs:]  # the kernel stores the divisor, which nobody needs here
        reduce_partial_sums[(1,)](
            loss,
            total,
            out,
            programs,
            float(_divisor(target, reduction)),
            FROM_PARTIALS=False,
            BLOCK=REDUCE_BLOCK,
            num_warps=4,
        )


def kl_div_bwd(dx: Tensor, dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> None:
    """Launcher of the backward kernel; arguments as the operator's, outputs first (docs/design.md)."""
    n = target.numel()
    _backward[(triton.cdiv(n, BLOCK),)](
        dx,
        dloss.contiguous(),
        target.contiguous(),
        n,
        1.0 / _divisor(target, reduction),
        LOG=log_target,
        REDUCED=reduction != NONE,
        BLOCK=BLOCK,
        num_warps=4,
    )
