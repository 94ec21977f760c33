"""The attention op of PyTorch's own operators on any device: fp32 scores, no value read back from the device.

Packed sequences are padded to max_seqlen by a gather and packed again; dropout is the exact mask of the kernels.  Every
step is differentiable, which is what double backward uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dropout.attention import attention_keep, dropout_scale
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


def _probabilities(
    q: Tensor, k: Tensor, attn_bias: Tensor | None, lengths_q: Tensor | None, lengths_k: Tensor | None,
    rng_state: Tensor | None, softmax_scale: float, dropout_p: float, window_left: int, window_right: int,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """P and lse of padded q, k (batch, heads, seqlen, head_dim) in fp32, and the dropout factors."""
    m, n = q.shape[2], k.shape[2]
    scores = (q @ k.transpose(-1, -2)) * softmax_scale
    i = torch.arange(m, device=q.device)[:, None]
    j = torch.arange(n, device=q.device)[None, :]
    if lengths_q is not None and lengths_k is not None:
        i = i + (lengths_k - lengths_q)[:, None, None, None]
    seen = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=q.device)
    if window_left >= 0:
        seen = seen & (j >= i - window_left)
    if window_right >= 0:
        seen = seen & (j <= i + window_right)
    if lengths_k is not None:
        seen = seen & (j < lengths_k[:, None, None, None])
    if attn_bias is not None:
        if attn_bias.dtype == torch.bool:
            seen = seen & attn_bias
        else:
            seen = seen & ~hides(attn_bias)
            scores = scores + attn_bias.float()
    scores = scores.masked_fill(~seen, float("-inf"))
    dead = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(dead, 0.0)  # before the softmax: its derivative there would be NaN
    p = scores.softmax(-1).masked_fill(dead, 0.0)
    lse = (scores.logsumexp(-1) if n else scores.sum(-1)).masked_fill(dead.squeeze(-1), float("-inf"))
    if rng_state is None:
        return p, lse, None
    if keep is None:
        heads = torch.arange(q.shape[0] * q.shape[1], device=q.device)
        keep = attention_keep(rng_state, heads, m, n, dropout_p).view(p.shape)
    return p, lse, keep * dropout_scale(dropout_p)


def _padded(
    q: Tensor, k: Tensor, v: Tensor, seqused_k: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    max_seqlen_q: int, max_seqlen_k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """q, k, v as fp32 (batch, num_heads, seqlen, head_dim), k and v repeated for grouped heads; lengths of q and k."""
    lengths_q, lengths_k = None, seqused_k
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
        q = _zero_past(pad(q, cu_seqlens_q, max_seqlen_q), lengths_q)
        k, v = pad(k, cu_seqlens_k, max_seqlen_k), pad(v, cu_seqlens_k, max_seqlen_k)
    if lengths_k is not None:
        k, v = _zero_past(k, lengths_k), _zero_past(v, lengths_k)
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return q, k, v, lengths_q, lengths_k


def forward(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float,
    dropout_p: float, window_left: int, window_right: int, keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out and softmax_lse, as in op.py; `keep`, (batch, heads, seqlen_q, seqlen_k), replaces the drawn mask."""
    q4, k4, v4, lengths_q, lengths_k = _padded(
        q, k, v, seqused_k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    )
    p, lse, factor = _probabilities(
        q4, k4, attn_bias, lengths_q, lengths_k, rng_state, softmax_scale, dropout_p, window_left, window_right, keep
    )
    out = ((p if factor is None else p * factor) @ v4).to(q.dtype).transpose(1, 2)
    if cu_seqlens_q is None:
        return out.contiguous(), lse.contiguous()
    total = q.shape[0]
    lse = _unpad(lse.transpose(1, 2), cu_seqlens_q, total, float("-inf"))
    return _unpad(out, cu_seqlens_q, total), lse.t().contiguous()


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, attn_bias: Tensor | None,
    seqused_k: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, rng_state: Tensor | None,
    max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, dropout_p: float, window_left: int, window_right: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv of ops/attention/op.py."""
    q4, k4, v4, lengths_q, lengths_k = _padded(
        q, k, v, seqused_k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    )
    p, _, factor = _probabilities(
        q4, k4, attn_bias, lengths_q, lengths_k, rng_state, softmax_scale, dropout_p, window_left, window_right
    )
    if cu_seqlens_q is not None and lengths_q is not None:
        dout = _zero_past(pad(dout, cu_seqlens_q, max_seqlen_q), lengths_q)
    do = dout.float().transpose(1, 2)
    dp = do @ v4.transpose(-1, -2)
    z = p
    if factor is not None:
        z, dp = p * factor, dp * factor
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * softmax_scale
    grads: list[Any] = []
    for grad, like, cu_seqlens in (
        (ds @ k4, q, cu_seqlens_q),
        (ds.transpose(-1, -2) @ q4, k, cu_seqlens_k),
        (z.transpose(-1, -2) @ do, v, cu_seqlens_k),
    ):
        batch, heads, rows, head_dim = grad.shape
        group = heads // like.shape[-2]
        if group > 1:
            grad = grad.view(batch, heads // group, group, rows, head_dim).sum(2)
        grad = grad.transpose(1, 2).to(like.dtype)
        grads.append(grad.contiguous() if cu_seqlens is None else _unpad(grad, cu_seqlens, like.shape[0]))
    return grads[0], grads[1], grads[2]
