"""Which calls of attention our op takes and which torch's own function does: one decision for every form of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import decisions
from ...ops.attention.call import AttentionCall
from ...ops.attention.op import ATTENTION, supports, worth_slicing
from ...ops.checks import values_are_known
from ...ops.exporting import exported_as_torch
from ...ops.forms import DROPOUT, FUNCTION, OURS, TORCHS
from .._routing import EXPORTED, META, OWN, records_gradients, unsupported_reason
from .autograd import last_dim_contiguous, run_attention
from .torch_fn import call_torch

NO_GAIN = "on a CPU torch's function is as fast for such a call"
NO_KERNEL = "no kernel runs such a call here, and torch's fused attention is faster than a composition"
_SMALL = 400_000
"""Scores of a call with dropout below which torch's own composition is faster on a CPU."""
_SMALL_SEQUENCE = 45_000
"""The same of each sequence, where a mask of keys has the op compute one sequence at a time."""


def unsupported_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str | None:
    """Why the op may not get these tensors; None where it may."""
    reason = unsupported_reason(q, k, v, mask)
    return None if reason == META else reason  # the op has a shape for it, as torch's function has


def has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """False where the op would only compose PyTorch's operators on a device whose own fused attention is faster."""
    return ATTENTION.has_kernel(q.device, q.dtype, supports(q, k, v))


def _is_key_mask(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)


def _hides_nothing(mask: Tensor | None) -> bool:
    """Whether a bool mask of keys on a CPU hides none of them; False in a graph in the making, which may see others."""
    return _is_key_mask(mask) and values_are_known(mask) and bool(mask.all())  # type: ignore[union-attr, arg-type]


def cpu_gains(q: Tensor, keys: int, mask: Tensor | None, dropout_p: float) -> bool:
    """False where torch's own function is as fast on a CPU: it runs the very kernel that the op would run (no
    dropout, few masked keys), or the call is so small that the op's fixed cost decides."""
    if dropout_p > 0.0:
        if torch.compiler.is_compiling():
            return True
        scores = q.numel() // q.shape[-1] * keys
        cut = _is_key_mask(mask) and not _hides_nothing(mask)
        worth = scores >= (max(_SMALL, q.shape[0] * _SMALL_SEQUENCE) if cut else _SMALL)
        return DROPOUT.takes(q, OURS if worth else TORCHS, scores) == OURS
    if mask is None or not _is_key_mask(mask):
        return False
    if not values_are_known(mask):
        return torch.compiler.is_compiling()
    return worth_slicing(q, (mask.numel() - int(mask.count_nonzero())) * (q.shape[0] // max(mask.shape[0], 1)))


def _is_flash_form(call: AttentionCall) -> bool:
    """Whether torch's kernel for CPUs has all this, for which the op would call that kernel too."""
    trivial = call.window_left < 0 and (call.window_right < 0 or (call.causal and call.attn_bias is None))
    return trivial and call.seqused_k is None and 0.0 <= call.dropout_p < 1.0


def _why_torch_is_better(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, backend: str, deterministic: bool | None
) -> str | None:
    """Why torch's function runs a call that the op could take; None where the op runs."""
    if exported_as_torch(ATTENTION, backend, q, k, v):
        return EXPORTED
    if backend != "auto":
        return None
    if q.device.type == "cpu":
        same = _is_flash_form(call) and not cpu_gains(q, k.shape[1], call.attn_bias, call.dropout_p)
        return NO_GAIN if same else None
    if deterministic is True:  # which torch's function does not promise
        return None
    if not has_kernel(q, k, v):
        return NO_KERNEL
    if not _is_flash_form(call):
        return None
    numbers = k.shape[1], max(q.shape[-1], v.shape[-1]), int(call.attn_bias is not None), int(call.dropout_p > 0.0)
    return FUNCTION.measured(q, *numbers) if FUNCTION.takes(q, OURS, *numbers) == TORCHS else None


def attend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    *,
    backend: str,
    deterministic: bool | None = None,
) -> Tensor:
    """(batch, seqlen_q, heads, head_dim_v) of padded q, k, v in that order of dims, which the op may get.

    Args:
        name: of the function that the user called.
        call: what the op's check is to see; it checks what torch's function would let pass too.
    """
    reason = _why_torch_is_better(q, k, v, call, backend, deterministic)
    if reason is None:
        return run_attention(q, k, v, call, backend=backend, deterministic=deterministic)
    on_cpu = q.device.type == "cpu"
    if not (on_cpu or torch.compiler.is_compiling()):
        drawn_elsewhere = 0.0 if 0.0 <= call.dropout_p < 1.0 else call.dropout_p
        q1, k1, v1 = last_dim_contiguous(q), last_dim_contiguous(k), last_dim_contiguous(v)
        ATTENTION.fwd.check(q1, k1, v1, *call._replace(dropout_p=drawn_elsewhere))
    if decisions.records:
        decisions.note(name, OWN, reason)
    if on_cpu and _hides_nothing(call.attn_bias):
        call = call._replace(attn_bias=None)  # torch's kernel would add a zero to every score
    # for a mask's gradient torch takes its composition, in which rows without keys are no zeros
    return call_torch(q, k, v, call, flash=reason is NO_GAIN and not records_gradients(call.attn_bias))
