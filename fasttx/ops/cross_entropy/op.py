"""The cross-entropy row of the table: class indices or probabilities, class weights, ignore_index, label smoothing.

Formulas: kernels/cross_entropy.py.  An ignored row has loss 0, lse 0 and gradient 0, whatever its logits are; a row
whose index lies outside the classes has NaN in all three, unless the check of values stops the call first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, MEAN, NONE, REDUCTIONS, check_dloss, check_target_values, not_countable, wrong
from ..registry import Direction, Impl, Op
from .composed import composed, composed_bwd, empty_gradient


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> None:
    shape, device = logits.shape, logits.device
    if len(shape) != 2 or logits.dtype not in FLOATS:
        raise ValueError(
            wrong("logits", f"{logits.dtype} {tuple(shape)}", "float32, float16 or bfloat16 (n_rows, n_cols)")
        )
    n_rows, n_cols = shape
    dtype, given = target.dtype, target.shape
    if dtype in FLOATS or target.is_floating_point():
        if given != shape or dtype not in FLOATS:
            raise ValueError(
                wrong(
                    "target",
                    f"{dtype} {tuple(given)}",
                    f"for probabilities float32, float16 or bfloat16 {tuple(shape)}",
                )
            )
    elif dtype != torch.int64 or len(given) != 1:
        raise ValueError(wrong("target", f"{dtype} {tuple(given)}", f"int64 ({n_rows},) or probabilities"))
    elif given[0] != n_rows:
        raise ValueError(f"Expected input batch_size ({n_rows}) to match target batch_size ({given[0]}).")
    if target.device != device:
        raise ValueError(wrong("target", f"a tensor on {target.device}", f"{device}, where logits is"))
    if weight is not None:
        if weight.shape != (n_cols,) or weight.dtype not in FLOATS:
            raise ValueError(wrong("weight", f"{weight.dtype} {tuple(weight.shape)}", f"floating ({n_cols},)"))
        if weight.device != device:
            raise ValueError(wrong("weight", f"a tensor on {weight.device}", f"{device}, where logits is"))
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(wrong("label_smoothing", label_smoothing, "0.0 to 1.0"))
    if reduction not in REDUCTIONS:
        raise ValueError(wrong("reduction", reduction, "0 (none), 1 (mean) or 2 (sum)"))
    if dtype is torch.int64:
        check_target_values(target, n_cols, ignore_index)


def _check_bwd(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, total_weight: Tensor,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> None:  # fmt: skip
    check_dloss(dloss, logits.shape[:1], reduction)


def _fake(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = logits.shape[0]
    loss = logits.new_empty((n_rows,) if reduction == NONE else (), dtype=torch.float32)
    return loss, logits.new_empty((n_rows,), dtype=torch.float32), logits.new_empty((), dtype=torch.float32)


# ---------------------------------------------------------------------------------------------------- reference


def _terms64(
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


def _reference(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = logits.double()
    t, divisor, ignored = _terms64(logits, target, weight, ignore_index, label_smoothing)
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


def _reference_bwd(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, total_weight: Tensor,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> Tensor:  # fmt: skip
    x = logits.double()
    t, _, ignored = _terms64(logits, target, weight, ignore_index, label_smoothing)
    p = torch.softmax(x, 1)
    g = (dloss.double() / total_weight.double()).expand(logits.shape[0])[:, None]
    return (g * (p * t.sum(1, keepdim=True) - t)).masked_fill(ignored[:, None], 0.0)


# ------------------------------------------------------------------------------------------------------- the row


def _cost(logits: Tensor, target: Tensor, weight: Tensor | None, *_: object) -> tuple[float, float]:
    """Four operations and one read an element (probabilities: eight, and their read); results of a row are 12 bytes."""
    probs = target.is_floating_point()
    moved = logits.numel() * logits.element_size() + target.numel() * target.element_size() + 8 * logits.shape[0]
    return (8.0 if probs else 4.0) * logits.numel(), float(moved)


def _cost_bwd(dloss: Tensor, logits: Tensor, target: Tensor, *_: object) -> tuple[float, float]:
    flop, moved = _cost(logits, target, None)
    return flop, moved + logits.numel() * logits.element_size()


def _supports(logits: Tensor, target: Tensor) -> str | None:
    if logits.dtype not in FLOATS:
        return f"logits: {logits.dtype}; allowed are float32, float16 and bfloat16"
    return None


_OPTIONS = "int ignore_index, float label_smoothing, int reduction, str backend"
_KEYS = ("logits", "target")

CROSS_ENTROPY = Op(
    "cross_entropy",
    about="class indices or probabilities, weights, ignore_index, label smoothing",
    fwd=Direction(
        f"(Tensor logits, Tensor target, Tensor? weight, {_OPTIONS}) -> (Tensor loss, Tensor lse, Tensor total_weight)",
        _check, _fake, composed, _reference, _KEYS, _cost,
    ),
    bwd=Direction(
        "(Tensor dloss, Tensor logits, Tensor target, Tensor? weight, Tensor lse, Tensor total_weight, "
        f"{_OPTIONS}) -> Tensor",
        _check_bwd, empty_gradient, composed_bwd, _reference_bwd, _KEYS, _cost_bwd,
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.cross_entropy:cross_entropy_fwd",
            "fasttx.kernels.cross_entropy_bwd:cross_entropy_bwd",
            _supports,
        ),
        Impl(
            "cuda",
            "fasttx.ops.cross_entropy.cuda:cross_entropy_fwd",
            "fasttx.ops.cross_entropy.cuda:cross_entropy_bwd",
            lambda logits, target: _supports(logits, target) or not_countable(logits),
        ),
    ),
)  # fmt: skip
