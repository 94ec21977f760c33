"""binary_cross_entropy composed of PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import MEAN


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()


def forward(x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int) -> Tensor:
    return torch.binary_cross_entropy_with_logits(
        x.float(), target.float(), _float(weight), _float(pos_weight), reduction
    ).contiguous()


def backward(
    dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> Tensor:
    y = target.float()
    if pos_weight is None:
        d = torch.sigmoid(x.float()).sub_(y)
    else:
        vy = y * pos_weight.float()
        d = torch.sigmoid(x.float()).mul_(vy + 1.0 - y).sub_(vy)
    if weight is not None:
        d.mul_(weight.float())
    d.mul_(dloss / max(x.numel(), 1) if reduction == MEAN else dloss)
    return d.to(x.dtype).contiguous()
