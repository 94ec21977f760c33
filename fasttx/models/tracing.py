"""Whether what runs now is being recorded, so that nothing may depend on the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.checks import values_are_known


def captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured: Python runs once, and a replay sees other values."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def graph_in_the_making(x: Tensor) -> bool:
    """Whether a graph over `x` is being compiled, exported, traced or captured, or x is a fake tensor."""
    return captured(x) or not values_are_known(x)
