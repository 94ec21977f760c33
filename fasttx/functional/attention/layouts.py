"""Attention over padded and over packed sequences, as the model layer calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention import composed
from ...ops.attention.call import AttentionCall
from ...ops.attention.checks import Words, check_fwd
from ...ops.backends import forced_backend
from ...ops.checks import FLOATS, described, wrong
from ...ops.dropout.state import new_rng_state
from .._routing import derivatives_active, refuse_if_forced, unsupported_reason
from .autograd import run_attention
from .checks import check_flags, check_tensors, checked_numbers
from .routes import attend, unsupported_attention
from .torch_fn import autocast_dtype, call_torch, torch_attention

UNLIKE_A_KERNELS = "its shapes, dtypes, scale or dropout_p are not the kernels'"
_VARLEN = Words("attention_varlen", "query", "key", "value", "scale", "window_size")


def attention_padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_bias: Tensor | None = None,
    seqused_k: Tensor | None = None,
    dropout_p: float = 0.0,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Tensor:
    """What the model layer calls: (batch, seqlen, heads, head_dim) in and out, by strides, no copies.

    Args:
        q, k, v: (batch, seqlen_q, heads, head_dim), (batch, seqlen_k, heads_k, head_dim), (batch, seqlen_k, heads_k,
            head_dim_v).
        attn_bias: bool or floating, (batch, heads, seqlen_q, seqlen_k) or 1 in any dim. A floating one gets a gradient.
        seqused_k: int32 (batch,), valid keys of each sequence.
        dropout_p, window, softmax_scale: as attention_varlen's dropout_p, window_size and scale; aligned at the top
            left.
        backend: what this call is forced to; None stands for what is in force in the process.
        deterministic: whether the gradients must be bitwise reproducible; None leaves it to PyTorch's own setting.

    Returns:
        (batch, seqlen_q, heads, head_dim_v), contiguous.

    Raises:
        ValueError: an argument is not as above.  TypeError: a tensor is none; q, k, v and attn_bias in torch's words.

    float64, subclasses, torch.func transforms and forward AD go to torch's own function, and raise BackendError where a
    backend is forced.  On a device without a kernel every call goes there, as torch's fused attention is faster than
    the op's composition; but not with deterministic=True, which it does not promise.
    """
    backend = backend or forced_backend()
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return torch_attention(q, k, v)  # which says what is wrong
    if attn_bias is not None and not isinstance(attn_bias, Tensor):
        return torch_attention(q, k, v, attn_mask=attn_bias)
    if seqused_k is not None and not isinstance(seqused_k, Tensor):
        raise TypeError(wrong("attention: seqused_k", described(seqused_k), "a Tensor or None"))
    dtype = autocast_dtype(q)
    if dtype is not None and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    call = AttentionCall(
        attn_bias=attn_bias,
        seqused_k=seqused_k,
        max_seqlen_q=q.shape[1],
        max_seqlen_k=k.shape[1],
        softmax_scale=q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale,
        dropout_p=dropout_p,
        window_left=window[0],
        window_right=window[1],
    )
    reason = unsupported_attention(q, k, v, attn_bias)
    if reason is None and q.dtype not in FLOATS:
        reason = UNLIKE_A_KERNELS
    if reason is None:
        return attend("attention", q, k, v, call, backend=backend, deterministic=deterministic).contiguous()
    out = call_torch(q, k, v, call).contiguous()
    refuse_if_forced("attention", reason, q, backend)
    return out


def attention_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    attn_bias: Tensor | None = None,
    window_size: tuple[int, int] | None = None,
    rng_state: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
    sure: bool = False,
) -> Any:
    """attention_varlen with its arguments; backend and deterministic as of attention_padded.

    `sure` says that a module of transformers' calls, whose types and numbers need no check: that of the op follows.
    """
    if sure and window_size is not None:
        left, right = window_size
    else:
        check_tensors(query, key, value, cu_seqlens_q, cu_seqlens_k, attn_bias, rng_state)
        check_flags(is_causal=is_causal, return_lse=return_lse)
        max_seqlen_q, max_seqlen_k, left, right = checked_numbers(
            max_seqlen_q, max_seqlen_k, dropout_p, scale, window_size
        )
    dtype = autocast_dtype(query)
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if sure and 0.0 < dropout_p < 1.0:
        rng_state = new_rng_state(query.device)
    call = AttentionCall(
        attn_bias=attn_bias,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        rng_state=rng_state if dropout_p else None,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=max(query.shape[-1], 1) ** -0.5 if scale is None else scale,
        dropout_p=dropout_p,
        window_left=left,
        window_right=0 if is_causal else right,
    )
    backend = backend or forced_backend()
    if derivatives_active():
        return _composed(query, key, value, call, return_lse, backend)
    options: dict[str, Any] = {"backend": backend, "deterministic": deterministic, "return_lse": return_lse}
    try:
        return run_attention(query, key, value, call, **options)
    except ValueError:
        _raise_in_its_words(query, key, value, call)
        raise


def _composed(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, return_lse: bool, backend: str) -> Any:
    """Within torch.func transforms and forward AD, for which the operators have no rule: PyTorch's own throughout."""
    if call.dropout_p > 0.0 and call.rng_state is None:
        call = call._replace(rng_state=new_rng_state(query.device))
    check_fwd(query, key, value, *call, words=_VARLEN)
    both = composed.forward(query, key, value, *call)
    refuse_if_forced("attention_varlen", str(unsupported_reason()), query, backend)
    return both if return_lse else both[0]


def _raise_in_its_words(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> None:
    """What the operator has found wrong, in the words of attention_varlen."""
    if call.dropout_p > 0.0 and call.rng_state is None:
        call = call._replace(dropout_p=0.0)  # the state is drawn below
    try:
        check_fwd(query, key, value, *call, words=_VARLEN)
    except ValueError as problem:
        raise problem from None
