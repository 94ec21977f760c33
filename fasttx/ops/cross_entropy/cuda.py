"""Launchers of cross-entropy in CUDA C++ (csrc/cross_entropy): signatures and contract are those of
kernels/cross_entropy.py and kernels/cross_entropy_bwd.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import MEAN, NONE
from ..cuda.launch import launch
from ..cuda.rows import as_rows


def _common(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[dict[str, Tensor | None], dict[str, torch.dtype], dict[str, Any]]:
    """Inputs, dtypes and numbers that both directions take. Without an array its dtype is not looked at."""
    rows, probs = as_rows(logits), target.is_floating_point()
    target = as_rows(target) if probs else target.contiguous()
    weight = None if weight is None else weight.contiguous()
    inputs = {
        "logits": rows, "labels": None if probs else target, "probabilities": target if probs else None,
        "weight": weight,
    }  # fmt: skip
    dtypes = {
        "dtype": rows.dtype,
        "probabilities_dtype": target.dtype if probs else rows.dtype,
        "weight_dtype": rows.dtype if weight is None else weight.dtype,
    }
    numbers = {
        "n_rows": rows.shape[0], "n_cols": rows.shape[1], "stride_xm": rows.stride(0), "stride_tm": target.stride(0),
        "ignore_index": ignore_index, "smoothing": label_smoothing,
    }  # fmt: skip
    return inputs, dtypes, numbers


def cross_entropy_fwd(
    loss: Tensor, lse: Tensor, total_weight: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> None:  # fmt: skip
    """Writes loss, lse and total_weight; arguments as of the op (fasttx/ops/cross_entropy/op.py)."""
    inputs, dtypes, numbers = _common(logits, target, weight, ignore_index, label_smoothing)
    outputs = {"loss": loss, "lse": lse, "total_weight": total_weight}
    n_partials = 0 if reduction == NONE else 2 * logits.shape[0]
    if n_partials:
        outputs["partials"] = loss.new_empty(n_partials)
    else:
        inputs["partials"] = None
    launch("cross_entropy_fwd", outputs, inputs, dtypes, **numbers, n_partials=n_partials, mean=reduction == MEAN)


def cross_entropy_bwd(
    dlogits: Tensor, dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor,
    total_weight: Tensor, ignore_index: int, label_smoothing: float, reduction: int,
) -> None:  # fmt: skip
    """Writes dlogits."""
    inputs, dtypes, numbers = _common(logits, target, weight, ignore_index, label_smoothing)
    summed = weight is not None and label_smoothing > 0.0 and not target.is_floating_point()
    inputs["weight_sum"] = weight.sum(dtype=torch.float32) if weight is not None and summed else None
    inputs |= {"dloss": dloss, "lse": lse.contiguous(), "total_weight": total_weight}
    launch(
        "cross_entropy_bwd",
        {"dlogits": dlogits},
        inputs,
        dtypes,
        **numbers,
        stride_dloss=dloss.stride(0) if reduction == NONE else 0,
        stride_dxm=dlogits.stride(0),
    )
