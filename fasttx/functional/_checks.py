"""Checks of what the functions with row-wise dropout have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import is_number


def check_dropout_p(dropout_p: float) -> None:
    """TypeError or ValueError, unless a probability below 1."""
    if not is_number(dropout_p):
        raise TypeError(f"dropout_p: must be a number, got {dropout_p!r}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: must lie in [0, 1), got {dropout_p}")


def check_eps(eps: float) -> None:
    """TypeError or ValueError, unless finite and not negative."""
    if not is_number(eps):
        raise TypeError(f"eps: must be a number, got {eps!r}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: must be finite and not negative, got {eps}")


def check_mask(row_index: Tensor | None, rng_state: Tensor | None, rows: torch.Size) -> None:
    """ValueError unless these, if given, describe a mask of as many rows as a tensor of shape `rows` has elements."""
    if row_index is not None and (row_index.dtype not in (torch.int32, torch.int64) or row_index.shape != rows):
        raise ValueError(
            f"row_index: must be int32 or int64 {tuple(rows)}, got {row_index.dtype} {tuple(row_index.shape)}"
        )
    if rng_state is not None and (rng_state.dtype != torch.int64 or rng_state.shape != (2,)):
        raise ValueError(f"rng_state: must be int64 (2,), got {rng_state.dtype} {tuple(rng_state.shape)}")
