"""Which calls of attention our op takes and which torch's own function does, and the latter's form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from ..ops.attention import ATTENTION, worth_slicing
from .eligibility import uncovered

_PLAIN = frozenset({Tensor, torch.nn.Parameter, torch._subclasses.FakeTensor})
_SMALL = 80_000
"""Scores of a call with dropout below which torch's own composition is faster on a CPU."""
_kernel_for: dict[tuple[Any, ...], bool] = {}


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
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


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """False where the op would only compose PyTorch's operators on a device whose own fused attention is faster."""
    if torch.compiler.is_compiling():
        return q.device.type == "cuda" and max(q.shape[-1], v.shape[-1]) <= 256
    key = (q.device, q.dtype, q.shape[-1], v.shape[-1])
    found = _kernel_for.get(key)
    if found is None:
        found = _kernel_for[key] = ATTENTION.pick("auto", q, k, v) is not None
    return found


def cpu_gains(q: Tensor, keys: int, mask: Tensor | None, dropout_p: float) -> bool:
    """False where torch's own function is as fast on a CPU: it runs the very kernel that the op would run (no
    dropout, few masked keys), or the call is so small that the op's fixed cost decides."""
    if dropout_p > 0.0:
        return torch.compiler.is_compiling() or q.numel() // q.shape[-1] * keys >= _SMALL
    if mask is None or mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
        return False
    if torch.compiler.is_compiling():
        return True
    return worth_slicing(mask.numel() - int(mask.count_nonzero()), mask.shape[0], q.shape[-1])


def last_dim_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def why_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """The reason for a user who has forced a backend, and for whom torch's function ran."""
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "the mask requires a gradient"
    return uncovered(q, k, v, mask) or "its shapes, dtypes, scale or dropout_p are not the kernels'"


def by_torch(
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
    return torch_attention(q, k, v, mask, dropout_p, scale=scale, enable_gqa=grouped).transpose(1, 2).contiguous()
