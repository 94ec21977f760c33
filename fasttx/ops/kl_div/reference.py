"""kl_div in float64, from the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from .composed import divisor, reduced


def forward(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> Tensor:
    x, t = x.double(), target.double()
    return reduced(t.exp() * (t - x) if log_target else torch.xlogy(t, t) - t * x, reduction)


def backward(dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> Tensor:
    t = target.double()
    return -(t.exp() if log_target else t) * dloss.double() / divisor(target, reduction)
