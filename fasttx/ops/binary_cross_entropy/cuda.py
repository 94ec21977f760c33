"""Launchers of binary cross-entropy in CUDA C++ (csrc/binary_cross_entropy): signatures and contract are those of
kernels/binary_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import MEAN, NONE
from ..cuda.launch import launch

PARTIALS = 4096
"""Blocks that add up a loss, at most: some waves on every device, and few numbers for the block that adds theirs."""

MAX_PERIOD = 2**20
"""Within a period the kernels count in 32 bits (csrc/binary_cross_entropy/binary_cross_entropy.cuh)."""


def _repeated(weight: Tensor | None, x: Tensor) -> tuple[Tensor | None, int]:
    """The weight, contiguous, and after how many elements of x, in memory's order, it begins again."""
    if weight is None:
        return None, 0
    own = tuple(weight.shape)
    while own and own[0] == 1:
        own = own[1:]
    trailing = tuple(x.shape[x.dim() - len(own) :])
    if own != trailing or weight.numel() >= MAX_PERIOD:
        weight = weight.expand(x.shape)
    return weight.contiguous(), weight.numel()


def _common(
    x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[dict[str, Tensor | None], dict[str, torch.dtype], dict[str, Any]]:
    """Inputs, dtypes and numbers that both directions take."""
    inputs: dict[str, Tensor | None] = {"x": x.contiguous(), "target": target.contiguous()}
    dtypes, numbers = {"dtype": x.dtype, "target_dtype": target.dtype}, {"n": x.numel()}
    for name, given in (("weight", weight), ("pos_weight", pos_weight)):
        inputs[name], numbers[f"{name}_period"] = _repeated(given, x)
        dtypes[f"{name}_dtype"] = x.dtype if given is None else given.dtype
    return inputs, dtypes, numbers


def binary_cross_entropy_fwd(
    loss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> None:
    """Writes loss; arguments as of the op (fasttx/ops/binary_cross_entropy/op.py)."""
    inputs, dtypes, numbers = _common(x, target, weight, pos_weight)
    outputs = {"loss": loss}
    if reduction == NONE:
        inputs["partials"] = None
    else:
        outputs["partials"] = loss.new_empty(PARTIALS)
    n_partials = 0 if reduction == NONE else PARTIALS
    launch(
        "binary_cross_entropy_fwd", outputs, inputs, dtypes, **numbers, n_partials=n_partials, mean=reduction == MEAN
    )


def binary_cross_entropy_bwd(
    dx: Tensor, dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None,
    reduction: int,
) -> None:  # fmt: skip
    """Writes dx."""
    inputs, dtypes, numbers = _common(x, target, weight, pos_weight)
    inputs["dloss"] = dloss.contiguous()
    scale = 1.0 / x.numel() if reduction == MEAN else 1.0
    launch(
        "binary_cross_entropy_bwd", {"dx": dx}, inputs, dtypes, **numbers, one_dloss=reduction != NONE, scale=scale
    )
