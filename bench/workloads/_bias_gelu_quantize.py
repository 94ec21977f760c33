"""bias_gelu_quantize at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import Peer, written_out
from ._quantised import quantised_twice


def bias_gelu_quantize(
    name: str, n_rows: int, n_cols: int, dtype: torch.dtype = BF16, *, tanh: bool = False
) -> Workload:
    """Between the two int8 products of a BERT layer's MLP; the peer `two ops` launches our two kernels."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, cols = {"full": (n_rows, n_cols), "check": (64, n_cols), "tiny": (5, min(n_cols, 100))}[size]
        x, bias = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 1, cols)

        def gelu(x: Tensor, bias: Tensor) -> Tensor:
            return quantised_twice(F.gelu(x + bias, approximate="tanh" if tanh else "none"))[0]

        def two_ops(x: Tensor, bias: Tensor) -> Tensor:
            activated = torch.ops.fasttx.bias_gelu_fwd(x, bias, None, None, 0.0, tanh, "auto")
            return torch.ops.fasttx.quantize_per_token_fwd(activated, None, "auto")[0]

        peers = written_out(gelu, (x, bias), judged=False) | {"two ops": Peer(two_ops, (x, bias))}
        return OpCase([x, bias, None, tanh], peers)

    return Workload(name, "bias_gelu_quantize", build)
