"""CrossEntropyLoss, LinearCrossEntropyLoss, BCEWithLogitsLoss and KLDivLoss: torch.nn's classes on fasttx.functional.

torch has LinearCrossEntropyLoss since 2.13; with an older torch this one takes its place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..functional import _binary_cross_entropy, _cross_entropy, _kl_div, _linear_cross_entropy
from ..ops.checks import wrong


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on fasttx kernels; see :func:`fasttx.functional.cross_entropy`.

    Arguments, buffers and state dictionaries are those of torch's class.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _cross_entropy.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss on fasttx kernels; see :func:`fasttx.functional.binary_cross_entropy_with_logits`.

    Arguments, buffers and state dictionaries are those of torch's class.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _binary_cross_entropy.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class KLDivLoss(torch.nn.KLDivLoss):
    """torch.nn.KLDivLoss on fasttx kernels; see :func:`fasttx.functional.kl_div`.

    Arguments are those of torch's class.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _kl_div.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class _AsTorch213(torch.nn.Module):
    """Constructor, parameters and repr of torch 2.13's class."""

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(wrong("weight", tuple(weight.shape), f"({num_classes},)"))
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(wrong("label_smoothing", label_smoothing, "a number from 0.0 to 1.0"))
        super().__init__()
        self.register_buffer("weight", weight)
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
        self.num_classes, self.out_features, self.options = num_classes, out_features, options
        flat = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, flat, bias=bias, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, out_features={self.out_features},"
            f" bias={self.linear.bias is not None}, reduction={self.reduction}, ignore_index={self.ignore_index},"
            f" label_smoothing={self.label_smoothing}, options={self.options}"
        )


_Base: Any = getattr(torch.nn, "LinearCrossEntropyLoss", _AsTorch213)


class LinearCrossEntropyLoss(_Base):
    """torch.nn.LinearCrossEntropyLoss on fasttx kernels; see :func:`fasttx.functional.linear_cross_entropy`.

    Arguments, parameters and state dictionaries are those of the class in torch 2.13.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape, linear = (self.num_classes, *self.out_features), self.linear
        return _linear_cross_entropy.linear_cross_entropy(
            input,
            linear.weight.reshape(*shape, linear.in_features),
            target,
            linear_bias=None if linear.bias is None else linear.bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )
