"""bias_gelu at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import written_out


def bias_gelu(
    name: str,
    n_rows: int,
    n_cols: int,
    dtype: torch.dtype = BF16,
    *,
    dropout_p: float = 0.0,
    tanh: bool = False,
    bias: bool = True,
) -> Workload:
    """What follows the first product of a BERT layer's MLP; without a bias plain GELU."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        rest = (randn(device, dtype, seed + 1, cols),) if bias else ()
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
            out = F.gelu(x if bias is None else x + bias, approximate="tanh" if tanh else "none")
            return F.dropout(out, dropout_p) if dropout_p else out

        peers = written_out(gelu, (x, *rest), judged=not dropout_p)
        peers["liger"] = "has GEGLU alone, whose GELU multiplies a second input"
        return OpCase([x, rest[0] if bias else None, None, rng, dropout_p, tanh], peers)

    return Workload(name, "bias_gelu", build, dropout_p > 0)
