"""The attention op in float64, one sequence and one head at a time, from the formula.

S = softmax_scale q k^T + attn_bias;  P = softmax(S);  Z = P * M / (1 - p_hat);  out = Z v
dv = Z^T dout;  dP = (dout v^T) * M / (1 - p_hat);  dS = P * (dP - rowsum(dP * P));  dq = scale dS k;  dk = scale dS^T q
dbias = dS, summed over the dims in which attn_bias has one element
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..dropout.attention import attention_keep, dropout_scale
from .call import AttentionCall, Gradients
from .masks import hides


def _heads(q: Tensor, k: Tensor, call: AttentionCall) -> Iterator[Any]:
    """For every sequence and head: where it lies in q and in k, its scores (-inf where masked) and its dropout
    factors.
    """
    num_heads, group = q.shape[-2], q.shape[-2] // k.shape[-2]
    starts, seqused_k, attn_bias, rng_state = call.starts, call.seqused_k, call.attn_bias, call.rng_state
    batch = q.shape[0] if starts is None else starts[0].shape[0] - 1
    for b in range(batch):
        if starts is not None:
            at_q: Any = slice(*starts[0][b : b + 2].tolist())
            at_k: Any = slice(*starts[1][b : b + 2].tolist())
            shift = (at_k.stop - at_k.start) - (at_q.stop - at_q.start)
        else:
            at_q = at_k = b
            shift = 0
        for h in range(num_heads):
            qh, kh = q[at_q][:, h].double(), k[at_k][:, h // group].double()
            m, n = qh.shape[0], kh.shape[0]
            scores = call.softmax_scale * (qh @ kh.T)
            i, j = torch.arange(m, device=q.device)[:, None] + shift, torch.arange(n, device=q.device)[None, :]
            seen = torch.ones(m, n, dtype=torch.bool, device=q.device)
            if call.window_left >= 0:
                seen &= j >= i - call.window_left
            if call.window_right >= 0:
                seen &= j <= i + call.window_right
            if seqused_k is not None:
                seen &= j < seqused_k[b]
            if attn_bias is not None:
                bias = attn_bias[b if attn_bias.shape[0] > 1 else 0, h if attn_bias.shape[1] > 1 else 0]
                bias = bias.expand(call.max_seqlen_q, call.max_seqlen_k)[:m, :n]
                if bias.dtype == torch.bool:
                    seen &= bias
                else:
                    seen &= ~hides(bias)
                    scores = scores + bias.double()
            scores = scores.masked_fill(~seen, float("-inf"))
            factor = torch.ones_like(scores)
            if rng_state is not None:
                head = torch.tensor([b * num_heads + h], device=q.device)
                keep = attention_keep(rng_state, head, m, n, call.dropout_p)
                factor = keep[0].double() * dropout_scale(call.dropout_p)
            yield at_q, at_k, h, h // group, scores, factor


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    dead = scores.isneginf().all(-1, keepdim=True)
    if scores.shape[1] == 0:
        return scores, scores.new_full(scores.shape[:1], float("-inf"))
    scores = scores.masked_fill(dead, 0.0)
    lse = scores.logsumexp(-1, keepdim=True)
    p = (scores - lse).exp().masked_fill(dead, 0.0)
    return p, lse.masked_fill(dead, float("-inf")).squeeze(-1)


def forward(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """out and softmax_lse in float64."""
    out = torch.zeros((*q.shape[:-1], v.shape[-1]), dtype=torch.float64, device=q.device)
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    softmax_lse = torch.full(rows, float("-inf"), dtype=torch.float64, device=q.device)
    for at_q, at_k, h, h_k, scores, factor in _heads(q, k, AttentionCall(*given)):
        p, lse = _softmax(scores)
        out[at_q][:, h] = (p * factor) @ v[at_k][:, h_k].double()
        if q.dim() == 4:
            softmax_lse[at_q, h] = lse
        else:
            softmax_lse[h, at_q] = lse
    return out, softmax_lse


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any) -> Gradients:
    """dq, dk, dv and dbias in float64; out and softmax_lse are computed anew."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64, device=x.device) for x in (q, k, v))
    call, bias = AttentionCall(*given[:-2]), given[0] if given[-1] else None
    dbias = torch.zeros((0,) if bias is None else bias.shape, dtype=torch.float64, device=q.device)
    for number, (at_q, at_k, h, h_k, scores, factor) in enumerate(_heads(q, k, call)):
        p, _ = _softmax(scores)
        do = dout[at_q][:, h].double()
        dv[at_k][:, h_k] += (p * factor).T @ do
        dp = (do @ v[at_k][:, h_k].double().T) * factor
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        if bias is not None:
            of_b, of_h = number // q.shape[-2] if bias.shape[0] > 1 else 0, h if bias.shape[1] > 1 else 0
            into = dbias[of_b, of_h, : ds.shape[0], : ds.shape[1]]
            into += ds.sum_to_size(into.shape)
        ds = ds * call.softmax_scale
        dq[at_q][:, h] = ds @ k[at_k][:, h_k].double()
        dk[at_k][:, h_k] += ds.T @ q[at_q][:, h].double()
    return Gradients(dq, dk, dv, dbias)
