"""Attention: the autograd Function over the op, and the functions that users and the model layer call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention as _torch_attention

from ..ops.attention import ATTENTION, differentiable_forward, worth_slicing
from ..ops.registry import forced_backend, new_rng_state
from .eligibility import refuse_if_forced, uncovered

_fwd = torch.ops.fasttx.attention_fwd.default
_bwd = torch.ops.fasttx.attention_bwd.default

_PLAIN = frozenset({Tensor, torch.nn.Parameter, torch._subclasses.FakeTensor})
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALL = 80_000
"""Scores of a call with dropout below which torch's own composition is faster on a CPU."""
_kernel_for: dict[tuple[Any, ...], bool] = {}
_deterministic: bool | None = None


@contextlib.contextmanager
def deterministic_gradients(wanted: bool | None) -> Iterator[None]:
    """Attention called within has bitwise reproducible gradients (True) or need not (False), whenever backward runs.

    None leaves it to torch.are_deterministic_algorithms_enabled() at the time of backward, as outside of the block.
    """
    global _deterministic
    before, _deterministic = _deterministic, wanted
    try:
        yield
    finally:
        _deterministic = before


class AttentionFunction(torch.autograd.Function):
    """The op with its gradient; the arguments of ``fasttx::attention_fwd``, then whether softmax_lse is returned too.

    Saved for backward: q, k, v, out, softmax_lse and the tensors among the arguments; nothing of size seqlen_q x
    seqlen_k.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None,
        cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float, dropout_p: float, window_left: int, window_right: int,
        return_lse: bool,
    ) -> Any:  # fmt: skip
        requested = forced_backend()
        out, lse = _fwd(
            q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state, max_seqlen_q, max_seqlen_k,
            softmax_scale, dropout_p, window_left, window_right, requested,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state)
        ctx.numbers = (max_seqlen_q, max_seqlen_k, softmax_scale, dropout_p, window_left, window_right)
        ctx.requested = requested
        ctx.deterministic = _deterministic
        if not return_lse:
            return out
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 12
        if dout is None:
            return None, None, None, *nothing
        q, k, v, out, lse, *others = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(ctx, dout, q, k, v, others), *nothing
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        deterministic = torch.are_deterministic_algorithms_enabled() if ctx.deterministic is None else ctx.deterministic
        dq, dk, dv = _bwd(dout, q, k, v, out, lse, *others, *ctx.numbers, deterministic, ctx.requested)
        return dq, dk, dv, *nothing


def _differentiable_backward(ctx: Any, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, others: list[Any]) -> list[Any]:
    """The gradients as a graph of PyTorch's own operators, for create_graph=True."""
    if others[-1] is not None:
        raise RuntimeError(
            "fasttx attention: create_graph=True (double backward) with dropout_p > 0; allowed is dropout_p = 0"
        )
    q, k, v = (x.view_as(x) for x in (q, k, v))  # one tensor given twice has a gradient for each use
    wanted = [x for x, needed in zip((q, k, v), ctx.needs_input_grad, strict=False) if needed]
    out = differentiable_forward(q, k, v, *others, *ctx.numbers)
    found = iter(torch.autograd.grad(out, wanted, dout, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]


def _run(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float,
    dropout_p: float, window_left: int, window_right: int, return_lse: bool = False,
) -> Any:  # fmt: skip
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
            softmax_scale, dropout_p, window_left, window_right, return_lse,
        )  # fmt: skip
    both = _fwd(
        q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state, max_seqlen_q, max_seqlen_k,
        softmax_scale, dropout_p, window_left, window_right, forced_backend(),
    )  # fmt: skip
    return both if return_lse else both[0]


# ------------------------------------------------------------------------------------ what is ours and what is torch's


def _ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Plain tensors outside of torch.func transforms and forward AD, and a mask that needs no gradient."""
    return (
        type(q) in _PLAIN
        and type(k) in _PLAIN
        and type(v) in _PLAIN
        and not (q.is_nested or k.is_nested or v.is_nested)
        and (mask is None or (type(mask) in _PLAIN and not (mask.requires_grad and torch.is_grad_enabled())))
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def _has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """False where the op would only compose PyTorch's operators on a device whose own fused attention is faster."""
    if torch.compiler.is_compiling():
        return q.device.type == "cuda" and max(q.shape[-1], v.shape[-1]) <= 256
    key = (q.device, q.dtype, q.shape[-1], v.shape[-1])
    found = _kernel_for.get(key)
    if found is None:
        found = _kernel_for[key] = ATTENTION.pick("auto", q, k, v) is not None
    return found


def _cpu_gains(q: Tensor, keys: int, mask: Tensor | None, dropout_p: float) -> bool:
    """False where torch's own function is as fast on a CPU: it runs the very kernel that the op would run (no
    dropout, few masked keys), or the call is so small that the op's fixed cost decides."""
    if dropout_p > 0.0:
        return torch.compiler.is_compiling() or q.numel() // q.shape[-1] * keys >= _SMALL
    if mask is None or mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
        return False
    if torch.compiler.is_compiling():
        return True
    return worth_slicing(mask.numel() - int(mask.count_nonzero()), mask.shape[0], q.shape[-1])


def _last_dim_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


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


# ---------------------------------------------------------------------------------------------- the public functions


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
    r"""out = dropout(softmax(scale * query key^T + attn_mask)) value, as torch.nn.functional's function of this name.

    Args:
        query: (..., heads, L, E), also (heads, L, E) and (L, E); float32, float16 or bfloat16 for our kernels; any
            strides.
        key: (..., heads, S, E).
        value: (..., heads, S, Ev).
        attn_mask: broadcastable to (..., heads, L, S); bool (True takes part) or floating, added to the scaled scores.
        dropout_p: probability of dropping a weight, whatever the caller's training flag; in steps of 1/256.
        is_causal: query i sees keys j <= i (aligned at the top left).
        scale: default 1 / sqrt(E).
        enable_gqa: key and value may have fewer heads, a divisor of query's; head h of query uses head h // (ratio).

    Returns:
        (..., heads, L, Ev).  A fully masked row gives zeros.

    Raises:
        What torch raises: every call that is wrong, and every one outside of our kernels (float64, a mask that needs a
        gradient, tensor subclasses, torch.func transforms, forward AD, empty tensors, broadcast batches, is_causal
        with attn_mask), goes to torch's own function.  BackendError where a backend is forced that cannot run it.

    Saved for backward: query, key, value, the output and one float per row.  Double backward is supported without
    dropout.
    Numerics: fp32 scores, softmax and accumulation.  Under autocast everything floating is cast to its dtype first.
    Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.1; Dao, "FlashAttention-2", 2023.
    """
    q, k, v, mask = query, key, value, attn_mask
    if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor) and _ours(q, k, v, mask):
        dtype = _autocast_dtype(q)
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
        out = _padded(q, k, v, mask, query, dropout_p, is_causal, scale, enable_gqa)
        if out is not None:
            return out if dims == 4 else out.reshape(*query.shape[:-1], value.shape[-1])
    out = _torch_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    refuse_if_forced("scaled_dot_product_attention", _why_torch(query, key, value, attn_mask), query)
    return out


def _why_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """The reason for a user who has forced a backend, and for whom torch's function ran."""
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "the mask requires a gradient"
    return uncovered(q, k, v, mask) or "its shapes, dtypes, scale or dropout_p are not the kernels'"


def _padded(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, query: Tensor, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor | None:  # fmt: skip
    """(batch, heads, L, Ev) from (batch, heads, L, E); None where the call is torch's."""
    q_shape, k_shape, v_shape, dtype, device = q.shape, k.shape, v.shape, q.dtype, q.device
    if len(q_shape) != 4 or len(k_shape) != 4 or len(v_shape) != 4:
        return None
    batch, heads, rows, head_dim = q_shape
    heads_k, keys = k_shape[1], k_shape[2]
    if (
        dtype not in _DTYPES
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
        or not 0.0 <= dropout_p < 1.0
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
    elif not math.isfinite(scale):
        return None
    if forced_backend() == "auto" and not (
        _has_kernel(q, k, v) if device.type != "cpu" else _cpu_gains(q, keys, mask, dropout_p)
    ):
        return None
    out = _run(
        _last_dim_contiguous(q).transpose(1, 2),
        _last_dim_contiguous(k).transpose(1, 2),
        _last_dim_contiguous(v).transpose(1, 2),
        mask, None, None, None, None, rows, keys, scale, dropout_p, -1, 0 if is_causal else -1,
    )  # fmt: skip
    return out.transpose(1, 2)


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
    r"""out = dropout(softmax(scale * query key^T + attn_bias)) value within each of several packed sequences.

    Args:
        query: (total_q, heads, head_dim), float32, float16 or bfloat16.
        key: (total_k, heads_k, head_dim), heads a multiple of heads_k.
        value: (total_k, heads_k, head_dim_v).
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,), where each sequence starts: from 0 to the number of tokens.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        dropout_p: in [0, 1), in steps of 1/256.  The mask depends on (sequence, head, row, column), not on the packing.
        is_causal: query i of a sequence sees keys j <= i + seqlen_k - seqlen_q (aligned at the bottom right).
        scale: default 1 / sqrt(head_dim).
        attn_bias: bool or floating, (batch, heads, max_seqlen_q, max_seqlen_k) or 1 in any dim, indexed within each
            sequence; gets no gradient.
        window_size: (left, right), keys visible on each side of the diagonal; -1 is unlimited.
        rng_state: int64 (2,), (seed, offset), to draw a given dropout mask; by default a new one.
        return_lse: also return softmax_lse, float32 (heads, total_q), which gets no gradient.

    Returns:
        (total_q, heads, head_dim_v), or (out, softmax_lse).  A row that sees no key gives zeros, and -inf.

    Raises:
        ValueError: an argument is not as above; the message names it.  Values of cu_seqlens are checked on CPU
            tensors, and on GPU tensors with FASTTX_CHECK=1.

    Saved for backward: query, key, value, out, softmax_lse.  Numerics and source: as scaled_dot_product_attention.
    """
    if attn_bias is not None and attn_bias.requires_grad and torch.is_grad_enabled():
        raise ValueError("attention_varlen: attn_bias requires a gradient; allowed is a bias without (detach it)")
    if window_size is not None and len(window_size) != 2:
        raise ValueError(f"attention_varlen: window_size is {window_size}; allowed is (left, right) or None")
    left, right = (-1, -1) if window_size is None else window_size
    dtype = _autocast_dtype(query)
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if scale is None:
        scale = max(query.shape[-1], 1) ** -0.5
    return _run(
        _last_dim_contiguous(query), _last_dim_contiguous(key), _last_dim_contiguous(value), attn_bias, None,
        cu_seqlens_q,
        cu_seqlens_k, rng_state if dropout_p else None, max_seqlen_q, max_seqlen_k, scale, dropout_p, left,
        0 if is_causal else right, return_lse,
    )  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_bias: Tensor | None = None,
    seqused_k: Tensor | None = None,
    dropout_p: float = 0.0,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
) -> Tensor:
    """What the model layer calls: (batch, seqlen, heads, head_dim) in and out, by strides, no copies.

    Args:
        q, k, v: (batch, seqlen_q, heads, head_dim), (batch, seqlen_k, heads_k, head_dim), (batch, seqlen_k, heads_k,
            head_dim_v).
        attn_bias: bool or floating, (batch, heads, seqlen_q, seqlen_k) or 1 in any dim.
        seqused_k: int32 (batch,), valid keys of each sequence.
        dropout_p, window, softmax_scale: as attention_varlen's dropout_p, window_size and scale; aligned at the top
            left.

    Returns:
        (batch, seqlen_q, heads, head_dim_v), contiguous.

    Raises:
        ValueError: an argument is not as above.

    float64, subclasses, torch.func transforms, forward AD and a bias that needs a gradient go to torch's own function,
    and raise BackendError where a backend is forced.
    """
    dtype = _autocast_dtype(q)
    if dtype is not None and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if q.dtype not in _DTYPES or not _ours(q, k, v, attn_bias):
        out = _by_torch(q, k, v, attn_bias, seqused_k, dropout_p, window, scale)
        refuse_if_forced("attention", _why_torch(q, k, v, attn_bias), q)
        return out
    if (
        q.device.type == "cpu"
        and seqused_k is None
        and 0.0 <= dropout_p < 1.0
        and window[0] < 0
        and window[1] <= 0
        and forced_backend() == "auto"
        and k.shape[2] == q.shape[2]
        and (attn_bias is None or attn_bias.dtype == torch.bool or attn_bias.dtype == q.dtype)
        and not (attn_bias is not None and window[1] == 0)
        and not _cpu_gains(q, k.shape[1], attn_bias, dropout_p)
    ):
        out = _torch_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias, dropout_p, window[1] == 0, scale=scale
        )
        return out.transpose(1, 2).contiguous()
    return _run(
        _last_dim_contiguous(q), _last_dim_contiguous(k), _last_dim_contiguous(v), attn_bias, seqused_k, None, None,
        None,
        q.shape[1], k.shape[1], scale, dropout_p, *window,
    )  # fmt: skip


def _by_torch(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, dropout_p: float,
    window: tuple[int, int], scale: float,
) -> Tensor:  # fmt: skip
    """The same by torch's function, lengths, window and bias as one mask."""
    distance = torch.arange(k.shape[1], device=q.device) - torch.arange(q.shape[1], device=q.device)[:, None]
    seen: Tensor | None = None
    if window[0] >= 0:
        seen = distance >= -window[0]
    if window[1] >= 0:
        seen = distance <= window[1] if seen is None else seen & (distance <= window[1])
    if seqused_k is not None:
        used = torch.arange(k.shape[1], device=q.device) < seqused_k[:, None, None, None]
        seen = used if seen is None else seen & used
    mask = attn_bias
    if mask is None:
        mask = seen
    elif mask.dtype == torch.bool:
        mask = mask if seen is None else mask & seen
    else:
        mask = mask.to(q.dtype) if seen is None else mask.to(q.dtype).masked_fill(~seen, float("-inf"))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return _torch_attention(q, k, v, mask, dropout_p, scale=scale, enable_gqa=grouped).transpose(1, 2).contiguous()
