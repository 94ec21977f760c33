"""DistillationLoss and HiddenStateLoss: what a student learns from a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import _distillation


class DistillationLoss(torch.nn.Module):
    """KL divergence to a teacher's softened logits, and cross-entropy with the labels, with neither softmax in memory.

    See :func:`fasttx.functional.distillation_loss`, which has the formula.

    Args:
        temperature, alpha: of the divergence, and the teacher's share of the loss.
        ignore_index: the label of rows that count in neither term.
        reduction: ``"mean"`` over the rows that count, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an option is not as there.
    """

    def __init__(
        self, temperature: float = 2.0, alpha: float = 0.5, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _distillation.check_options(temperature, alpha, reduction)
        self.temperature, self.alpha, self.ignore_index, self.reduction = temperature, alpha, ignore_index, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        """(..., n_classes) twice, and int64 (...) or None -> the loss."""
        return _distillation.distillation_loss(
            *(student_logits, teacher_logits, target, self.temperature, self.alpha, self.ignore_index, self.reduction)
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, alpha={self.alpha}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}"
        )


class HiddenStateLoss(torch.nn.Module):
    """How far a student's hidden states are from a teacher's; see :func:`fasttx.functional.hidden_state_loss`.

    Args:
        kind: ``"mse"`` or ``"cosine"``.

    Raises:
        ValueError: it is neither.
    """

    def __init__(self, kind: str = "mse") -> None:
        super().__init__()
        _distillation.check_kind(kind)
        self.kind = kind

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(..., width) twice, and (...) or None -> the loss."""
        return _distillation.hidden_state_loss(student_hidden, teacher_hidden, attention_mask, self.kind)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"
