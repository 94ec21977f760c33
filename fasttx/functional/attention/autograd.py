"""Autograd over the attention op, and the call that records it only where a gradient is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention import composed
from ...ops.attention.call import AttentionCall
from ...ops.attention.double_backward import differentiable_forward
from ...ops.attention.op import ATTENTION, MAX_TOKEN_STRIDE
from ...ops.dropout.state import new_rng_state
from ...ops.exporting import called, called_backward
from .._routing import aliases, applied, records_gradients

_fwd = called(ATTENTION, composed.forward)  # the composition for a CPU reads lengths
_bwd = called_backward(ATTENTION)
_TENSORS = 5
"""How many of an AttentionCall's members are tensors or None; they come first."""


class AttentionFunction(torch.autograd.Function):
    """The op with its gradients, of q, k, v and the call's attn_bias.

    Arguments: q, k, v, the members of an AttentionCall, backend, deterministic, return_lse.

    deterministic=None leaves it to torch.are_deterministic_algorithms_enabled() at the time of backward.

    Saved for backward: q, k, v, out, softmax_lse and the call's tensors; nothing of size seqlen_q x seqlen_k.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> Any:
        *call, backend, deterministic, return_lse = given
        out, lse = _fwd(q, k, v, *call, backend)
        ctx.save_for_backward(q, k, v, out, lse, *call[:_TENSORS])
        ctx.numbers = tuple(call[_TENSORS:])
        ctx.backend = backend
        ctx.deterministic = deterministic
        if not return_lse:
            return out
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 13
        if dout is None:
            return None, None, None, None, *nothing
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(ctx, dout, q, k, v, AttentionCall(*tensors, *ctx.numbers)), *nothing
        if dout.stride(-1) != 1 or dout.stride(-3) > MAX_TOKEN_STRIDE:
            dout = dout.contiguous()
        deterministic = torch.are_deterministic_algorithms_enabled() if ctx.deterministic is None else ctx.deterministic
        needs_dbias = ctx.needs_input_grad[3]
        dq, dk, dv, dbias = _bwd(
            dout, q, k, v, out, lse, *tensors, *ctx.numbers, deterministic, needs_dbias, ctx.backend
        )
        return dq, dk, dv, dbias if needs_dbias else None, *nothing


_record = applied(AttentionFunction)


def _differentiable_backward(
    ctx: Any, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> list[Tensor | None]:
    """The gradients as a graph of PyTorch's own operators, for create_graph=True."""
    needs = ctx.needs_input_grad[:4]
    q, k, v, attn_bias = inputs = aliases(q, k, v, call.attn_bias)
    wanted = [x for x, needed in zip(inputs, needs, strict=True) if needed]
    out = differentiable_forward(ctx.backend, q, k, v, call._replace(attn_bias=attn_bias))
    found = iter(torch.autograd.grad(out, wanted, dout, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def last_dim_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def run_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    *,
    backend: str,
    deterministic: bool | None = None,
    return_lse: bool = False,
) -> Any:
    """The op, with dropout drawn from a new state unless one is given; out, or (out, softmax_lse)."""
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        q, k, v = last_dim_contiguous(q), last_dim_contiguous(k), last_dim_contiguous(v)
    bias = call.attn_bias
    if bias is not None and max(bias.stride()[-2:]) > MAX_TOKEN_STRIDE // 2:  # their offsets are added up
        call = call._replace(attn_bias=bias.contiguous())
    if call.rng_state is None and call.dropout_p > 0.0:
        call = call._replace(rng_state=new_rng_state(q.device))
    if records_gradients(q, k, v, call.attn_bias):
        if torch.compiler.is_dynamo_compiling():  # which cannot trace a Function that gets one tensor twice
            if v is q or v is k:
                v = v.view_as(v)
            if k is q:
                k = k.view_as(k)
            starts_k = call.cu_seqlens_k
            if starts_k is not None and starts_k is call.cu_seqlens_q:
                call = call._replace(cu_seqlens_k=starts_k.view_as(starts_k))
        return _record(q, k, v, *call, backend, deterministic, return_lse)
    both = _fwd(q, k, v, *call, backend)
    return both if return_lse else both[0]
