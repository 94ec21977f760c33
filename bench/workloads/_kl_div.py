"""kl_div at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import Peer


def kl_div(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """Distillation: log-probabilities of a student against those of its teacher."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, target = (randn(device, dtype, s, rows, cols).log_softmax(-1) for s in (seed, seed + 1))

        def loss(x: Tensor) -> Tensor:
            return F.kl_div(x.float(), target.float(), reduction="batchmean", log_target=True)

        peers = {"eager": Peer(loss, (x,)), "torch.compile": Peer(loss, (x,), compiled=True)}
        return OpCase([x, target, 3, True], peers)

    return Workload(name, "kl_div", build)
