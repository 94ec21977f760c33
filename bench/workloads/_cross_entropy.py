"""cross_entropy at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import liger_cross_entropy, wide, written_out


def cross_entropy(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, smoothing: float = 0.0) -> Workload:
    """Mean loss; one target in seven is ignored."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        logits = randn(device, dtype, seed, rows, cols)
        target = torch.arange(rows, device=device) * 7919 % cols
        target[::7] = -100

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(wide(logits), target, label_smoothing=smoothing)

        peers = written_out(loss, (logits,)) | liger_cross_entropy(logits, target, smoothing, loss)
        return OpCase([logits, target, None, -100, smoothing, 1], peers, step=True)

    return Workload(name, "cross_entropy", build)
