"""Small calls of kl_div."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    def logarithms(*shape: int) -> Tensor:
        return draw.randn(*shape, dtype=torch.float32).log_softmax(-1).to(draw.dtype)

    yield "check", (logarithms(37, 129), logarithms(37, 129).exp(), 3, False)
    x, target = logarithms(5, 37), logarithms(5, 37)
    yield "batchmean", (x, target.exp(), 3, False)
    yield "mean-logarithms", (x, target, 1, True)
    yield "none-mixed", (x, torch.eye(5, 37, device=draw.device), 0, False)
    yield "sum-strided", (x.T, target.T, 2, True)
    yield "empty", (x[:0], target[:0], 2, False)
    yield "smallest", (logarithms(2, 8), logarithms(2, 8).exp(), 3, False)
