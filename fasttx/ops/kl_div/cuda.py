"""Launchers of the Kullback-Leibler divergence in CUDA C++ (csrc/kl_div): signatures and contract are those of
kernels/kl_div.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import NONE
from ..cuda.launch import launch
from .composed import divisor

PARTIALS = 4096
"""Blocks that add up a loss, at most: as in binary cross-entropy."""


def kl_div_fwd(loss: Tensor, x: Tensor, target: Tensor, reduction: int, log_target: bool) -> None:
    """Writes loss; arguments as of the op (fasttx/ops/kl_div/op.py)."""
    n_partials = 0 if reduction == NONE else PARTIALS
    launch(
        "kl_div_fwd",
        loss=loss,
        partials=loss.new_empty(n_partials) if n_partials else None,
        x=x.contiguous(),
        target=target.contiguous(),
        dtype=x.dtype,
        n=target.numel(),
        n_partials=n_partials,
        log_target=log_target,
        divisor=divisor(target, reduction),
    )


def kl_div_bwd(dx: Tensor, dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> None:
    """Writes dx."""
    launch(
        "kl_div_bwd",
        dx=dx,
        dloss=dloss.contiguous(),
        target=target.contiguous(),
        dtype=dtype,
        n=target.numel(),
        log_target=log_target,
        one_dloss=reduction != NONE,
        scale=1.0 / divisor(target, reduction),
    )
