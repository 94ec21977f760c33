"""kl_div composed of PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import MEAN, NONE

BATCHMEAN = 3
"""The sum divided by the length of the first dim; 0, 1 and 2 are PyTorch's own numbers."""


def reduced(loss: Tensor, reduction: int) -> Tensor:
    if reduction == NONE:
        return loss.contiguous()
    if reduction == MEAN:
        return loss.mean()
    return loss.sum() / loss.shape[0] if reduction == BATCHMEAN else loss.sum()


def forward(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> Tensor:
    return reduced(torch.kl_div(x.float(), target.float(), NONE, log_target=log_target), reduction)


def divisor(target: Tensor, reduction: int) -> int:
    """What the sum is divided by."""
    if reduction in (MEAN, BATCHMEAN):
        return max(target.numel() if reduction == MEAN else target.shape[0], 1)
    return 1


def gradient(dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> Tensor:
    """dx by PyTorch's operators, which can be differentiated again."""
    t = target.float().exp() if log_target else target.float()
    return (t * (dloss / -divisor(target, reduction))).to(dtype).contiguous()
