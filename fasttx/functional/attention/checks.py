"""What attention_varlen's arguments may be, as far as the check of the op cannot tell: their types and its words."""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...ops.checks import NUMBERS, described, wrong

_WINDOW = "(left, right) of two ints, -1 (unlimited) or larger, or None"


def is_finite(x: Any) -> bool:
    """math.isfinite, which cannot be traced, of a number that is being traced too."""
    return -math.inf < x < math.inf


def _bad(error: type[Exception], argument: str, given: object, allowed: str) -> NoReturn:
    raise error(wrong(f"attention_varlen: {argument}", given, allowed))


def _tensor(name: str, x: object, device: torch.device | None, optional: bool = False) -> None:
    if x is None and optional:
        return
    if not isinstance(x, Tensor):
        _bad(TypeError, name, described(x), "a Tensor or None" if optional else "a Tensor")
    if device is not None and x.device != device:
        _bad(ValueError, f"{name}'s device", x.device, f"query's, {device}")


def _is_int(x: object) -> bool:
    """Whether x is an integer of Python, NumPy or a graph that is being traced; reading a Tensor would synchronise."""
    if isinstance(x, (int, torch.SymInt)):
        return not isinstance(x, bool)
    return hasattr(x, "__index__") and not isinstance(x, Tensor)


def _int(name: str, x: Any) -> Any:
    if not _is_int(x):
        _bad(TypeError, name, repr(x), "an int, not negative")
    if x < 0:
        _bad(ValueError, name, x, "an int, not negative")
    return x if isinstance(x, (int, torch.SymInt)) else operator.index(x)


def check_tensors(
    query: Any, key: Any, value: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, attn_bias: Any, rng_state: Any
) -> None:
    """Raises TypeError for what is no tensor; ValueError for several devices, a query without a head_dim."""
    _tensor("query", query, None)
    device = query.device
    _tensor("key", key, device)
    _tensor("value", value, device)
    _tensor("cu_seqlens_q", cu_seqlens_q, device)
    _tensor("cu_seqlens_k", cu_seqlens_k, device)
    _tensor("attn_bias", attn_bias, device, optional=True)
    _tensor("rng_state", rng_state, device, optional=True)
    if query.dim() != 3:
        _bad(ValueError, "query's shape", tuple(query.shape), "(total_q, heads, head_dim)")


def checked_numbers(
    max_seqlen_q: Any, max_seqlen_k: Any, dropout_p: Any, scale: Any, window_size: Any
) -> tuple[int, int, int, int]:
    """max_seqlen_q, max_seqlen_k and the window as ints.

    Raises:
        TypeError, ValueError: a number is not what it may be.
    """
    if not isinstance(dropout_p, NUMBERS):
        _bad(TypeError, "dropout_p", repr(dropout_p), "a number, at least 0 and below 1")
    if not 0.0 <= dropout_p < 1.0:
        _bad(ValueError, "dropout_p", dropout_p, "a number, at least 0 and below 1")
    if scale is not None:
        if not isinstance(scale, NUMBERS):
            _bad(TypeError, "scale", repr(scale), "a finite number or None")
        if not is_finite(scale):
            _bad(ValueError, "scale", scale, "a finite number or None")
    left = right = -1
    if window_size is not None:
        if not isinstance(window_size, (tuple, list)):
            _bad(TypeError, "window_size", window_size, _WINDOW)
        if len(window_size) != 2:
            _bad(ValueError, "window_size", window_size, _WINDOW)
        left, right = window_size
        if not (_is_int(left) and _is_int(right)):
            _bad(TypeError, "window_size", window_size, _WINDOW)
        if left < -1 or right < -1:
            _bad(ValueError, "window_size", window_size, _WINDOW)
    return _int("max_seqlen_q", max_seqlen_q), _int("max_seqlen_k", max_seqlen_k), left, right


def check_flags(**flags: Any) -> None:
    """Raises TypeError for what is no bool: a string or a number would be taken for its truth."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            _bad(TypeError, name, repr(flag), "True or False")
