"""The attention op of PyTorch's own operators on any device: fp32 scores, no value read back from the device.

Packed sequences are padded to max_seqlen by a gather and packed again; dropout is the exact mask of the kernels.  Every
step is differentiable, which is what double backward uses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dropout.attention import attention_keep, dropout_scale
from .call import AttentionCall, Gradients
from .masks import hides


def pad(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(total, ...) -> (batch, max_seqlen, ...)."""
    at = cu_seqlens[:-1, None] + torch.arange(max_seqlen, device=x.device)
    if x.shape[0] == 0:
        return x.new_zeros((at.shape[0], max_seqlen, *x.shape[1:]))
    return x[at.clamp(max=x.shape[0] - 1)]  # past a sequence's end: some other row, see _zero_past


def _zero_past(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, seqlen, heads, head_dim) with zeros past each length: 0 * NaN would let padding reach real tokens."""
    past = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(past[:, :, None, None], 0.0)


def _unpad(padded: Tensor, cu_seqlens: Tensor, total: int, none: float = 0.0) -> Tensor:
    """(batch, max_seqlen, ...) -> (total, ...); NaN for tokens that max_seqlen left out, `none` for those of none."""
    batch, max_seqlen = padded.shape[:2]
    if total == 0 or batch == 0 or max_seqlen == 0:
        return padded.new_full((total, *padded.shape[2:]), none)
    token = torch.arange(total, device=padded.device)
    b = torch.searchsorted(cu_seqlens[1:].long(), token, right=True).clamp(max=batch - 1)
    row = token - cu_seqlens[b]
    ones = [1] * (padded.dim() - 2)
    lost, after = (row >= max_seqlen).view(-1, *ones), (token >= cu_seqlens[-1]).view(-1, *ones)
    rows = padded[b, row.clamp(max=max_seqlen - 1)]
    return rows.masked_fill(lost, float("nan")).masked_fill(after, none)


class _Padded(NamedTuple):
    """q, k, v in fp32 (batch, num_heads, seqlen, head_dim), k and v repeated for grouped heads, and the lengths."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths_q: Tensor | None
    lengths_k: Tensor | None


def _padded(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> _Padded:
    lengths_q, lengths_k, starts = None, call.seqused_k, call.starts
    if starts is not None:
        starts_q, starts_k = starts
        lengths_q, lengths_k = starts_q.diff(), starts_k.diff()
        q = _zero_past(pad(q, starts_q, call.max_seqlen_q), lengths_q)
        k, v = pad(k, starts_k, call.max_seqlen_k), pad(v, starts_k, call.max_seqlen_k)
    if lengths_k is not None:
        k, v = _zero_past(k, lengths_k), _zero_past(v, lengths_k)
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return _Padded(q, k, v, lengths_q, lengths_k)


def _probabilities(x: _Padded, call: AttentionCall, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """P and lse in fp32, and the dropout factors."""
    q, k, lengths_k = x.q, x.k, x.lengths_k
    m, n = q.shape[2], k.shape[2]
    scores = (q @ k.transpose(-1, -2)) * call.softmax_scale
    i = torch.arange(m, device=q.device)[:, None]
    j = torch.arange(n, device=q.device)[None, :]
    if x.lengths_q is not None and lengths_k is not None:
        i = i + (lengths_k - x.lengths_q)[:, None, None, None]
    seen = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=q.device)
    if call.window_left >= 0:
        seen = seen & (j >= i - call.window_left)
    if call.window_right >= 0:
        seen = seen & (j <= i + call.window_right)
    if lengths_k is not None:
        seen = seen & (j < lengths_k[:, None, None, None])
    bias = call.attn_bias
    if bias is not None:
        if bias.dtype == torch.bool:
            seen = seen & bias
        else:
            seen = seen & ~hides(bias)
            scores = scores + bias.float()
    scores = scores.masked_fill(~seen, float("-inf"))
    dead = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(dead, 0.0)  # before the softmax: its derivative there would be NaN
    p = scores.softmax(-1).masked_fill(dead, 0.0)
    lse = (scores.logsumexp(-1) if n else scores.sum(-1)).masked_fill(dead.squeeze(-1), float("-inf"))
    if call.rng_state is None:
        return p, lse, None
    if keep is None:
        heads = torch.arange(q.shape[0] * q.shape[1], device=q.device)
        keep = attention_keep(call.rng_state, heads, m, n, call.dropout_p).view(p.shape)
    return p, lse, keep * dropout_scale(call.dropout_p)


def forward(q: Tensor, k: Tensor, v: Tensor, *given: Any, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """out and softmax_lse, as in op.py; `keep`, (batch, heads, seqlen_q, seqlen_k), replaces the drawn mask."""
    call = AttentionCall(*given)
    x = _padded(q, k, v, call)
    p, lse, factor = _probabilities(x, call, keep)
    out = ((p if factor is None else p * factor) @ x.v).to(q.dtype).transpose(1, 2)
    if call.cu_seqlens_q is None:
        return out.contiguous(), lse.contiguous()
    total = q.shape[0]
    lse = _unpad(lse.transpose(1, 2), call.cu_seqlens_q, total, float("-inf"))
    return _unpad(out, call.cu_seqlens_q, total), lse.t().contiguous()


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any) -> Gradients:
    """The gradients of ops/attention/op.py; `given` ends in deterministic and needs_dbias."""
    call, bias = AttentionCall(*given[:-2]), given[0] if given[-1] else None
    x = _padded(q, k, v, call)
    p, _, factor = _probabilities(x, call)
    starts_q, starts_k = call.starts or (None, None)
    if starts_q is not None and x.lengths_q is not None:
        dout = _zero_past(pad(dout, starts_q, call.max_seqlen_q), x.lengths_q)
    do = dout.float().transpose(1, 2)
    dp = do @ x.v.transpose(-1, -2)
    z = p
    if factor is not None:
        z, dp = p * factor, dp * factor
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    dbias = q.new_empty(0) if bias is None else ds.sum_to_size(bias.shape).to(bias.dtype).contiguous()
    ds = ds * call.softmax_scale
    grads: list[Any] = []
    for grad, like, starts in (
        (ds @ x.k, q, starts_q),
        (ds.transpose(-1, -2) @ x.q, k, starts_k),
        (z.transpose(-1, -2) @ do, v, starts_k),
    ):
        batch, heads, rows, head_dim = grad.shape
        group = heads // like.shape[-2]
        if group > 1:
            grad = grad.view(batch, heads // group, group, rows, head_dim).sum(2)
        grad = grad.transpose(1, 2).to(like.dtype)
        grads.append(grad.contiguous() if starts is None else _unpad(grad, starts, like.shape[0]))
    return Gradients(grads[0], grads[1], grads[2], dbias)
