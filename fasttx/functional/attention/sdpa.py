"""The attention functions for users: torch.nn.functional's, and the one for packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.attention.call import AttentionCall
from ...ops.backends import forced_backend
from ...ops.checks import FLOATS, NUMBERS
from .._routing import refuse_if_forced
from .checks import is_finite
from .layouts import UNLIKE_A_KERNELS, attention_packed
from .routes import attend, unsupported_attention
from .torch_fn import autocast_dtype, torch_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """out = dropout(softmax(scale * query key^T + attn_mask)) value; torch.nn.functional's function of this name.

    Args:
        query: (..., heads, L, E), (heads, L, E) or (L, E), with any strides. The kernels take float32, float16 and
            bfloat16.
        key: (..., heads, S, E).
        value: (..., heads, S, Ev).
        attn_mask: broadcastable to (..., heads, L, S); bool (True takes part) or floating, added to the scaled scores.
        dropout_p: probability of dropping a weight, in steps of 1/256. There is no `training`: pass 0.0 in evaluation.
        is_causal: query i sees keys j <= i (aligned at the top left).
        scale: 1 / sqrt(E) by default.
        enable_gqa: key and value may have fewer heads, a divisor of query's. Head h of query then uses head h // ratio.

    Returns:
        (..., heads, L, Ev). A row whose keys are all masked gives zeros. Torch's function gives a mean instead where
        attn_mask holds the lowest number of its dtype for -inf.

    Raises:
        BackendError: a forced backend cannot run the call.
        Every wrong call raises torch's own error.

    Torch's own function runs wrong calls, and those that the kernels do not cover: float64, tensor subclasses,
    torch.func transforms, forward AD, empty tensors, broadcast batches, is_causal with attn_mask.

    A floating attn_mask gets a gradient, summed over what reads each of its elements: a kernel computes the scores once
    more for it, and writes none of them.

    Saved for backward: query, key, value, the output and one float per row. Gradients can be differentiated again
    (create_graph=True, torch.func). Then PyTorch's own operators run, which hold the scores of every head in memory. On
    a GPU without our kernels this works for calls that PyTorch's own function can differentiate twice.

    Numerics: scores, softmax and sums are float32. Autocast first casts everything floating to its dtype.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.1; Dao, "FlashAttention-2", 2023.
    """
    q, k, v, mask = query, key, value, attn_mask
    if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor):
        reason = unsupported_attention(q, k, v, mask)
    else:
        reason = "query, key or value is no Tensor"
    if reason is None:
        dtype = autocast_dtype(q)
        if dtype is not None and torch.float64 not in (q.dtype, k.dtype, v.dtype):
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            if mask is not None and mask.is_floating_point():
                mask = mask.to(dtype)
        dims = q.dim()
        if dims != 4 and dims >= 2 and k.dim() == v.dim() == dims:
            if dims < 4:
                q, k, v = (x[(None,) * (4 - dims)] for x in (q, k, v))
            elif q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
                q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
        call = _call_of(q, k, v, mask, query, dropout_p, is_causal, scale, enable_gqa)
        if call is not None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            out = attend("scaled_dot_product_attention", q, k, v, call, backend=forced_backend()).transpose(1, 2)
            return out if dims == 4 else out.reshape(*query.shape[:-1], value.shape[-1])
        reason = UNLIKE_A_KERNELS
    out = torch_attention(
        query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    refuse_if_forced("scaled_dot_product_attention", reason, query)
    return out


def _call_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    query: Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> AttentionCall | None:
    """What q, k, v (batch, heads, L, E) are asked; None where the call is torch's, a wrong one included."""
    q_shape, k_shape, v_shape, dtype, device = q.shape, k.shape, v.shape, q.dtype, q.device
    if len(q_shape) != 4 or len(k_shape) != 4 or len(v_shape) != 4:
        return None
    batch, heads, rows, head_dim = q_shape
    heads_k, keys = k_shape[1], k_shape[2]
    if (
        dtype not in FLOATS
        or k.dtype is not dtype
        or v.dtype is not dtype
        or k.device != device
        or v.device != device
        or k_shape[0] != batch
        or k_shape[3] != head_dim
        or v_shape[:3] != k_shape[:3]
        or (heads_k != heads and not (enable_gqa and heads_k > 0 and heads % heads_k == 0))
        or q.numel() == 0
        or v.numel() == 0
        or not (isinstance(dropout_p, NUMBERS) and 0.0 <= dropout_p < 1.0)
        or not (isinstance(is_causal, bool) and isinstance(enable_gqa, bool))
    ):
        return None
    if mask is not None:
        if is_causal or mask.device != device or mask.dtype not in (torch.bool, dtype, torch.float32):
            return None
        mask = _mask_4d(mask, tuple(query.shape[:-3]), (batch, heads, rows, keys))
        if mask is None:
            return None
    if scale is None:
        scale = head_dim**-0.5
    elif not isinstance(scale, NUMBERS) or not is_finite(scale):
        return None
    return AttentionCall(
        attn_bias=mask,
        max_seqlen_q=rows,
        max_seqlen_k=keys,
        softmax_scale=scale,
        dropout_p=dropout_p,
        window_right=0 if is_causal else -1,
    )


def _mask_4d(mask: Tensor, lead: tuple[int, ...], full: tuple[int, ...]) -> Tensor | None:
    """A mask of (*lead, heads, rows, keys) by broadcasting as (batch, heads, rows, keys) with ones, or None."""
    dims = mask.dim()
    if dims < 2:
        return None
    if dims > 4:
        if dims != len(lead) + 3 or any(n not in (1, m) for n, m in zip(mask.shape, lead, strict=False)):
            return None
        mask = mask.expand(*lead, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
    elif dims == 4 and len(lead) > 1:  # its first dim is the last of several leading ones
        if mask.shape[0] > 1:
            return None
    else:
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
    for n, m in zip(mask.shape, full, strict=True):
        if n != m and n != 1:
            return None
    return mask


def attention_varlen(
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
) -> Any:
    """out = dropout(softmax(scale * query key^T + attn_bias)) value, within each of several packed sequences.

    Args:
        query: (total_q, heads, head_dim), in float32, float16 or bfloat16.
        key: (total_k, heads_k, head_dim), where heads is a multiple of heads_k.
        value: (total_k, heads_k, head_dim_v).
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,), where each sequence starts: ascending from 0 to at most the
            number of tokens. Tokens after the last sequence belong to none.
        max_seqlen_q, max_seqlen_k: at least the length of the longest sequence.
        dropout_p: in [0, 1), in steps of 1/256. The mask depends on (sequence, head, row, column), not on the packing.
        is_causal: query i of a sequence sees keys j <= i + seqlen_k - seqlen_q (aligned at the bottom right).
        scale: 1 / sqrt(head_dim) by default.
        attn_bias: bool or floating, (batch, heads, max_seqlen_q, max_seqlen_k) or 1 in any dim, indexed within each
            sequence. A floating one gets a gradient, summed over what reads each of its elements.
        window_size: (left, right), the keys that are visible on each side of the diagonal; -1 is unlimited.
        rng_state: int64 (2,), the (seed, offset) of the dropout mask. None draws a new one.
        return_lse: also return softmax_lse, float32 (heads, total_q), which gets no gradient.

    Returns:
        (total_q, heads, head_dim_v), or (out, softmax_lse). A row that sees no key, or belongs to no sequence, gives
        zeros, and -inf in softmax_lse.

    Raises:
        ValueError: an argument is not as above. The message names it. Values of cu_seqlens are checked on a CPU, and on
            a GPU with FASTTX_CHECK=1.
        TypeError: an argument has another type. So does a max_seqlen in a tensor, for whose value the host would wait.
        BackendError: a forced backend cannot run the call.

    Saved for backward: query, key, value, out and softmax_lse.

    Numerics and source: as for :func:`scaled_dot_product_attention`.
    """
    return attention_packed(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        attn_bias=attn_bias,
        window_size=window_size,
        rng_state=rng_state,
        return_lse=return_lse,
    )
