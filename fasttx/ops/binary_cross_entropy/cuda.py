"""Launchers of binary cross-entropy in CUDA C++ (csrc/binary_cross_entropy): signatures and contract are those of
kernels/binary_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import MEAN, NONE
from ..cuda.launch import launch

PARTIALS = 4096
"""Blocks that add up a loss, at most: some waves on every device, and few numbers for the block that adds theirs."""

MAX_PERIOD = 2**20
"""Within a period the kernels count in 32 bits (csrc/binary_cross_entropy/binary_cross_entropy.cuh)."""


def _repeated(weight: Tensor | None, x: Tensor) -> dict[str, Any]:
    """The struct RepeatedWeight: the weight, and after how many elements of x, in memory's order, it begins again."""
    if weight is None:
        return {"values": None, "period": 0}
    own = tuple(weight.shape)
    while own and own[0] == 1:
        own = own[1:]
    trailing = tuple(x.shape[x.dim() - len(own) :])
    if own != trailing or weight.numel() >= MAX_PERIOD:
        weight = weight.expand(x.shape)
    return {"values": weight.contiguous(), "period": weight.numel()}


def binary_cross_entropy_fwd(
    loss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> None:
    """Writes loss; arguments as of the op (fasttx/ops/binary_cross_entropy/op.py)."""
    n_partials = 0 if reduction == NONE else PARTIALS
    launch(
        "binary_cross_entropy_fwd",
        loss=loss,
        partials=loss.new_empty(n_partials) if n_partials else None,
        x=x.contiguous(),
        target=target.contiguous(),
        weight=_repeated(weight, x),
        pos_weight=_repeated(pos_weight, x),
        dtype=x.dtype,
        n=x.numel(),
        n_partials=n_partials,
        mean=reduction == MEAN,
    )


def binary_cross_entropy_bwd(
    dx: Tensor,
    dloss: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
) -> None:
    """Writes dx."""
    launch(
        "binary_cross_entropy_bwd",
        dx=dx,
        dloss=dloss.contiguous(),
        x=x.contiguous(),
        target=target.contiguous(),
        weight=_repeated(weight, x),
        pos_weight=_repeated(pos_weight, x),
        dtype=x.dtype,
        n=x.numel(),
        one_dloss=reduction != NONE,
        scale=1.0 / x.numel() if reduction == MEAN else 1.0,
    )
