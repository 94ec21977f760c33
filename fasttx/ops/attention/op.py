"""The attention op: out = dropout(softmax(softmax_scale * q k^T + attn_bias)) v, padded or packed, and its backward.

Arguments and shapes: docs/design.md, "Operators".  Here stand the schema, the fakes, the cost and the row of the table.
call.py is the type of the arguments, checks.py refuses wrong ones, composed.py has the composition of PyTorch's
operators for every device but the CPU, whose own is cpu/, and reference.py the same in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import FLOATS
from ..cost import bytes_of
from ..registry import Direction, Impl, Op
from . import composed, reference
from .call import AttentionCall, Gradients, has_dbias
from .checks import check_bwd, check_fwd, lse_shape
from .cpu import dispatch as cpu
from .cpu.dispatch import worth_slicing as worth_slicing

MAX_HEAD_DIM = 256
"""The largest head_dim (of q, k and of v) that a kernel takes; beyond it PyTorch's own operators run."""
LARGEST_BLOCK = 128
"""Rows of the largest tile in kernels/attention_config.py."""
MAX_TOKEN_STRIDE = (2**31 - MAX_HEAD_DIM) // LARGEST_BLOCK
"""Elements from one token to the next, up to which offsets within a tile, 32-bit in the kernels, do not overflow."""

_T = TypeVar("_T")

_INPUTS = (
    "Tensor? attn_bias, Tensor? seqused_k, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? rng_state, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, float dropout_p, int window_left, int window_right"
)
_FWD = f"(Tensor q, Tensor k, Tensor v, {_INPUTS}, str backend) -> (Tensor out, Tensor softmax_lse)"
_BWD = (
    f"(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, {_INPUTS}, bool deterministic, "
    "bool needs_dbias, str backend) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)"
)


# ------------------------------------------------------------------------------------------------ fakes and costs


def fake_fwd(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(lse_shape(q), dtype=torch.float32)


def fake_bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    attn_bias: Tensor | None,
    *args: Any,
) -> Gradients:
    dbias = attn_bias.new_empty(attn_bias.shape) if attn_bias is not None and args[-1] else q.new_empty(0)
    return Gradients(q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias)


def visible_pairs(q: Tensor, k: Tensor, call: AttentionCall) -> int:
    """How many (query, key) pairs of one head the window and the lengths leave; reads the lengths."""
    if call.starts is not None:
        lengths = list(zip(*(x.diff().tolist() for x in call.starts), strict=True))
        shifts = [n - m for m, n in lengths]
    else:
        keys = [k.shape[1]] * q.shape[0] if call.seqused_k is None else call.seqused_k.tolist()
        lengths = [(q.shape[1], n) for n in keys]
        shifts = [0] * len(lengths)
    total = 0
    for (m, n), d in zip(lengths, shifts, strict=True):
        rows = torch.arange(m) + d
        first = (rows - call.window_left).clamp(0, n) if call.window_left >= 0 else torch.zeros_like(rows)
        last = (rows + call.window_right + 1).clamp(0, n) if call.window_right >= 0 else torch.full_like(rows, n)
        total += int((last - first).clamp(min=0).sum())
    return total


def cost_fwd(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[float, float]:
    call = AttentionCall(*given)
    flop = 2.0 * visible_pairs(q, k, call) * q.shape[-2] * (q.shape[-1] + v.shape[-1])
    return flop, bytes_of(q, k, v, call.attn_bias, *fake_fwd(q, k, v))


def cost_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any
) -> tuple[float, float]:
    call = AttentionCall(*given[:-2])
    pairs = visible_pairs(q, k, call)
    flop = 2.0 * pairs * q.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])  # q k^T again, dq, dk; dout v^T, dv
    return flop, bytes_of(
        dout, q, k, v, out, softmax_lse, call.attn_bias, *fake_bwd(dout, q, k, v, out, softmax_lse, *given)
    )


# ------------------------------------------------------------------------------------------------------ the row


def _composed(on_cpu: Callable[..., _T], elsewhere: Callable[..., _T]) -> Callable[..., _T]:
    """Chooses by the device of the first tensor."""

    @functools.wraps(on_cpu)
    def run(*args: Any) -> _T:
        return (on_cpu if args[0].device.type == "cpu" else elsewhere)(*args)

    return run


def supports(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the Triton kernels cannot run tensors like these, or None."""
    if q.dtype not in FLOATS:
        return f"{q.dtype} is not float32, float16 or bfloat16"
    largest = max(q.shape[-1], v.shape[-1])
    if largest > MAX_HEAD_DIM:
        return f"head_dim {largest} is larger than {MAX_HEAD_DIM}"
    if q.shape[-2] * largest > MAX_TOKEN_STRIDE:  # the results are contiguous
        return f"out's token stride would be {q.shape[-2] * largest}; allowed are {MAX_TOKEN_STRIDE} elements"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-3) > MAX_TOKEN_STRIDE and x.shape[-3] > 1:
            return f"{name}'s token stride is {x.stride(-3)}; allowed are {MAX_TOKEN_STRIDE} elements"
    return None


def cuda_supports(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels in CUDA C++ cannot run tensors like these, or None."""
    if q.dtype == torch.float32:
        return "float32 is multiplied by the Triton kernel: tensor cores would round it"
    return supports(q, k, v)


def _whole(x: Tensor, total: int, value: float = 0.0) -> Tensor:
    """x (used, ...) as (total, ...), `value` after its rows."""
    whole = x.new_full((total, *x.shape[1:]), value)
    whole[: x.shape[0]] = x
    return whole


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """Sets packed tokens of no sequence apart, for which cpu has no place."""
    used = _used(q, k, AttentionCall(*given))
    if used is None:
        return cpu.forward(q, k, v, *given)
    m, n = used
    out, lse = cpu.forward(q[:m], k[:n], v[:n], *given)
    return _whole(out, q.shape[0]), _whole(lse.t(), q.shape[0], -math.inf).t().contiguous()


def _cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any
) -> Gradients:
    used = _used(q, k, AttentionCall(*given[:-2]))
    if used is None:
        return cpu.backward(dout, q, k, v, out, softmax_lse, *given)
    m, n = used
    rows = (dout[:m], q[:m], k[:n], v[:n], out[:m], softmax_lse[:, :m].contiguous())
    dq, dk, dv, dbias = cpu.backward(*rows, *given)
    return Gradients(_whole(dq, q.shape[0]), _whole(dk, k.shape[0]), _whole(dv, k.shape[0]), dbias)


def _used(q: Tensor, k: Tensor, call: AttentionCall) -> tuple[int, int] | None:
    """How many tokens of packed q and of packed k have a sequence, on a CPU; None where all have."""
    if call.starts is None:
        return None
    used = int(call.starts[0][-1]), int(call.starts[1][-1])
    return None if used == (q.shape[0], k.shape[0]) else used


ATTENTION = Op(
    "attention",
    Direction(
        _FWD,
        check_fwd,
        fake_fwd,
        _composed(_cpu_forward, composed.forward),
        reference.forward,
        ("q", "k", "v"),
        cost_fwd,
    ),
    Direction(
        _BWD,
        check_bwd,
        fake_bwd,
        _composed(_cpu_backward, composed.backward),
        reference.backward,
        ("q", "k", "v"),
        cost_bwd,
        derived={"deterministic": lambda known: False, "needs_dbias": lambda known: has_dbias(known["attn_bias"])},
    ),
    (
        Impl(
            "triton", "fasttx.kernels.attention:attention_fwd", "fasttx.kernels.attention_bwd:attention_bwd", supports
        ),
        Impl(
            "cuda", "fasttx.ops.attention.cuda:attention_fwd", "fasttx.ops.attention.cuda:attention_bwd", cuda_supports
        ),
    ),
    about="padded or packed, bool or additive masks, causal, windows, grouped heads, dropout, head_dim up to 256",
)
