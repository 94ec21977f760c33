"""Launchers of the Kullback-Leibler divergence in CUDA C++ (csrc/kl_div): signatures and contract are those of
kernels/kl_div.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import NONE
from ..cuda.launch import launch
from .op import divisor

PARTIALS = 4096
"""Blocks that add up a loss, at most: as in binary cross-entropy."""


def kl_div_fwd(loss: Tensor, x: Tensor, target: Tensor, reduction: int, log_target: bool) -> None:
    """Writes loss; arguments as of the op (fasttx/ops/kl_div/op.py)."""
    inputs: dict[str, Tensor | None] = {"x": x.contiguous(), "target": target.contiguous()}
    outputs = {"loss": loss}
    if reduction == NONE:
        inputs["partials"] = None
    else:
        outputs["partials"] = loss.new_empty(PARTIALS)
    launch(
        "kl_div_fwd", outputs, inputs, {"dtype": x.dtype, "target_dtype": target.dtype}, n=target.numel(),
        n_partials=0 if reduction == NONE else PARTIALS, log_target=log_target, divisor=divisor(target, reduction),
    )  # fmt: skip


def kl_div_bwd(dx: Tensor, dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> None:
    """Writes dx."""
    inputs: dict[str, Tensor | None] = {"dloss": dloss.contiguous(), "target": target.contiguous()}
    launch(
        "kl_div_bwd", {"dx": dx}, inputs, {"dtype": dtype, "target_dtype": target.dtype}, n=target.numel(),
        log_target=log_target, one_dloss=reduction != NONE, scale=1.0 / divisor(target, reduction),
    )  # fmt: skip
