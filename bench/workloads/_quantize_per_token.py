"""quantize_per_token at given shapes, and its peers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import written_out


def quantize_per_token(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)

        def quantise(x: Tensor) -> Tensor:
            absmax = x.float().abs().amax(-1, keepdim=True)
            return (x.float() * (127.0 / absmax)).round().to(torch.int8)

        return OpCase([x, None], written_out(quantise, (x,), judged=False))

    return Workload(name, "quantize_per_token", build)
