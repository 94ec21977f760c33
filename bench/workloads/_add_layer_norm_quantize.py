"""add_layer_norm_quantize at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import Peer, written_out
from ._quantised import quantised_twice


def add_layer_norm_quantize(name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16) -> Workload:
    """What ends each half of a BERT layer whose products are int8; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, residual = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 3, rows, cols)
        weight, bias = randn(device, dtype, seed + 1, cols), randn(device, dtype, seed + 2, cols)

        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            out = F.layer_norm(x + residual, (cols,), weight, bias, 1e-12)
            return quantised_twice(out)[0]

        def two_ops(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            ops, plain = torch.ops.fasttx, (None, None, 0.0)
            out = ops.dropout_add_layer_norm_fwd(x, residual, weight, bias, *plain, 1e-12, dtype, "auto")[0]
            return ops.quantize_per_token_fwd(out, None, "auto")[0]

        inputs = (x, weight, bias, residual)
        peers = written_out(norm, inputs, judged=False) | {"two ops": Peer(two_ops, inputs)}
        return OpCase([x, residual, weight, bias, None, 1e-12, dtype], peers)

    return Workload(name, "add_layer_norm_quantize", build)
