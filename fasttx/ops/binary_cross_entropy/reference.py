"""binary_cross_entropy in float64, from the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import MEAN, NONE


def forward(x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int) -> Tensor:
    x, y = x.double(), target.double()
    v = 1.0 if pos_weight is None else pos_weight.double()
    w = 1.0 if weight is None else weight.double()
    loss = w * ((1.0 - y) * x + (1.0 + (v - 1.0) * y) * torch.logaddexp(-x, torch.zeros_like(x)))
    return loss if reduction == NONE else loss.mean() if reduction == MEAN else loss.sum()


def backward(
    dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> Tensor:
    y = target.double()
    vy = y if pos_weight is None else y * pos_weight.double()
    w = 1.0 if weight is None else weight.double()
    g = dloss.double() / (x.numel() if reduction == MEAN else 1)
    return g * w * ((vy + 1.0 - y) * torch.sigmoid(x.double()) - vy)
