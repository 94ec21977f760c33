"""CrossEntropyLoss, BCEWithLogitsLoss and KLDivLoss: torch.nn's classes with our functions inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import binary_losses, divergence, losses
from .scripting import prepare_scriptable


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on fasttx kernels; see :func:`fasttx.functional.cross_entropy`.

    Arguments, buffers and state_dict are torch's.
    """

    __prepare_scriptable__ = prepare_scriptable

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return losses.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss on fasttx kernels; see :func:`fasttx.functional.binary_cross_entropy_with_logits`.

    Arguments, buffers and state_dict are torch's.
    """

    __prepare_scriptable__ = prepare_scriptable

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_losses.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class KLDivLoss(torch.nn.KLDivLoss):
    """torch.nn.KLDivLoss on fasttx kernels; see :func:`fasttx.functional.kl_div`."""

    __prepare_scriptable__ = prepare_scriptable

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return divergence.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
