"""Checks of what the functions with row-wise dropout have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import described, is_number, wrong


def check_dropout_p(dropout_p: float, name: str = "dropout_p") -> None:
    """TypeError or ValueError, unless a probability below 1; `name` is what the caller's argument is called."""
    if not is_number(dropout_p):
        raise TypeError(wrong(name, repr(dropout_p), "a number in [0, 1)"))
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(wrong(name, dropout_p, "a number in [0, 1)"))


def check_eps(eps: float) -> None:
    """TypeError or ValueError, unless finite and not negative."""
    if not is_number(eps):
        raise TypeError(wrong("eps", repr(eps), "a finite number, not negative"))
    if not 0.0 <= eps < math.inf:
        raise ValueError(wrong("eps", eps, "a finite number, not negative"))


def check_mask(row_index: Tensor | None, rng_state: Tensor | None, rows: torch.Size) -> None:
    """ValueError unless these, if given, describe a mask of as many rows as a tensor of shape `rows` has elements."""
    if row_index is not None and (row_index.dtype not in (torch.int32, torch.int64) or row_index.shape != rows):
        raise ValueError(wrong("row_index", described(row_index), f"int32 or int64 {tuple(rows)}"))
    if rng_state is not None and (rng_state.dtype != torch.int64 or rng_state.shape != (2,)):
        raise ValueError(wrong("rng_state", described(rng_state), "int64 (2,)"))
