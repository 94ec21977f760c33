"""Tensors between numbers that nobody may read or write over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GUARD = 24
"""Elements on either side."""


def surrounded(shape: tuple[int, ...], fill: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """A contiguous float32 tensor of `shape`, and the buffer of `fill` that it lies in."""
    numel = math.prod(shape)
    buffer = torch.full((numel + 2 * GUARD,), fill, device=device)
    return buffer[GUARD : GUARD + numel].view(shape), buffer
