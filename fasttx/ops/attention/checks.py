"""The checks of the attention op's arguments: the only place where they are validated."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..checks import values_may_be_read

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BIAS_DTYPES = (torch.bool, *DTYPES)


def lse_shape(q: Tensor) -> tuple[int, ...]:
    return (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])


def _bad(argument: str, given: object, allowed: str) -> NoReturn:
    raise ValueError(f"attention: {argument} is {given}; allowed is {allowed}")


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, varlen: bool) -> None:
    dtype, device, q_shape, k_shape, v_shape = q.dtype, q.device, q.shape, k.shape, v.shape
    if (  # one pass for calls that are right; what is wrong with the others is found below
        dtype in DTYPES
        and k.dtype is dtype
        and v.dtype is dtype
        and k.device == device
        and v.device == device
        and len(q_shape) == len(k_shape) == (3 if varlen else 4)
        and k_shape[:-1] == v_shape[:-1]
        and k_shape[-1] == q_shape[-1] > 0 < v_shape[-1]
        and k_shape[-2] > 0 == q_shape[-2] % k_shape[-2]
        and (varlen or k_shape[0] == q_shape[0])
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    ):
        return
    if dtype not in DTYPES:
        _bad("q's dtype", dtype, "float32, float16 or bfloat16")
    dims = 3 if varlen else 4
    layout = "(total_tokens, num_heads, head_dim)" if varlen else "(batch, seqlen, num_heads, head_dim)"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != dims:
            _bad(f"{name}'s shape", tuple(x.shape), layout)
        if x.dtype != dtype:
            _bad(f"{name}'s dtype", x.dtype, f"q's, {dtype}")
        if x.device != device:
            _bad(f"{name}'s device", x.device, f"q's, {device}")
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            _bad(f"{name}'s strides", x.stride(), "1 in the last dim")
    if k_shape[-1] != q_shape[-1] or q_shape[-1] == 0 or v_shape[-1] == 0:
        _bad(
            "head_dim",
            f"{q_shape[-1]} (q), {k_shape[-1]} (k), {v_shape[-1]} (v)",
            "the same for q and k, at least 1 for v",
        )
    if v_shape[:-1] != k_shape[:-1]:
        _bad("v's shape", tuple(v_shape), f"k's {tuple(k_shape)} but for the last dim")
    if k_shape[-2] == 0 or q_shape[-2] % k_shape[-2]:
        _bad("num_heads of q", q_shape[-2], f"a multiple of k's, {k_shape[-2]}")
    if not varlen and k_shape[0] != q_shape[0]:
        _bad("k's batch", k_shape[0], f"q's, {q_shape[0]}")


def _check_lengths(name: str, x: Tensor, device: torch.device, size: int | None) -> bool:
    """Shape, dtype and device of seqused_k or cu_seqlens; True if its values are to be checked too."""
    if x.dtype != torch.int32 or x.dim() != 1 or (size is not None and x.shape[0] != size) or not x.is_contiguous():
        wanted = "int32, contiguous, " + ("(batch + 1,)" if size is None else f"({size},)")
        _bad(name, f"{x.dtype} of shape {tuple(x.shape)}", wanted)
    if x.device != device:
        _bad(f"{name}'s device", x.device, f"q's, {device}")
    return values_may_be_read(device)


def _check_cu_seqlens(name: str, cu_seqlens: Tensor, total: int, max_seqlen: int) -> None:
    values = cu_seqlens.tolist()
    lengths = [b - a for a, b in zip(values, values[1:], strict=False)]
    if values[0] != 0 or values[-1] > total or min(lengths, default=0) < 0:
        _bad(f"cu_seqlens_{name}", values, f"ascending from 0 to at most the number of tokens, {total}")
    if max(lengths, default=0) > max_seqlen:
        _bad(f"max_seqlen_{name}", max_seqlen, f"at least the longest sequence, {max(lengths)}")


def check_fwd(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None, seqused_k: Tensor | None, cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None, rng_state: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float,
    dropout_p: float, window_left: int, window_right: int,
) -> None:  # fmt: skip
    """Raises ValueError, naming the argument, what was given and what is allowed."""
    varlen = cu_seqlens_q is not None
    if varlen != (cu_seqlens_k is not None):
        _bad("cu_seqlens_k" if varlen else "cu_seqlens_q", None, "given exactly where the other one is")
    _check_inputs(q, k, v, varlen)
    device = q.device
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if seqused_k is not None:
            _bad("seqused_k", "given with cu_seqlens_k", "one of the two")
        if cu_seqlens_q.dim() == 1 and cu_seqlens_q.shape[0] == 0:
            _bad("cu_seqlens_q", "empty", "(batch + 1,)")
        values = _check_lengths("cu_seqlens_q", cu_seqlens_q, device, None)
        _check_lengths("cu_seqlens_k", cu_seqlens_k, device, cu_seqlens_q.shape[0])
        if min(max_seqlen_q, max_seqlen_k) < 0:
            _bad("max_seqlen", f"{max_seqlen_q} (q), {max_seqlen_k} (k)", "not negative")
        if values:
            _check_cu_seqlens("q", cu_seqlens_q, q.shape[0], max_seqlen_q)
            _check_cu_seqlens("k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        batch = cu_seqlens_q.shape[0] - 1
    else:
        batch = q.shape[0]
        if max_seqlen_q != q.shape[1] or max_seqlen_k != k.shape[1]:
            _bad(
                "max_seqlen",
                f"{max_seqlen_q} (q), {max_seqlen_k} (k)",
                f"{q.shape[1]} and {k.shape[1]}, the tensors' own",
            )
        if seqused_k is not None and _check_lengths("seqused_k", seqused_k, device, batch) and batch:
            low, high = (int(x) for x in seqused_k.aminmax())
            if low < 0 or high > max_seqlen_k:
                _bad("seqused_k", f"from {low} to {high}", f"0 to seqlen_k, {max_seqlen_k}")
    if attn_bias is not None:
        if attn_bias.dtype not in BIAS_DTYPES:
            _bad("attn_bias's dtype", attn_bias.dtype, "bool, float32, float16 or bfloat16")
        if attn_bias.device != device:
            _bad("attn_bias's device", attn_bias.device, f"q's, {device}")
        full = (batch, q.shape[-2], max_seqlen_q, max_seqlen_k)
        shape = tuple(attn_bias.shape)
        if shape != full and (len(shape) != 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True))):
            _bad("attn_bias's shape", shape, f"{full}, or 1 in any of these dims")
    if not 0.0 <= dropout_p < 1.0:
        _bad("dropout_p", dropout_p, "at least 0 and below 1")
    if (rng_state is None) != (dropout_p == 0.0):
        _bad("rng_state", "None" if rng_state is None else "given", "given exactly where dropout_p > 0")
    if rng_state is not None and (
        rng_state.dtype != torch.int64
        or rng_state.shape != (2,)
        or rng_state.device != device
        or not rng_state.is_contiguous()
    ):
        _bad(
            "rng_state",
            f"{rng_state.dtype} of shape {tuple(rng_state.shape)} on {rng_state.device}",
            f"int64 (2,) on {device}",
        )
    if not math.isfinite(softmax_scale):
        _bad("softmax_scale", softmax_scale, "a finite number")
    if window_left < -1 or window_right < -1:
        _bad("window", (window_left, window_right), "-1 (unlimited) or larger, on both sides")


def check_bwd(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *args: Any) -> None:
    """As the forward's, and that dout, out and softmax_lse are what the forward gave."""
    check_fwd(q, k, v, *args[:-1])
    shape = (*q.shape[:-1], v.shape[-1])
    for name, x in (("dout", dout), ("out", out)):
        if x.shape != shape or x.dtype != q.dtype or x.device != q.device:
            _bad(
                name, f"{x.dtype} of shape {tuple(x.shape)} on {x.device}", f"{q.dtype} of shape {shape} on {q.device}"
            )
        if shape[-1] > 1 and x.stride(-1) != 1:
            _bad(f"{name}'s strides", x.stride(), "1 in the last dim")
    if not out.is_contiguous():
        _bad("out's strides", out.stride(), "contiguous, as the forward gives it")
    rows = lse_shape(q)
    if softmax_lse.shape != rows or softmax_lse.dtype != torch.float32 or softmax_lse.device != q.device:
        _bad(
            "softmax_lse",
            f"{softmax_lse.dtype} of shape {tuple(softmax_lse.shape)}",
            f"float32 of shape {rows} on {q.device}",
        )
