"""Which calls of attention our op takes and which torch's own function does, and the latter's form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from ...ops.attention.masks import with_infinities
from ...ops.attention.op import ATTENTION, supports, worth_slicing
from .._routing import uncovered

_PLAIN = (Tensor, torch.nn.Parameter, torch._subclasses.FakeTensor)  # torch 2.8 compiles no `in` of a frozenset
NO_GAIN = "on a CPU torch's function is as fast for such a call"
NO_KERNEL = "no kernel runs such a call here, and torch's fused attention is faster than a composition"
_SMALL = 400_000
"""Scores of a call with dropout below which torch's own composition is faster on a CPU."""
_SMALL_SEQUENCE = 45_000
"""The same of each sequence, where a mask of keys has the op compute one sequence at a time."""


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
    return ATTENTION.has_kernel(q.device, supports(q, k, v))


def cpu_gains(q: Tensor, keys: int, mask: Tensor | None, dropout_p: float) -> bool:
    """False where torch's own function is as fast on a CPU: it runs the very kernel that the op would run (no
    dropout, few masked keys), or the call is so small that the op's fixed cost decides."""
    if dropout_p > 0.0 and torch.compiler.is_compiling():
        return True
    if dropout_p > 0.0:
        scores = q.numel() // q.shape[-1] * keys
        cut = mask is not None and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1) and not hides_nothing(mask)
        return scores >= (max(_SMALL, q.shape[0] * _SMALL_SEQUENCE) if cut else _SMALL)
    if mask is None or mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
        return False
    if torch.compiler.is_compiling():
        return True
    return worth_slicing(mask.numel() - int(mask.count_nonzero()), mask.shape[0], q.shape[-1])


def hides_nothing(mask: Tensor) -> bool:
    """Whether a bool mask of keys on a CPU hides none of them; False in a graph in the making, which may see others."""
    if type(mask) is not Tensor or mask.dtype != torch.bool or mask.shape[1:3] != (1, 1):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and bool(mask.all())


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
    """The same by torch's function, lengths, window and bias as one mask; rows without a key give zeros."""
    causal = attn_bias is None and seqused_k is None and window[0] < 0 and window[1] == 0
    mask = None if causal else _one_mask(q, k, attn_bias, seqused_k, window)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = True if q.shape[1] != k.shape[1] else False  # a bool of Python, also of sizes that are being traced
    if mask is None:
        out = torch_attention(q, k, v, None, dropout_p, causal, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous()
    # Not every kernel of torch gives zeros for a row without keys: it attends to all of them, and is dropped.
    if mask.dtype == torch.bool:
        dead = ~mask.any(-1, keepdim=True)
        mask = mask | dead
    else:
        dead = (mask == float("-inf")).all(-1, keepdim=True)
        mask = mask.masked_fill(dead, 0.0)
    out = torch_attention(q, k, v, mask, dropout_p, scale=scale, enable_gqa=grouped)
    return out.masked_fill(dead, 0.0).transpose(1, 2).contiguous()


def _one_mask(
    q: Tensor, k: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, window: tuple[int, int]
) -> Tensor | None:
    distance = torch.arange(k.shape[1], device=q.device) - torch.arange(q.shape[1], device=q.device)[:, None]
    seen: Tensor | None = None
    if window[0] >= 0:
        seen = distance >= -window[0]
    if window[1] >= 0:
        seen = distance <= window[1] if seen is None else seen & (distance <= window[1])
    if seqused_k is not None:
        used = torch.arange(k.shape[1], device=q.device) < seqused_k[:, None, None, None]
        seen = used if seen is None else seen & used
    if attn_bias is None:
        return seen
    if attn_bias.dtype == torch.bool:
        return attn_bias if seen is None else attn_bias & seen
    bias = with_infinities(attn_bias).to(q.dtype)
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))
