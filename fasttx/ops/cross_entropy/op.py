"""The cross-entropy row of the table: class indices or probabilities, class weights, ignore_index, label smoothing.

Formulas: kernels/cross_entropy.py.  An ignored row has loss 0, lse 0 and gradient 0, whatever its logits are; a row
whose index lies outside the classes has NaN in all three, unless the check of values stops the call first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, NONE, REDUCTIONS, check_dloss, check_target_values, not_countable, wrong
from ..registry import Direction, Impl, Op
from . import reference
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
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    check_dloss(dloss, logits.shape[:1], reduction)


def _fake(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = logits.shape[0]
    loss = logits.new_empty((n_rows,) if reduction == NONE else (), dtype=torch.float32)
    return loss, logits.new_empty((n_rows,), dtype=torch.float32), logits.new_empty((), dtype=torch.float32)


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
        _check,
        _fake,
        composed,
        reference.forward,
        _KEYS,
        _cost,
    ),
    bwd=Direction(
        "(Tensor dloss, Tensor logits, Tensor target, Tensor? weight, Tensor lse, Tensor total_weight, "
        f"{_OPTIONS}) -> Tensor",
        _check_bwd,
        empty_gradient,
        composed_bwd,
        reference.backward,
        _KEYS,
        _cost_bwd,
        compared_by="element",
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
)
