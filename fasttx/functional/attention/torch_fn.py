"""PyTorch's own attention: its function, which on a CPU is differentiable twice here, and our calls in its form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as _torch_fn

from ...ops.attention.call import AttentionCall
from ...ops.attention.masks import with_infinities
from .._routing import PLAIN, derivatives_active

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_MATH = torch.ops.aten._scaled_dot_product_attention_math.default
_FLASH_CHOICE = torch._C._SDPBackend.FLASH_ATTENTION.value
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def _math(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, grouped: bool
) -> Tensor:
    """The same by products and a softmax, which have derivatives of every order; at least float32 inside."""
    dtype = q.dtype
    if dtype != torch.float64:
        q, k, v = q.float(), k.float(), v.float()
    mask = _additive(mask, q.dtype)
    if mask is not None:
        mask = mask.to(q.dtype)
    return _MATH(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=grouped)[0].to(dtype)


class _FlashFunction(torch.autograd.Function):
    """PyTorch's flash kernel for CPUs, whose own backward cannot be differentiated; saves what that saves."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
    ) -> Tensor:
        added = _additive(mask, q.dtype)
        out, lse = _FLASH(q, k, v, 0.0, is_causal, attn_mask=added, scale=scale)
        ctx.save_for_backward(q, k, v, out, lse, added)
        ctx.options = (is_causal, scale)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, mask = ctx.saved_tensors
        is_causal, scale = ctx.options
        if not torch.is_grad_enabled():
            grads = _FLASH_BACKWARD(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=mask, scale=scale)
            return *grads, None, None, None
        q, k, v = (x.view_as(x) for x in (q, k, v))  # one tensor given twice has a gradient for each use
        needs = ctx.needs_input_grad[:3]
        wanted = [x for x, needed in zip((q, k, v), needs, strict=True) if needed]
        out = _math(q, k, v, mask, is_causal, scale, q.shape[1] != k.shape[1])
        found = iter(torch.autograd.grad(out, wanted, dout, create_graph=True))
        return *(next(found) if needed else None for needed in needs), None, None, None


def _may_be_flash(
    q: Any, k: Any, v: Any, mask: Any, dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: Any
) -> bool:
    """Whether torch's function may give these to its flash kernel for CPUs; False of every call that is wrong."""
    if type(q) not in PLAIN or type(k) not in PLAIN or type(v) not in PLAIN or q.device.type != "cpu":
        return False
    if q.is_nested or not q.dim() == k.dim() == v.dim() == 4 or q.dtype not in _DTYPES:
        return False
    if not q.dtype == k.dtype == v.dtype or not k.device == v.device == q.device:
        return False
    (batch, heads, rows, width), (_, heads_k, keys, _) = q.shape, k.shape
    if k.shape != (batch, heads_k, keys, width) or v.shape != k.shape or not (q.numel() and k.numel()):
        return False
    flags = isinstance(is_causal, bool) and isinstance(enable_gqa, bool)
    if not (flags and isinstance(dropout_p, (int, float)) and dropout_p == 0.0):
        return False
    if heads_k != heads and not (enable_gqa and heads % heads_k == 0):
        return False
    if scale is not None and not isinstance(scale, (int, float)):
        return False
    if mask is None:
        return True
    if type(mask) not in PLAIN or is_causal or mask.device != q.device or mask.requires_grad:
        return False
    full = (batch, heads, rows, keys)
    if mask.dim() not in (2, 4) or mask.dtype not in (torch.bool, q.dtype, torch.float32):
        return False
    for n, m in zip(mask.shape[::-1], full[::-1], strict=False):
        if n not in (1, m):
            return False
    return True


def torch_attention(
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
    """torch.nn.functional.scaled_dot_product_attention, of which a CPU's flash kernel has a second derivative here.

    torch's backward of that kernel has none, nor has the kernel a forward-mode derivative.  Gradients that are to be
    differentiated again, and transforms of torch.func, take products and a softmax, which hold the scores in memory.
    """
    derived = derivatives_active()
    if (
        (derived or torch.is_grad_enabled())
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and _may_be_flash(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        and (derived or query.requires_grad or key.requires_grad or value.requires_grad)
    ):
        q, k, v, mask = query, key, value, attn_mask
        dtype = autocast_dtype(q)
        if dtype is not None and q.dtype != torch.float64:
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
        if derived:
            return _math(q, k, v, mask, is_causal, scale, enable_gqa)
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        if torch._fused_sdp_choice(q, k, v, mask, 0.0, is_causal, **options) == _FLASH_CHOICE:
            return _FlashFunction.apply(q, k, v, mask, is_causal, scale)
    return _torch_fn(
        query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def call_torch(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, flash: bool = False) -> Tensor:
    """An AttentionCall of padded q, k, v (batch, seqlen, heads, head_dim) by torch's function, as it comes out of it.

    Lengths, window and bias become one mask; a row without a key gives zeros.

    Args:
        flash: the call has no lengths, its window is none or causal, and a CPU's kernel runs it, which gives such rows
            zeros by itself.
    """
    causal = call.attn_bias is None and call.seqused_k is None and call.causal
    mask = None if causal else _one_mask(q, k, call)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    options: dict[str, Any] = {
        "scale": call.softmax_scale,
        "enable_gqa": True if q.shape[1] != k.shape[1] else False,  # a bool of Python, also of sizes that are traced
    }
    if mask is None or flash:
        return torch_attention(q, k, v, mask, call.dropout_p, causal, **options).transpose(1, 2)
    # Not every kernel of torch gives zeros for a row without keys: it attends to all of them, and is dropped.
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1, keepdim=True)
        mask = mask | dead
    else:
        dead = (mask == float("-inf")).all(-1, keepdim=True)
        mask = mask.masked_fill(dead, 0.0)
    return torch_attention(q, k, v, mask, call.dropout_p, **options).masked_fill(dead, 0.0).transpose(1, 2)


def _one_mask(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor | None:
    bias, left, right = call.attn_bias, call.window_left, call.window_right
    seen: Tensor | None = None
    if left >= 0 or right >= 0:
        distance = torch.arange(k.shape[1], device=q.device) - torch.arange(q.shape[1], device=q.device)[:, None]
        seen = distance >= -left if left >= 0 else None
        if right >= 0:
            seen = distance <= right if seen is None else seen & (distance <= right)
    if call.seqused_k is not None:
        used = torch.arange(k.shape[1], device=q.device) < call.seqused_k[:, None, None, None]
        seen = used if seen is None else seen & used
    if bias is None:
        return seen
    if bias.dtype == torch.bool:
        return bias if seen is None else bias & seen
    bias = with_infinities(bias).to(q.dtype)
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))
