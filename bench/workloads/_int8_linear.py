"""int8_linear at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, FP32, OpCase, Workload, randn
from ..peers import Peer, Peers


def int8_linear(name: str, n_rows: int, n_in: int, n_out: int, activation: str = "none") -> Workload:
    """The product and what follows it, of rows that are quantised already."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        rows, k, cols = {"full": (n_rows, n_in, n_out), "check": (64, n_in, n_out), "tiny": (5, 48, 40)}[size]
        x_q = randn(device, FP32, seed, rows, k).mul(40).clamp(-127, 127).to(torch.int8)
        w_q = randn(device, FP32, seed + 1, cols, k).mul(40).clamp(-127, 127).to(torch.int8)
        x_scale = randn(device, FP32, seed + 2, rows).abs() / 127
        w_scale = randn(device, FP32, seed + 3, cols).abs() / 127
        bias = randn(device, BF16, seed + 4, cols)
        x, weight = randn(device, BF16, seed + 5, rows, k), randn(device, BF16, seed + 6, cols, k)

        def half_precision(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y = F.linear(x, weight, bias)
            return F.gelu(y) if activation == "gelu" else y

        def unfused(x_q: Tensor, w_q: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor) -> Tensor:
            y = torch._int_mm(x_q, w_q.t()) * x_scale[:, None] * w_scale + bias
            return (F.gelu(y) if activation == "gelu" else y).to(BF16)

        eager, compiled = (x, weight, bias), (x_q, w_q, x_scale, w_scale, bias)
        peers: Peers = {
            "bf16 eager": Peer(half_precision, eager),
            "bf16 torch.compile": Peer(half_precision, eager, compiled=True),
            "_int_mm eager": Peer(unfused, compiled),
            "_int_mm torch.compile": Peer(unfused, compiled, compiled=True),
        }
        return OpCase([x_q, w_q, x_scale, w_scale, bias, None, activation, BF16], peers)

    return Workload(name, "int8_linear", build)
