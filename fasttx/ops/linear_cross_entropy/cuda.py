"""Launchers of linear cross-entropy in CUDA C++ (csrc/cross_entropy, csrc/linear_cross_entropy): signatures and
contract are those of kernels/linear_cross_entropy.py; chunks and products are those of kernels/logit_chunks.py.
"""

from __future__ import annotations

import functools

from torch import Tensor

from ...kernels import logit_chunks
from ..cross_entropy.cuda import cross_entropy_bwd, cross_entropy_fwd
from ..cuda.launch import launch


def _sum_of(
    loss: Tensor,
    total_weight: Tensor,
    row_losses: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    n_cols: int,
    ignore_index: int,
    mean: bool,
) -> None:
    """Writes loss and total_weight."""
    launch(
        "linear_cross_entropy_fwd",
        loss=loss,
        total_weight=total_weight,
        row_losses=row_losses,
        labels=target,
        weight=class_weight,
        n_rows=row_losses.shape[0],
        n_cols=n_cols,
        ignore_index=ignore_index,
        mean=mean,
    )


linear_cross_entropy_fwd = functools.partial(logit_chunks.forward, cross_entropy_fwd, _sum_of)
linear_cross_entropy_bwd = functools.partial(logit_chunks.backward, cross_entropy_bwd)
