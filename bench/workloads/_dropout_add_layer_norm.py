"""dropout_add_layer_norm at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import liger_layer_norm, written_out


def dropout_add_layer_norm(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, dropout_p: float = 0.0, residual: bool = True
) -> Workload:
    """What ends each half of a BERT layer; without a residual plain layer norm."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x = randn(device, dtype, seed, rows, cols)
        weight, bias = randn(device, dtype, seed + 1, cols), randn(device, dtype, seed + 2, cols)
        rest = (weight, bias, randn(device, dtype, seed + 3, rows, cols)) if residual else (weight, bias)
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            z = F.dropout(x, dropout_p) if dropout_p else x
            return F.layer_norm(z if residual is None else z + residual, (cols,), weight, bias, 1e-12)

        exact = None if dropout_p else norm
        peers = written_out(norm, (x, *rest), judged=not dropout_p)
        peers |= liger_layer_norm((x, *rest), 1e-12, dropout_p, exact)
        added = rest[2] if residual else None
        # without dropout x and residual have one gradient, which is written once, as autograd asks for it
        given = {} if dropout_p else {"needs_dresidual": False}
        return OpCase([x, added, weight, bias, None, rng, dropout_p, 1e-12, dtype], peers, given=given)

    return Workload(name, "dropout_add_layer_norm", build, dropout_p > 0)
