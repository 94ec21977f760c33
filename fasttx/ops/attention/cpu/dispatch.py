"""The attention op of PyTorch's own operators on a CPU: never slower than F.scaled_dot_product_attention.

A call is cut into parts (parts.py).  A part without dropout goes to PyTorch's CPU flash kernel and its backward
(flash.py).  With dropout, or where v has a head_dim of its own, a few heads at a time are computed by matrix products
(chunks.py).  Packed sequences without a mask go a shorter way (packed.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..call import AttentionCall, Gradients
from . import packed as packed_batch
from .chunks import Chunks
from .flash import FLASH, FLASH_BACKWARD, flash_backward, flash_forward
from .packed import packed_lengths
from .parts import INF, parts
from .parts import worth_slicing as worth_slicing


def forward(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """out and softmax_lse of ops/attention/op.py."""
    call = AttentionCall(*given)
    flash = call.rng_state is None and q.shape[-1] == v.shape[-1]
    if flash and _whole(q, k, call):
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        o, lse = FLASH(q, k, v, 0.0, call.window_right == 0, scale=call.softmax_scale)
        return o.transpose(1, 2).contiguous(), lse.contiguous()  # the kernel keeps q's order of dims
    packed = packed_lengths(q, k, call)
    if packed is not None:
        both = _results(q, v)
        write = packed_batch.flash_forward if flash else packed_batch.chunked_forward
        write(q, k, v, *both, call, packed)
        return both
    out = softmax_lse = None
    chunks = None
    for part in parts(q, k, call):
        q4, k4, v4 = part.of(q, part.rows), part.of(k, part.keys), part.of(v, part.keys)
        empty = q4.numel() == 0 or k4.numel() == 0
        if flash and not empty:
            o, lse = flash_forward(part, q4, k4, v4, call.softmax_scale)
            if o.shape == q.shape:
                return o.contiguous(), lse.contiguous()
        if out is None or softmax_lse is None:
            out, softmax_lse = _results(q, v)
        if empty:
            part.of(out, part.rows).zero_()
            part.of_lse(softmax_lse).fill_(-INF)
        elif flash:
            part.of(out, part.rows).copy_(o)
            part.of_lse(softmax_lse).copy_(lse)
        else:
            chunks = chunks or Chunks(call)
            chunks.forward(part, q4, k4, v4, part.of(out, part.rows), part.of_lse(softmax_lse))
    if out is None or softmax_lse is None:
        return _results(q, v)
    return out, softmax_lse


def _whole(q: Tensor, k: Tensor, call: AttentionCall) -> bool:
    """Nothing but q, k, v and perhaps the causal flag: one call of the flash kernel, with no time lost before it."""
    return (
        call.attn_bias is None
        and call.seqused_k is None
        and call.cu_seqlens_q is None
        and call.window_left < 0
        and call.window_right <= 0
        and q.numel() > 0
        and k.numel() > 0
    )


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    return out, q.new_empty(rows, dtype=torch.float32)


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any) -> Gradients:
    """The gradients of ops/attention/op.py; `given` ends in deterministic, which they are anyway, and needs_dbias."""
    call, bias = AttentionCall(*given[:-2]), given[0] if given[-1] else None
    if bias is None:
        return Gradients(*_backward(dout, q, k, v, out, softmax_lse, call, None), q.new_empty(0))
    dbias = torch.zeros(bias.shape, dtype=torch.float32)
    one_column = bias.shape[-1] == 1  # added to all scores of a row, it changes no probability: its gradient is 0
    grads = _backward(dout, q, k, v, out, softmax_lse, call, None if one_column else dbias)
    return Gradients(*grads, dbias.to(bias.dtype))


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    call: AttentionCall,
    dbias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv; adds to dbias, of which PyTorch's flash kernel knows nothing."""
    flash = call.rng_state is None and q.shape[-1] == v.shape[-1]
    if flash and _whole(q, k, call):
        dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
        causal = call.window_right == 0
        dq, dk, dv = FLASH_BACKWARD(dout, q, k, v, out, softmax_lse, 0.0, causal, scale=call.softmax_scale)
        return dq.transpose(1, 2).contiguous(), dk.transpose(1, 2).contiguous(), dv.transpose(1, 2).contiguous()
    packed = packed_lengths(q, k, call)
    if packed is not None:
        three = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        if flash:
            packed_batch.flash_backward(dout, q, k, v, out, softmax_lse, three, call, packed)
        else:
            packed_batch.chunked_backward(dout, q, k, v, softmax_lse, three, call, packed)
        return three
    grads: tuple[Tensor, ...] | None = None
    chunks = None
    for part in parts(q, k, call):
        at = (part.rows, part.keys, part.keys)
        q4, k4, v4 = (part.of(x, where) for x, where in zip((q, k, v), at, strict=True))
        do, lse = part.of(dout, part.rows), part.of_lse(softmax_lse)
        empty = q4.numel() == 0 or k4.numel() == 0
        own = None if dbias is None or empty else part.of_bias(dbias)
        if flash and not empty:
            out4 = part.of(out, part.rows)
            if own is not None:
                chunks = chunks or Chunks(call)
                chunks.bias_gradient(part, do, q4, k4, v4, out4, lse, own)
            found = flash_backward(part, do, q4, k4, v4, out4, lse, call.softmax_scale)
            if q.dim() == 4 and found[0].shape == q.shape and found[1].shape == k.shape:
                return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()
        if grads is None:
            grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        if q.dim() == 4 and part.keys.stop < k.shape[1]:
            for g in grads[1:]:
                g[part.batch, part.keys.stop :].zero_()
        into = [part.of(g, where) for g, where in zip(grads, at, strict=True)]
        if empty:
            for g in into:
                g.zero_()
        elif flash:
            for g, f in zip(into, found, strict=True):
                g.copy_(f)
        else:
            chunks = chunks or Chunks(call)
            chunks.backward(part, do, q4, k4, v4, lse, into[0], into[1], into[2], own)
    if grads is None:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    return grads[0], grads[1], grads[2]
