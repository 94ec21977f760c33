"""How tensors of rows reach the launchers of CUDA C++."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dropout import rows as row_dropout


def as_rows(x: Tensor) -> Tensor:
    """x as (n_rows, n_cols) with columns at stride 1; a copy only where its rows do not lie at one stride."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def flat(x: Tensor | None) -> Tensor | None:
    """x contiguous."""
    return None if x is None else x.contiguous()


def only_if(needed: bool, x: Tensor) -> Tensor | None:
    """x where it is needed: what a launcher is not given it does not compute."""
    return x if needed else None


def dropout_numbers(rng_state: Tensor | None, dropout_p: float) -> dict[str, Any]:
    """What a kernel must know of the probability, besides rng_state."""
    if rng_state is None:
        return {"threshold": 0, "keep_scale": 1.0}
    return {"threshold": row_dropout.threshold(dropout_p), "keep_scale": row_dropout.keep_scale(dropout_p)}


def dropout(rng_state: Tensor | None, row_index: Tensor | None, dropout_p: float) -> dict[str, Any]:
    """The struct Dropout (csrc/common/types.h)."""
    return {"rng_state": rng_state, "row_index": flat(row_index), **dropout_numbers(rng_state, dropout_p)}
