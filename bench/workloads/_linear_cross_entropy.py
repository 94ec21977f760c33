"""linear_cross_entropy at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import vocabulary_losses, wide, written_out


def linear_cross_entropy(
    name: str, n_rows: int, n_cols: int, in_features: int, dtype: torch.dtype = BF16, *, bias: bool = True
) -> Workload:
    """Mean loss of a vocabulary; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, in_features)
        rest = (randn(device, dtype, seed + 2, cols),) if bias else ()
        weight = randn(device, dtype, seed + 1, cols, in_features) * in_features**-0.5
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.cross_entropy(wide(F.linear(x, weight, bias)), target)

        inputs = (x, weight, *rest)
        peers = written_out(loss, inputs) | vocabulary_losses(inputs, target, loss)
        return OpCase([x, weight, rest[0] if bias else None, target, None, -100, 0.0, 1], peers, step=True)

    return Workload(name, "linear_cross_entropy", build)
