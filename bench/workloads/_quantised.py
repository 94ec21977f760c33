"""int8 rows as users write them, for the peers of the ops that quantise."""

from __future__ import annotations

import torch
from torch import Tensor


def quantised_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, as users write it."""
    x_scale = x.float().abs().amax(-1, keepdim=True) / 127.0
    return (x.float() / x_scale).round().to(torch.int8), x_scale
