"""Attention over padded and over packed sequences, as the model layer calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention.masks import with_infinities
from ...ops.attention.op import ATTENTION
from ...ops.backends import forced_backend
from ...ops.checks import FLOATS
from ...ops.decisions import note
from .._routing import OWN, refuse_if_forced
from .autograd import run_attention
from .checks import check_flags, check_tensors, checked_numbers
from .routes import (
    NO_GAIN,
    NO_KERNEL,
    autocast_dtype,
    by_torch,
    cpu_gains,
    has_kernel,
    hides_nothing,
    last_dim_contiguous,
    ours,
    torch_attention,
    why_torch,
)


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
        attn_bias: bool or floating, (batch, heads, seqlen_q, seqlen_k) or 1 in any dim.
        seqused_k: int32 (batch,), valid keys of each sequence.
        dropout_p, window, softmax_scale: as attention_varlen's dropout_p, window_size and scale; aligned at the top
            left.
        backend: what this call is forced to; None stands for what is in force in the process.
        deterministic: whether the gradients must be bitwise reproducible; None leaves it to PyTorch's own setting.

    Returns:
        (batch, seqlen_q, heads, head_dim_v), contiguous.

    Raises:
        ValueError: an argument is not as above.  TypeError: a tensor is none; q, k, v and attn_bias in torch's words.

    float64, subclasses, torch.func transforms, forward AD and a bias that needs a gradient go to torch's own function,
    and raise BackendError where a backend is forced.  On a device without a kernel every call goes there, as torch's
    fused attention is faster than the op's composition; but not with deterministic=True, which it does not promise.
    """
    backend = backend or forced_backend()
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return torch_attention(q, k, v)  # which says what is wrong
    if attn_bias is not None and not isinstance(attn_bias, Tensor):
        return torch_attention(q, k, v, attn_mask=attn_bias)
    if seqused_k is not None and not isinstance(seqused_k, Tensor):
        raise TypeError(f"attention: seqused_k is a {type(seqused_k).__name__}; allowed is a Tensor or None")
    dtype = autocast_dtype(q)
    if dtype is not None and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if q.dtype not in FLOATS or not ours(q, k, v, attn_bias):
        out = by_torch(q, k, v, attn_bias, seqused_k, dropout_p, window, scale)
        refuse_if_forced("attention", why_torch(q, k, v, attn_bias), q, backend)
        return out
    if (
        q.device.type == "cpu"
        and seqused_k is None
        and 0.0 <= dropout_p < 1.0
        and window[0] < 0
        and window[1] <= 0
        and backend == "auto"
        and k.shape[2] == q.shape[2]
        and (attn_bias is None or attn_bias.dtype == torch.bool or attn_bias.dtype == q.dtype)
        and not (attn_bias is not None and window[1] == 0)
        and not cpu_gains(q, k.shape[1], attn_bias, dropout_p)
    ):
        note("attention", OWN, NO_GAIN)
        mask = attn_bias if attn_bias is None or attn_bias.dtype == torch.bool else with_infinities(attn_bias)
        if mask is not None and hides_nothing(mask):
            mask = None  # torch's kernel would add a zero to every score
        out = torch_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, dropout_p, window[1] == 0, scale=scale
        )
        return out.transpose(1, 2).contiguous()
    if q.device.type != "cpu" and backend == "auto" and deterministic is not True and not has_kernel(q, k, v):
        if not torch.compiler.is_compiling():
            drawn_elsewhere = 0.0 if 0.0 <= dropout_p < 1.0 else dropout_p
            ATTENTION.fwd.check(
                last_dim_contiguous(q), last_dim_contiguous(k), last_dim_contiguous(v), attn_bias, seqused_k, None,
                None, None, q.shape[1], k.shape[1], scale, drawn_elsewhere, *window,
            )  # fmt: skip
        note("attention", OWN, NO_KERNEL)
        return by_torch(q, k, v, attn_bias, seqused_k, dropout_p, window, scale)
    return run_attention(
        last_dim_contiguous(q), last_dim_contiguous(k), last_dim_contiguous(v), attn_bias, seqused_k, None, None,
        None, q.shape[1], k.shape[1], scale, dropout_p, *window, backend=backend, deterministic=deterministic,
    )  # fmt: skip


def attention_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, *, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    attn_bias: Tensor | None = None, window_size: tuple[int, int] | None = None, rng_state: Tensor | None = None,
    return_lse: bool = False, backend: str | None = None, deterministic: bool | None = None,
) -> Any:  # fmt: skip
    """attention_varlen with its arguments; backend and deterministic as of attention_padded."""
    check_tensors(query, key, value, cu_seqlens_q, cu_seqlens_k, attn_bias, rng_state)
    check_flags(is_causal=is_causal, return_lse=return_lse)
    max_seqlen_q, max_seqlen_k, left, right = checked_numbers(max_seqlen_q, max_seqlen_k, dropout_p, scale, window_size)
    dtype = autocast_dtype(query)
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    return run_attention(
        last_dim_contiguous(query), last_dim_contiguous(key), last_dim_contiguous(value), attn_bias, None,
        cu_seqlens_q, cu_seqlens_k, rng_state if dropout_p else None, max_seqlen_q, max_seqlen_k, scale, dropout_p,
        left, 0 if is_causal else right, backend=backend or forced_backend(), deterministic=deterministic,
        return_lse=return_lse,
    )  # fmt: skip
