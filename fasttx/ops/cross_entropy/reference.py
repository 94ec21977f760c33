"""cross_entropy in float64, from the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import MEAN, NONE


def _terms(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """float64 (n_rows, n_cols) coefficients t with loss = sum_j t_j (lse - x_j); the divisor of the mean; ignored
    rows.
    """
    n_rows, n_cols = logits.shape
    w = torch.ones(n_cols, dtype=torch.float64, device=logits.device) if weight is None else weight.double()
    if target.is_floating_point():
        t = w * (target.double() * (1.0 - smoothing) + smoothing / n_cols)
        return t, t.new_tensor(float(n_rows)), torch.zeros(n_rows, dtype=torch.bool, device=t.device)
    ignored = target == ignore_index
    classes = torch.arange(n_cols, device=logits.device)
    t = (classes == target[:, None]) * w * (1.0 - smoothing) + w * (smoothing / n_cols)
    bad = ~ignored & ((target < 0) | (target >= n_cols))
    t[bad] = float("nan")
    w_y = ((classes == target[:, None]) * w).sum(1).masked_fill(bad, float("nan"))
    return t.masked_fill(ignored[:, None], 0.0), w_y.masked_fill(ignored, 0.0).sum(), ignored


def forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = logits.double()
    t, divisor, ignored = _terms(logits, target, weight, ignore_index, label_smoothing)
    lse = torch.logsumexp(x, 1)
    lse = lse.masked_fill(lse == float("inf"), float("nan"))  # inf - inf, as log_softmax has it and logsumexp has not
    distance = lse[:, None] - x
    if not target.is_floating_point() and label_smoothing == 0.0:
        distance = torch.where(t == 0.0, 0.0, distance)  # only x_y is part of the formula; elsewhere 0 * inf is not
    loss = (t * distance).sum(1).masked_fill(ignored, 0.0)
    lse = lse.masked_fill(ignored, 0.0)
    if reduction == MEAN:
        return loss.sum() / divisor, lse, divisor
    return (loss if reduction == NONE else loss.sum()), lse, torch.ones_like(divisor)


def backward(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> Tensor:
    x = logits.double()
    t, _, ignored = _terms(logits, target, weight, ignore_index, label_smoothing)
    p = torch.softmax(x, 1)
    g = (dloss.double() / total_weight.double()).expand(logits.shape[0])[:, None]
    return (g * (p * t.sum(1, keepdim=True) - t)).masked_fill(ignored[:, None], 0.0)
