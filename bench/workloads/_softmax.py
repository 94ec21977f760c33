"""softmax at given shapes, and its peers."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import liger_softmax, written_out


def softmax(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (4, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        fn = functools.partial(F.softmax, dim=-1)
        peers = written_out(fn, (x,)) | liger_softmax(x, fn)
        return OpCase([x, None, None, 1.0, 0.0, False], peers)

    return Workload(name, "softmax", build)
