"""kl_div, with torch.nn.functional's name, semantics and errors.

Calls that the operator does not cover, wrong ones included, go to torch's own function. It computes them, or says in
its own words what is wrong.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.nn import _reduction

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS
from ..ops.exporting import called, called_backward
from ..ops.kl_div.composed import BATCHMEAN, gradient
from ..ops.kl_div.op import KL_DIV
from ._cross_entropy import composed_on_cpu, rounded
from ._routing import applied, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(KL_DIV)
_bwd = called_backward(KL_DIV)


class KLDivFunction(torch.autograd.Function):
    """Autograd over fasttx::kl_div_fwd / kl_div_bwd; saves the target, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: int, log_target: bool, backend: str) -> Tensor:
        ctx.save_for_backward(target)
        ctx.options = (reduction, log_target, x.dtype, backend)
        return _fwd(x, target, reduction, log_target, backend)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        (target,) = ctx.saved_tensors
        reduction, log_target, dtype, backend = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            return gradient(dloss, target, reduction, log_target, dtype), None, None, None, None
        return _bwd(dloss, target, reduction, log_target, dtype, backend), None, None, None, None


_record = applied(KLDivFunction)


def _to_torch(backend: str, input: Tensor, target: Tensor, reduction: str) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where the operators do."""
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        return "input or target is no Tensor"
    if composed_on_cpu(input, backend):
        return "torch's own function is faster on a CPU"
    reason = unsupported_reason(input, target)
    if reason is not None:
        return reason
    if input.dtype not in FLOATS or target.dtype not in FLOATS:
        return "input or target is not floating"
    if input.shape != target.shape:
        return "input and target differ in shape"
    if target.requires_grad and torch.is_grad_enabled():
        return "target requires a gradient"
    if reduction == "batchmean" and input.dim() == 0:
        return "batchmean of a tensor without a dim"
    return None


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    r"""Kullback-Leibler divergence of log-probabilities from a target; torch.nn.functional.kl_div.

    .. math::
        \ell = t (\log t - x), \qquad \text{with log\_target} \quad \ell = e^{t} (t - x)

    Args:
        input: the log-probabilities x, any shape. The kernels take float32, float16 and bfloat16.
        target: t, of input's shape. Torch's function broadcasts other shapes.
        size_average, reduce: as in torch. They override reduction, with torch's warning.
        reduction: "none"; "sum"; "batchmean", the sum divided by the length of the first dim, which is the divergence;
            or "mean", the sum divided by the number of elements. "mean" warns, as it does in torch.
        log_target: whether target holds logarithms of probabilities.

    Returns:
        Tensor () or of input's shape, in the dtype that both promote to: float32 under autocast.

    Raises:
        BackendError: a forced backend cannot run the call.
        Every wrong call raises torch's own error.

    Saved for backward: target itself. input is not saved, because the gradient, -t or -exp(t), does not depend on it.

    Numerics: computes in float32, rounds each loss once, and takes the mean before that. Sums are deterministic. Where
    the target is 0 the loss is 0, and NaN for an input of -inf, as in torch. Torch's own function runs for targets that
    require a gradient, size_average, reduce, shapes that differ, every call on a CPU, and whatever
    :func:`cross_entropy` leaves to torch.

    Source: Kullback and Leibler, "On Information and Sufficiency", 1951; for distillation Hinton et al., "Distilling
    the Knowledge in a Neural Network", 2015.
    """
    backend = forced_backend()
    legacy = size_average is not None or reduce is not None
    reason = "size_average or reduce is given" if legacy else _to_torch(backend, input, target, reduction)
    if reason is not None:
        loss = torch_functional.kl_div(input, target, size_average, reduce, reduction, log_target)
        refuse_if_forced("kl_div", reason, input, backend)
        return loss
    if reduction == "mean":
        warnings.warn(
            "kl_div: reduction='mean' divides by the number of elements; 'batchmean' gives the divergence of a row",
            stacklevel=2,
        )
    number = BATCHMEAN if reduction == "batchmean" else _reduction.get_enum(reduction)
    if records_gradients(input):
        loss = _record(input, target, number, log_target, backend)
    else:
        loss = _fwd(input, target, number, log_target, backend)
    return rounded(loss, input, target)
