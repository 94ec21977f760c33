"""binary_cross_entropy_with_logits, with torch.nn.functional's name, semantics and errors.

Calls that the operator does not cover go to torch's own function, as in _cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.nn import _reduction

from ..ops.backends import forced_backend
from ..ops.binary_cross_entropy.op import BINARY_CROSS_ENTROPY
from ..ops.checks import FLOATS, broadcasts
from ..ops.exporting import called, called_backward
from ._cross_entropy import FASTER_ON_A_CPU, REDUCTIONS, composed_on_cpu, rounded
from ._routing import applied, records_gradients, refuse_if_forced, unsupported_reason

_bce_fwd = called(BINARY_CROSS_ENTROPY)
_bce_bwd = called_backward(BINARY_CROSS_ENTROPY)


class BinaryCrossEntropyFunction(torch.autograd.Function):
    """Autograd over fasttx::binary_cross_entropy_fwd / binary_cross_entropy_bwd; saves its four tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        reduction: int,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x, target, weight, pos_weight)
        ctx.reduction, ctx.backend = reduction, backend
        return _bce_fwd(x, target, weight, pos_weight, reduction, backend)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, target, weight, pos_weight = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            w, v = (None if t is None else t.float() for t in (weight, pos_weight))
            loss = torch_functional.binary_cross_entropy_with_logits(
                x.float(), target.float(), w, reduction=REDUCTIONS[ctx.reduction], pos_weight=v
            )
            return (*torch.autograd.grad(loss, x, dloss, create_graph=True), None, None, None, None, None)
        dx = _bce_bwd(dloss, x, target, weight, pos_weight, ctx.reduction, ctx.backend)
        return dx, None, None, None, None, None


_record = applied(BinaryCrossEntropyFunction)


def _binary_cross_entropy_to_torch(backend: str, input: Tensor, *others: Tensor | None) -> str | None:
    """Why torch's own function takes this call; on a CPU it is what our composition consists of."""
    if composed_on_cpu(input, backend):
        return FASTER_ON_A_CPU
    reason = unsupported_reason(input, *others)
    if reason is not None:
        return reason
    dtype, shape = input.dtype, input.shape
    if dtype not in FLOATS:
        return "input is not floating"
    for t in others:
        if t is None:
            continue
        if t.dtype != dtype and not (t.dtype in FLOATS and torch.is_autocast_enabled(input.device.type)):
            return "target or a weight has another dtype than input"
        if t.requires_grad and torch.is_grad_enabled():
            return "target or a weight requires a gradient"
        if t.shape != shape and not broadcasts(t.shape, shape):
            return "a weight does not broadcast to input"
    return None


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy of logits; torch.nn.functional.binary_cross_entropy_with_logits.

    .. math::
        \ell = w \left( (1 - y) x + (1 + (v - 1) y) \log(1 + e^{-x}) \right)

    Args:
        input: the logits x, any shape. The kernels take float32, float16 and bfloat16.
        target: y, of input's shape.
        weight: w, broadcastable to input.
        size_average, reduce: as in torch. They override reduction, with torch's warning.
        reduction: "none", "mean" or "sum".
        pos_weight: v, the weight of positive targets, broadcastable to input.

    Returns:
        Tensor () or of input's shape, in the dtype that torch gives it: float32 under autocast.

    Raises:
        ValueError: target and input differ in shape.
        BackendError: a forced backend cannot run the call.
        Every other wrong call raises torch's own error.

    Saved for backward: the four tensors themselves. Under autocast no float32 copy is made, and the gradient has
    input's dtype.

    Numerics: computes in float32, takes no exponential of a positive number, and keeps log(1 + e) exact to a rounding
    for small e. Sums are deterministic. Torch's own function runs for the gradients of target and weights, mixed dtypes
    outside autocast, every call on a CPU, and whatever :func:`cross_entropy` leaves to torch. Double backward
    differentiates torch's function.
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return _binary_cross_entropy(input, target, weight, reduction, pos_weight)


def _binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """binary_cross_entropy_with_logits, forced to `backend`; None stands for what is in force in the process."""
    backend = backend or forced_backend()
    number = _reduction.get_enum(reduction)
    reason: str | None = "target and input differ in shape"
    if target.size() == input.size():
        reason = _binary_cross_entropy_to_torch(backend, input, target, weight, pos_weight)
    if reason is not None:
        loss = torch_functional.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )
        refuse_if_forced("binary_cross_entropy_with_logits", reason, input, backend)
        return loss
    if records_gradients(input):
        loss = _record(input, target, weight, pos_weight, number, backend)
    else:
        loss = _bce_fwd(input, target, weight, pos_weight, number, backend)
    return rounded(loss, input)
