"""Softmax and LogSoftmax: torch.nn's classes on fasttx.functional."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import _softmax


class Softmax(torch.nn.Softmax):
    """torch.nn.Softmax on fasttx kernels; see :func:`fasttx.functional.softmax`.

    Args:
        dim: the dimension that sums to 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _softmax.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """torch.nn.LogSoftmax on fasttx kernels; see :func:`fasttx.functional.log_softmax`.

    Args:
        dim: the dimension whose exponentials sum to 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _softmax.log_softmax(input, self.dim, _stacklevel=5)
