"""Launchers of the attention op in CUDA C++ (csrc/attention): contract as in kernels/attention.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..dropout.attention import dropout_threshold
from .call import AttentionCall

_FAR = 1 << 29
"""kNoWindow of csrc/attention/attention.h."""


BY_CALL = 0
"""The forward's kernel is that of csrc/attention/attention_choice.h: on sm_90 the one of wgmma and TMA where it can run
the call, else the one of mma.sync."""
FORM = BY_CALL
"""Or 90 or 80, one of the two alone: for tests, and to compare them."""


def strides(x: Tensor, packed: bool) -> tuple[int, ...]:
    """(batch, token, head) strides; a packed tensor has no batch."""
    return (0, *x.stride()[:2]) if packed else x.stride()[:3]


def _far(distance: int) -> int:
    return min(distance, _FAR) if distance >= 0 else _FAR


def shape(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> dict[str, Any]:
    """The struct AttentionShape."""
    bias, starts = call.attn_bias, call.starts
    return {
        "batch": q.shape[0] if starts is None else starts[0].shape[0] - 1,
        "num_heads": q.shape[-2],
        "num_heads_k": k.shape[-2],
        "head_dim": q.shape[-1],
        "head_dim_v": v.shape[-1],
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "total_q": q.shape[0] if starts is not None else q.shape[0] * q.shape[1],
        "total_k": k.shape[0] if starts is not None else k.shape[0] * k.shape[1],
        "seqused_k": call.seqused_k,
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "attn_bias": bias,
        "bias_dtype": torch.bool if bias is None else bias.dtype,
        "bias_strides": (0,) * 4
        if bias is None
        else tuple(0 if size == 1 else stride for size, stride in zip(bias.shape, bias.stride(), strict=True)),
        "window_left": _far(call.window_left),
        "window_right": _far(call.window_right),
        "softmax_scale": call.softmax_scale,
        "rng_state": call.rng_state,
        "threshold": dropout_threshold(call.dropout_p),
    }


def attention_fwd(out: Tensor, softmax_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> None:
    """Writes out and softmax_lse; arguments as of the op (fasttx/ops/attention/op.py)."""
    call = AttentionCall(*given)
    packed = call.starts is not None
    of_call = shape(q, k, v, call)
    if 0 in (of_call["batch"], of_call["num_heads"], call.max_seqlen_q):
        out.zero_()
        softmax_lse.fill_(float("-inf"))
        return
    launch(
        "attention_fwd",
        out=out,
        softmax_lse=softmax_lse,
        q=q,
        k=k,
        v=v,
        q_strides=strides(q, packed),
        k_strides=strides(k, packed),
        v_strides=strides(v, packed),
        dtype=q.dtype,
        form=FORM,
        shape=of_call,
    )


STAT_ROWS = 64
"""kStatRows of csrc/attention/bwd_sm80.cuh."""


def attention_bwd(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    *given: Any,
) -> None:
    """Writes dq, dk, dv and, where it is asked for, dbias; arguments as of the op.

    The bits are the same every time, whether that is asked for or not.
    """
    call, needs_dbias = AttentionCall(*given[:-2]), given[-1]
    packed = call.starts is not None
    of_call = shape(q, k, v, call)
    if 0 in (of_call["batch"], of_call["num_heads"], call.max_seqlen_q):
        for grad in (dq, dk, dv, dbias):
            grad.zero_()
        return
    if needs_dbias and (dbias.shape[3] == 1 or dbias.numel() == 0):  # one number added to a whole row changes nothing
        dbias.zero_()
        needs_dbias = False
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    if packed:
        blocks = of_call["num_heads"] * (q.shape[0] // STAT_ROWS + of_call["batch"])
    else:
        blocks = of_call["num_heads"] * of_call["batch"] * -(-call.max_seqlen_q // STAT_ROWS)
    launch(
        "attention_bwd",
        dq=dq,
        dk=dk,
        dv=dv,
        dbias=dbias if needs_dbias else None,
        dbias_sizes=tuple(dbias.shape) if needs_dbias else (0,) * 4,
        workspace=torch.empty(2 * STAT_ROWS * blocks, dtype=torch.float32, device=q.device),
        dout=dout,
        q=q,
        k=k,
        v=v,
        out=out,
        softmax_lse=softmax_lse,
        dout_strides=strides(dout, packed),
        q_strides=strides(q, packed),
        k_strides=strides(k, packed),
        v_strides=strides(v, packed),
        dtype=q.dtype,
        shape=of_call,
    )
