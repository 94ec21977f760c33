"""The checks of the attention op's arguments: shapes, dtypes, devices and values.

What is wrong is said in the words of whoever calls: the operator's own, or those of a function above it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..checks import FLOATS, values_may_be_read, wrong
from .call import AttentionCall, has_dbias

BIAS_DTYPES = (torch.bool, *FLOATS)


class Words(NamedTuple):
    """What a caller calls itself and its arguments."""

    function: str = "attention"
    q: str = "q"
    k: str = "k"
    v: str = "v"
    softmax_scale: str = "softmax_scale"
    window: str = "window"

    def bad(self, argument: str, given: object, allowed: str) -> NoReturn:
        raise ValueError(wrong(f"{self.function}: {argument}", given, allowed))


OPERATOR = Words()


def lse_shape(q: Tensor) -> tuple[int, ...]:
    return (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, varlen: bool, words: Words) -> None:
    dtype, device, q_shape, k_shape, v_shape = q.dtype, q.device, q.shape, k.shape, v.shape
    if (  # one pass for calls that are right; what is wrong with the others is found below
        dtype in FLOATS
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
    if dtype not in FLOATS:
        words.bad(f"{words.q}'s dtype", dtype, "float32, float16 or bfloat16")
    dims = 3 if varlen else 4
    layout = "(total_tokens, num_heads, head_dim)" if varlen else "(batch, seqlen, num_heads, head_dim)"
    for name, x in ((words.q, q), (words.k, k), (words.v, v)):
        if x.dim() != dims:
            words.bad(f"{name}'s shape", tuple(x.shape), layout)
        if x.dtype != dtype:
            words.bad(f"{name}'s dtype", x.dtype, f"{words.q}'s, {dtype}")
        if x.device != device:
            words.bad(f"{name}'s device", x.device, f"{words.q}'s, {device}")
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            words.bad(f"{name}'s strides", x.stride(), "1 in the last dim")
    for name, x in ((words.q, q), (words.v, v)):
        if x.shape[-1] == 0:
            words.bad(f"{name}'s head_dim", 0, "1 or more")
    if k_shape[-1] != q_shape[-1]:
        words.bad(f"{words.k}'s head_dim", k_shape[-1], f"{words.q}'s, {q_shape[-1]}")
    if v_shape[:-1] != k_shape[:-1]:
        words.bad(f"{words.v}'s shape", tuple(v_shape), f"{words.k}'s {tuple(k_shape)} but for the last dim")
    if k_shape[-2] == 0 or q_shape[-2] % k_shape[-2]:
        words.bad(f"{words.q}'s num_heads", q_shape[-2], f"a multiple of {words.k}'s, {k_shape[-2]}")
    if not varlen and k_shape[0] != q_shape[0]:
        words.bad(f"{words.k}'s batch", k_shape[0], f"{words.q}'s, {q_shape[0]}")


def _check_lengths(name: str, x: Tensor, device: torch.device, size: int | None, words: Words) -> bool:
    """Shape, dtype and device of seqused_k or cu_seqlens; True if its values are to be checked too."""
    if x.dtype != torch.int32 or x.dim() != 1 or (size is not None and x.shape[0] != size) or not x.is_contiguous():
        wanted = "int32, contiguous, " + ("(batch + 1,)" if size is None else f"({size},)")
        words.bad(name, f"{x.dtype} of shape {tuple(x.shape)}", wanted)
    if x.device != device:
        words.bad(f"{name}'s device", x.device, f"{words.q}'s, {device}")
    return values_may_be_read(device)


def _check_cu_seqlens(name: str, cu_seqlens: Tensor, total: int, max_seqlen: int, words: Words) -> None:
    values = cu_seqlens.tolist()
    lengths = [b - a for a, b in zip(values, values[1:], strict=False)]
    if values[0] != 0 or values[-1] > total or min(lengths, default=0) < 0:
        words.bad(f"cu_seqlens_{name}", values, f"ascending from 0 to at most the number of tokens, {total}")
    if max(lengths, default=0) > max_seqlen:
        words.bad(f"max_seqlen_{name}", max_seqlen, f"at least the longest sequence, {max(lengths)}")


def _check_packed(q: Tensor, k: Tensor, call: AttentionCall, starts: tuple[Tensor, Tensor], words: Words) -> int:
    """The number of sequences."""
    starts_q, starts_k = starts
    if call.seqused_k is not None:
        words.bad("seqused_k", "a Tensor, with cu_seqlens_k", "one of the two")
    if starts_q.dim() == 1 and starts_q.shape[0] == 0:
        words.bad("cu_seqlens_q", "an empty Tensor", "(batch + 1,)")
    values = _check_lengths("cu_seqlens_q", starts_q, q.device, None, words)
    _check_lengths("cu_seqlens_k", starts_k, q.device, starts_q.shape[0], words)
    for name, longest in (("max_seqlen_q", call.max_seqlen_q), ("max_seqlen_k", call.max_seqlen_k)):
        if longest < 0:
            words.bad(name, longest, "0 or more")
    if values:
        _check_cu_seqlens("q", starts_q, q.shape[0], call.max_seqlen_q, words)
        _check_cu_seqlens("k", starts_k, k.shape[0], call.max_seqlen_k, words)
    return starts_q.shape[0] - 1


def _check_padded(q: Tensor, k: Tensor, call: AttentionCall, words: Words) -> int:
    """The number of sequences."""
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    for name, longest, own in (("max_seqlen_q", call.max_seqlen_q, rows), ("max_seqlen_k", call.max_seqlen_k, keys)):
        if longest != own:
            words.bad(name, longest, f"{own}, the tensor's own")
    used = call.seqused_k
    if used is not None and _check_lengths("seqused_k", used, q.device, batch, words) and batch:
        low, high = (int(x) for x in used.aminmax())
        if low < 0 or high > keys:
            words.bad("seqused_k", f"{low} to {high}", f"0 to seqlen_k, {keys}")
    return batch


def _check_bias(bias: Tensor, full: tuple[int, ...], device: torch.device, words: Words) -> None:
    if bias.dtype not in BIAS_DTYPES:
        words.bad("attn_bias's dtype", bias.dtype, "bool, float32, float16 or bfloat16")
    if bias.device != device:
        words.bad("attn_bias's device", bias.device, f"{words.q}'s, {device}")
    shape = tuple(bias.shape)
    if shape != full and (len(shape) != 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True))):
        words.bad("attn_bias's shape", shape, f"{full}, or 1 in any of these dims")


def _are_right(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_bias: Tensor | None,
    seqused_k: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    rng_state: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    dropout_p: float,
    window_left: int,
    window_right: int,
) -> bool:
    """One look at arguments, of which most calls have right ones: False of what the whole check has to tell."""
    dtype, device, q_shape, k_shape, v_shape = q.dtype, q.device, q.shape, k.shape, v.shape
    dims = 4 if cu_seqlens_q is None else 3
    if not (
        dtype in FLOATS
        and k.dtype is dtype
        and v.dtype is dtype
        and k.device == device == v.device
        and len(q_shape) == len(k_shape) == dims
        and k_shape[:-1] == v_shape[:-1]
        and k_shape[-1] == q_shape[-1] > 0 < v_shape[-1]
        and k_shape[-2] > 0 == q_shape[-2] % k_shape[-2]
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        and seqused_k is None
        and window_left >= -1 <= window_right
        and math.isfinite(softmax_scale)
    ):
        return False
    if rng_state is None:
        if dropout_p != 0.0:
            return False
    elif not (
        0.0 < dropout_p < 1.0
        and rng_state.dtype == torch.int64
        and rng_state.shape == (2,)
        and rng_state.device == device
        and rng_state.is_contiguous()
    ):
        return False
    if cu_seqlens_q is None:
        if (
            cu_seqlens_k is not None
            or q_shape[0] != k_shape[0]
            or (max_seqlen_q, max_seqlen_k)
            != (
                q_shape[1],
                k_shape[1],
            )
        ):
            return False
        return attn_bias is None or (
            attn_bias.dtype in BIAS_DTYPES
            and attn_bias.device == device
            and attn_bias.shape == (q_shape[0], 1, 1, max_seqlen_k)
        )
    return (
        attn_bias is None
        and cu_seqlens_k is not None
        and cu_seqlens_q.dtype == torch.int32 == cu_seqlens_k.dtype
        and len(cu_seqlens_q.shape) == 1
        and cu_seqlens_q.shape == cu_seqlens_k.shape
        and cu_seqlens_q.shape[0] > 0
        and cu_seqlens_q.device == device == cu_seqlens_k.device
        and cu_seqlens_q.is_contiguous()
        and cu_seqlens_k.is_contiguous()
        and max_seqlen_q >= 0 <= max_seqlen_k
        and not values_may_be_read(device)
    )


def check_fwd(q: Tensor, k: Tensor, v: Tensor, *given: Any, words: Words = OPERATOR) -> None:
    """Raises ValueError, naming the argument, what was given and what is allowed; `given` is an AttentionCall."""
    if _are_right(q, k, v, *given):
        return
    call = AttentionCall(*given)
    varlen = call.cu_seqlens_q is not None
    if varlen != (call.cu_seqlens_k is not None):
        words.bad("cu_seqlens_k" if varlen else "cu_seqlens_q", None, "a Tensor where the other one is given")
    _check_inputs(q, k, v, varlen, words)
    starts, device = call.starts, q.device
    batch = _check_padded(q, k, call, words) if starts is None else _check_packed(q, k, call, starts, words)
    if call.attn_bias is not None:
        _check_bias(call.attn_bias, (batch, q.shape[-2], call.max_seqlen_q, call.max_seqlen_k), device, words)
    if not 0.0 <= call.dropout_p < 1.0:
        words.bad("dropout_p", call.dropout_p, "a number, at least 0 and below 1")
    state = call.rng_state
    if (state is None) != (call.dropout_p == 0.0):
        words.bad("rng_state", "None" if state is None else "a Tensor", "a Tensor exactly where dropout_p > 0")
    if state is not None and (
        state.dtype != torch.int64 or state.shape != (2,) or state.device != device or not state.is_contiguous()
    ):
        given_state = f"{state.dtype} of shape {tuple(state.shape)} on {state.device}"
        words.bad("rng_state", given_state, f"int64 (2,) on {device}, contiguous")
    if not math.isfinite(call.softmax_scale):
        words.bad(words.softmax_scale, call.softmax_scale, "a finite number")
    if call.window_left < -1 or call.window_right < -1:
        sides = (call.window_left, call.window_right)
        words.bad(words.window, sides, "-1 (unlimited) or larger, on both sides")


def check_bwd(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *given: Any) -> None:
    """As the forward's, and that dout, out and softmax_lse are what the forward gave; `given` ends in deterministic
    and needs_dbias."""
    check_fwd(q, k, v, *given[:-2])
    words, shape = OPERATOR, (*q.shape[:-1], v.shape[-1])
    for name, x in (("dout", dout), ("out", out)):
        if x.shape != shape or x.dtype != q.dtype or x.device != q.device:
            found, wanted = (f"{t.dtype} of shape {s} on {t.device}" for t, s in ((x, tuple(x.shape)), (q, shape)))
            words.bad(name, found, wanted)
        if shape[-1] > 1 and x.stride(-1) != 1:
            words.bad(f"{name}'s strides", x.stride(), "1 in the last dim")
    if not out.is_contiguous():
        words.bad("out's strides", out.stride(), "contiguous, as the forward gives it")
    rows = lse_shape(q)
    if softmax_lse.shape != rows or softmax_lse.dtype != torch.float32 or softmax_lse.device != q.device:
        found = f"{softmax_lse.dtype} of shape {tuple(softmax_lse.shape)} on {softmax_lse.device}"
        words.bad("softmax_lse", found, f"float32 of shape {rows} on {q.device}")
    if not softmax_lse.is_contiguous():
        words.bad("softmax_lse's strides", softmax_lse.stride(), "contiguous, as the forward gives it")
    if given[-1] and not has_dbias(given[0]):
        found = "None" if given[0] is None else f"{given[0].dtype}"
        words.bad("needs_dbias", f"True with attn_bias {found}", "True only with a floating attn_bias")
