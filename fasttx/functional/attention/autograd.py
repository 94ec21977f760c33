"""Autograd over the attention op, and the call that records it only where a gradient is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention.double_backward import differentiable_forward
from ...ops.attention.op import MAX_TOKEN_STRIDE
from ...ops.dropout.state import new_rng_state

_fwd = torch.ops.fasttx.attention_fwd.default
_bwd = torch.ops.fasttx.attention_bwd.default


class AttentionFunction(torch.autograd.Function):
    """The op with its gradient; the arguments of ``fasttx::attention_fwd``; ``deterministic``; ``return_lse``.

    deterministic=None leaves it to torch.are_deterministic_algorithms_enabled() at the time of backward.

    Saved for backward: q, k, v, out, softmax_lse and the tensors among the arguments; nothing of size seqlen_q x
    seqlen_k.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None,
        cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float, dropout_p: float, window_left: int, window_right: int, backend: str,
        deterministic: bool | None, return_lse: bool,
    ) -> Any:  # fmt: skip
        out, lse = _fwd(
            q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state, max_seqlen_q, max_seqlen_k,
            softmax_scale, dropout_p, window_left, window_right, backend,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state)
        ctx.numbers = (max_seqlen_q, max_seqlen_k, softmax_scale, dropout_p, window_left, window_right)
        ctx.backend = backend
        ctx.deterministic = deterministic
        if not return_lse:
            return out
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 14
        if dout is None:
            return None, None, None, *nothing
        q, k, v, out, lse, *others = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(ctx, dout, q, k, v, others), *nothing
        if dout.stride(-1) != 1 or dout.stride(-3) > MAX_TOKEN_STRIDE:
            dout = dout.contiguous()
        deterministic = torch.are_deterministic_algorithms_enabled() if ctx.deterministic is None else ctx.deterministic
        dq, dk, dv = _bwd(dout, q, k, v, out, lse, *others, *ctx.numbers, deterministic, ctx.backend)
        return dq, dk, dv, *nothing


def _differentiable_backward(ctx: Any, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, others: list[Any]) -> list[Any]:
    """The gradients as a graph of PyTorch's own operators, for create_graph=True."""
    q, k, v = (x.view_as(x) for x in (q, k, v))  # one tensor given twice has a gradient for each use
    wanted = [x for x, needed in zip((q, k, v), ctx.needs_input_grad, strict=False) if needed]
    out = differentiable_forward(ctx.backend, q, k, v, *others, *ctx.numbers)
    found = iter(torch.autograd.grad(out, wanted, dout, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]


def run_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float,
    dropout_p: float, window_left: int, window_right: int, *, backend: str, deterministic: bool | None = None,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    """The op, with dropout drawn from a new state unless one is given; out, or (out, softmax_lse)."""
    if attn_bias is not None and max(attn_bias.stride()[-2:]) > MAX_TOKEN_STRIDE // 2:  # their offsets are added up
        attn_bias = attn_bias.contiguous()
    if rng_state is None and dropout_p > 0.0:
        rng_state = new_rng_state(q.device)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        if torch.compiler.is_compiling():  # dynamo cannot trace a Function that gets one tensor twice
            if v is q or v is k:
                v = v.view_as(v)
            if k is q:
                k = k.view_as(k)
            if cu_seqlens_k is not None and cu_seqlens_k is cu_seqlens_q:
                cu_seqlens_k = cu_seqlens_k.view_as(cu_seqlens_k)
        return AttentionFunction.apply(
            q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state, max_seqlen_q, max_seqlen_k,
            softmax_scale, dropout_p, window_left, window_right, backend, deterministic, return_lse,
        )  # fmt: skip
    both = _fwd(
        q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state, max_seqlen_q, max_seqlen_k,
        softmax_scale, dropout_p, window_left, window_right, backend,
    )  # fmt: skip
    return both if return_lse else both[0]
