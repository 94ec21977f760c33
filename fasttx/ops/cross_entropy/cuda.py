"""Launchers of cross-entropy in CUDA C++ (csrc/cross_entropy): signatures and contract are those of
kernels/cross_entropy.py and kernels/cross_entropy_bwd.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import MEAN, NONE
from ..cuda.launch import launch
from ..cuda.rows import as_rows, flat


def _common(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> dict[str, Any]:
    """The members that both directions have."""
    rows, probs = as_rows(logits), target.is_floating_point()
    target = as_rows(target) if probs else target.contiguous()
    return {
        "logits": rows,
        "labels": None if probs else target,
        "probabilities": target if probs else None,
        "weight": flat(weight),
        "dtype": rows.dtype,
        "n_rows": rows.shape[0],
        "n_cols": rows.shape[1],
        "stride_xm": rows.stride(0),
        "stride_tm": target.stride(0),
        "ignore_index": ignore_index,
        "smoothing": label_smoothing,
    }


def cross_entropy_fwd(
    loss: Tensor,
    lse: Tensor,
    total_weight: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    """Writes loss, lse and total_weight; arguments as of the op (fasttx/ops/cross_entropy/op.py)."""
    n_partials = 0 if reduction == NONE else 2 * logits.shape[0]
    launch(
        "cross_entropy_fwd",
        loss=loss,
        lse=lse,
        total_weight=total_weight,
        partials=loss.new_empty(n_partials) if n_partials else None,
        n_partials=n_partials,
        mean=reduction == MEAN,
        **_common(logits, target, weight, ignore_index, label_smoothing),
    )


def cross_entropy_bwd(
    dlogits: Tensor,
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    """Writes dlogits."""
    summed = weight is not None and label_smoothing > 0.0 and not target.is_floating_point()
    launch(
        "cross_entropy_bwd",
        dlogits=dlogits,
        dloss=dloss,
        weight_sum=weight.sum(dtype=torch.float32) if weight is not None and summed else None,
        lse=lse.contiguous(),
        total_weight=total_weight,
        stride_dloss=dloss.stride(0) if reduction == NONE else 0,
        stride_dxm=dlogits.stride(0),
        **_common(logits, target, weight, ignore_index, label_smoothing),
    )
