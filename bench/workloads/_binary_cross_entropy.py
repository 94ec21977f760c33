"""binary_cross_entropy at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import wide, written_out


def binary_cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        target = (randn(device, dtype, seed + 1, rows, cols) > 0).to(dtype)

        def loss(x: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(wide(x), target.to(wide(x).dtype))

        return OpCase([x, target, None, None, 1], written_out(loss, (x,)))

    return Workload(name, "binary_cross_entropy", build)
