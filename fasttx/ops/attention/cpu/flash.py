"""A part of an attention call without dropout, by PyTorch's flash kernel for CPUs and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import hides
from .parts import INF, Part, additive, window

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_SUSPECT = torch.finfo(torch.float16).min / 2
"""A row of which every key is hidden by a finite number, float16's lowest or less, has a lower lse."""


def _dead_rows(bias: Tensor, part: Part, rows: int) -> Tensor:
    """Which rows no key is visible for, bool broadcastable to (batch, heads, rows)."""
    seen = ~hides(bias)
    if part.causal:
        seen = seen & window(rows, bias.shape[-1], 0, -1, 0)
    return ~seen.any(-1)


def flash_forward(part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(batch, rows, heads, head_dim) and (batch, heads, rows)."""
    bias = additive(part.bias, q.dtype)
    out, lse = FLASH(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, part.causal, attn_mask=bias, scale=scale
    )
    out = out.transpose(1, 2)
    # Without keys the kernel's answer is 0, which may be another row's; of rows that are hidden by a finite number it
    # makes a softmax, with an lse about as low as that.
    if bias is not None and bool(((lse == 0.0) | (lse < _SUSPECT)).any()):
        dead = _dead_rows(bias, part, q.shape[1]).expand(lse.shape)
        lse = lse.masked_fill(dead, -INF)
        out = out.masked_fill(dead.transpose(1, 2).unsqueeze(-1), 0.0)
    return out, lse


def flash_backward(
    part: Part, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    bias = additive(part.bias, q.dtype)
    if bias is not None:
        lse = lse.masked_fill(lse == -INF, 0.0)  # as the forward kernel left it: exp(-inf - -inf) would be NaN
    q, k, v, out, dout = (x.transpose(1, 2) for x in (q, k, v, out, dout))
    grads = FLASH_BACKWARD(dout, q, k, v, out, lse, 0.0, part.causal, attn_mask=bias, scale=scale)
    return [g.transpose(1, 2) for g in grads]
