"""LayerNorm, torch.nn's class on fasttx.functional, and DropoutAddLayerNorm: dropout, sum and norm in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import _dropout_add_layer_norm, _layer_norm
from ..functional._checks import check_dropout_p
from ..ops.checks import is_index, wrong


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm on fasttx kernels; see :func:`fasttx.functional.layer_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as in torch.nn.LayerNorm.
    """

    _fasttx_original = torch.nn.LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        return _layer_norm.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class DropoutAddLayerNorm(torch.nn.LayerNorm):
    """Layer norm of dropout(input) + residual; see :func:`fasttx.functional.dropout_add_layer_norm`.

    It is a torch.nn.LayerNorm with the same parameters, so state dictionaries fit either.

    Args:
        normalized_shape: the size of the last dimension, an int or a sequence of one.
        p: probability of zeroing an element of input in training, in [0, 1).
        eps, elementwise_affine, bias, device, dtype: as in torch.nn.LayerNorm.

    Raises:
        TypeError, ValueError: normalized_shape is not one size, or p not a number in [0, 1).
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        p: float = 0.1,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not is_index(normalized_shape):
            if not isinstance(normalized_shape, Sequence) or isinstance(normalized_shape, str):
                raise TypeError(wrong("normalized_shape", repr(normalized_shape), "one size"))
            if len(normalized_shape) != 1:
                raise ValueError(wrong("normalized_shape", tuple(normalized_shape), "one size"))
        check_dropout_p(p, "p")
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.p = p

    def forward(self, input: Tensor, residual: Tensor | None = None, row_index: Tensor | None = None) -> Tensor:
        """(..., n), and a residual of that shape -> (..., n). Equal numbers in `row_index` drop the same columns."""
        return _dropout_add_layer_norm.dropout_add_layer_norm(
            input,
            residual,
            self.weight,
            self.bias,
            dropout_p=self.p,
            eps=self.eps,
            training=self.training,
            row_index=row_index,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
