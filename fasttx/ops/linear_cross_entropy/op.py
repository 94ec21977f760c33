"""The row of linear cross-entropy: the loss of logits x weight^T + bias that are never in memory as a whole.

Formulas: kernels/linear_cross_entropy.py.  Class indices only.  An ignored row has loss 0, lse 0 and gradient 0; a row
whose index lies outside the classes has NaN in all three, unless the check of values stops the call first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, NONE, REDUCTIONS, check_dloss, check_target_values, wrong
from ..registry import Direction, Impl, Op
from . import reference
from .composed import composed, composed_bwd


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    dtype, device = x.dtype, x.device
    if x.dim() != 2 or dtype not in FLOATS:
        raise ValueError(wrong("x", f"{dtype} {tuple(x.shape)}", "float32, float16 or bfloat16 (n_rows, in_features)"))
    n_rows, in_features = x.shape
    if weight.dim() != 2 or weight.shape[1] != in_features or weight.shape[0] == 0 or weight.dtype != dtype:
        raise ValueError(
            wrong(
                "weight",
                f"{weight.dtype} {tuple(weight.shape)}",
                f"{dtype} (n_cols, {in_features}) of at least one row",
            )
        )
    n_cols = weight.shape[0]
    if bias is not None and (bias.shape != (n_cols,) or bias.dtype != dtype):
        raise ValueError(wrong("bias", f"{bias.dtype} {tuple(bias.shape)}", f"{dtype} ({n_cols},)"))
    if target.dtype != torch.int64 or target.dim() != 1:
        raise ValueError(wrong("target", f"{target.dtype} {tuple(target.shape)}", f"int64 ({n_rows},)"))
    if target.shape[0] != n_rows:
        raise ValueError(f"Expected input batch_size ({n_rows}) to match target batch_size ({target.shape[0]}).")
    if class_weight is not None and (class_weight.shape != (n_cols,) or class_weight.dtype not in FLOATS):
        raise ValueError(
            wrong("class_weight", f"{class_weight.dtype} {tuple(class_weight.shape)}", f"floating ({n_cols},)")
        )
    for name, t in (("weight", weight), ("bias", bias), ("target", target), ("class_weight", class_weight)):
        if t is not None and t.device != device:
            raise ValueError(wrong(name, f"a tensor on {t.device}", f"{device}, where x is"))
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(wrong("label_smoothing", label_smoothing, "0.0 to 1.0"))
    if reduction not in REDUCTIONS:
        raise ValueError(wrong("reduction", reduction, "0 (none), 1 (mean) or 2 (sum)"))
    check_target_values(target, n_cols, ignore_index)


def _check_bwd(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    needs_dbias: bool,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    check_dloss(dloss, x.shape[:1], reduction)
    if needs_dbias and bias is None:
        raise ValueError(wrong("needs_dbias", "True", "False without bias"))


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = x.shape[0]
    loss = x.new_empty((n_rows,) if reduction == NONE else (), dtype=torch.float32)
    return loss, x.new_empty((n_rows,), dtype=torch.float32), x.new_empty((), dtype=torch.float32)


def _fake_bwd(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    needs_dbias: bool,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape if needs_dx else (0,), weight.shape if needs_dweight else (0,))
    dx, dweight = (x.new_empty(shape) for shape in shapes)
    return dx, dweight, x.new_empty((weight.shape[0] if needs_dbias else 0,))


# ------------------------------------------------------------------------------------------------------- the row


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *_: object) -> tuple[float, float]:
    """One product and four operations a logit; x and weight are read once, the logits never leave the chip."""
    n_rows, in_features = x.shape
    logits = n_rows * weight.shape[0]
    moved = (x.numel() + weight.numel() + (0 if bias is None else bias.numel())) * x.element_size()
    return (2.0 * in_features + 4.0) * logits if in_features else 0.0, float(moved + 16 * n_rows)


def _cost_bwd(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    *_: object,
) -> tuple[float, float]:
    """The product anew and one for each gradient."""
    flop, moved = _cost(x, weight, bias, target)
    products = needs_dx + needs_dweight
    written = x.numel() * needs_dx + weight.numel() * needs_dweight
    return flop + products * 2.0 * x.numel() * weight.shape[0], moved + float(written * x.element_size())


def _supports(x: Tensor, weight: Tensor, target: Tensor) -> str | None:
    if x.dtype not in FLOATS:
        return f"x: {x.dtype}; allowed are float32, float16 and bfloat16"
    return None


_GIVEN = "Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight"
_OPTIONS = "int ignore_index, float label_smoothing, int reduction, str backend"
_KEYS = ("x", "weight", "target")

LINEAR_CROSS_ENTROPY = Op(
    "linear_cross_entropy",
    about="cross-entropy of `x weight^T + bias` with class indices; only some rows' logits exist at a time",
    fwd=Direction(
        f"({_GIVEN}, {_OPTIONS}) -> (Tensor loss, Tensor lse, Tensor total_weight)",
        _check,
        _fake,
        composed,
        reference.forward,
        _KEYS,
        _cost,
    ),
    bwd=Direction(
        f"(Tensor dloss, {_GIVEN}, Tensor lse, Tensor total_weight, bool needs_dx, bool needs_dweight, "
        f"bool needs_dbias, {_OPTIONS}) -> (Tensor dx, Tensor dweight, Tensor dbias)",
        _check_bwd,
        _fake_bwd,
        composed_bwd,
        reference.backward,
        _KEYS,
        _cost_bwd,
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.linear_cross_entropy:linear_cross_entropy_fwd",
            "fasttx.kernels.linear_cross_entropy:linear_cross_entropy_bwd",
            _supports,
        ),
        Impl(
            "cuda",
            "fasttx.ops.linear_cross_entropy.cuda:linear_cross_entropy_fwd",
            "fasttx.ops.linear_cross_entropy.cuda:linear_cross_entropy_bwd",
            _supports,
        ),
    ),
)
