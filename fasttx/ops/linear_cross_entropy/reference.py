"""linear_cross_entropy in float64, from the formula."""

from __future__ import annotations

from torch import Tensor

from ..cross_entropy.op import CROSS_ENTROPY


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = x.double() @ weight.double().t()
    return logits if bias is None else logits + bias.double()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    logits = _logits(x, weight, bias)
    return CROSS_ENTROPY.fwd.reference(logits, target, class_weight, ignore_index, label_smoothing, reduction)


def backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    d = CROSS_ENTROPY.directions["bwd"].reference(
        dloss,
        _logits(x, weight, bias),
        target,
        class_weight,
        lse,
        total_weight,
        ignore_index,
        label_smoothing,
        reduction,
    )
    none = d.new_empty((0,))
    dx = d @ weight.double() if needs_dx else none
    return dx, d.t() @ x.double() if needs_dweight else none, d.sum(0) if needs_dbias else none
