"""linear_cross_entropy: the loss of hidden states against a vocabulary, without the matrix of logits.

torch.nn.functional has it from torch 2.13 on; with an older torch the same function is here under the same name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.nn import _reduction

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS, is_index, is_number, values_are_known, wrong
from ..ops.exporting import called, called_backward, exported_as_torch
from ..ops.forms import AGAIN, KEPT, LOGITS
from ..ops.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from ._routing import EXPORTED, aliases, applied, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(LINEAR_CROSS_ENTROPY)
_bwd = called_backward(LINEAR_CROSS_ENTROPY)
_NAMES = ("none", "mean", "sum")  # by torch's numbers

KEPT_ON_CPU = 1 << 28
"""Bytes of logits up to which, on a CPU, they are kept for backward: computing them anew costs a third of the step."""


class LinearCrossEntropyFunction(torch.autograd.Function):
    """Autograd over fasttx::linear_cross_entropy_fwd / linear_cross_entropy_bwd.

    Saves what it was given, a float32 lse a row and the divisor of the mean; no logits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
        ignore_index: int, label_smoothing: float, reduction: int, backend: str,
    ) -> Tensor:  # fmt: skip
        options = (ignore_index, label_smoothing, reduction)
        loss, lse, total_weight = _fwd(x, weight, bias, target, class_weight, *options, backend)
        ctx.save_for_backward(x, weight, bias, target, class_weight, lse, total_weight)
        ctx.options, ctx.backend = options, backend
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, target, class_weight, lse, total_weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        rest = (None,) * 6
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            ignore_index, smoothing, reduction = ctx.options
            x, weight, bias = aliases(x, weight, bias)
            loss = torch_functional.cross_entropy(
                torch_functional.linear(x.float(), weight.float(), None if bias is None else bias.float()),
                target, None if class_weight is None else class_weight.float(),
                ignore_index=ignore_index, reduction=_NAMES[reduction], label_smoothing=smoothing,
            )  # fmt: skip
            inputs = [t for t, need in zip((x, weight, bias), needed, strict=True) if need]
            found = iter(torch.autograd.grad(loss, inputs, dloss, create_graph=True))
            return (*(next(found) if need else None for need in needed), *rest)
        grads = _bwd(
            dloss, x, weight, bias, target, class_weight, lse, total_weight, *needed, *ctx.options, ctx.backend
        )
        return (*(grad if need else None for grad, need in zip(grads, needed, strict=True)), *rest)


_record = applied(LinearCrossEntropyFunction)


def _as_torch_2_13(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int | None = None,
    label_smoothing: float = 0.0, options: Any = None,
) -> Tensor:  # fmt: skip
    """torch 2.13's function from those of older versions; `options`, which bounds its memory, is not used."""
    if input.dim() not in (1, 2):
        raise RuntimeError(wrong("input", tuple(input.shape), "(in_features,) or (N, in_features)"))
    if linear_weight.dim() < 2:
        raise RuntimeError(wrong("linear_weight", tuple(linear_weight.shape), "(C, ..., in_features)"))
    in_features, shape = input.shape[-1], linear_weight.shape
    if shape[-1] != in_features:
        allowed = f"(..., {in_features}), as input is {tuple(input.shape)}"
        raise RuntimeError(wrong("linear_weight", tuple(shape), allowed))
    if linear_bias is not None and linear_bias.shape != shape[:-1]:
        raise RuntimeError(wrong("linear_bias", tuple(linear_bias.shape), f"{tuple(shape[:-1])}"))
    if len(shape) > 2 and input.dim() == 1:
        raise RuntimeError(wrong("input", tuple(input.shape), "(N, in_features) for a K-dimensional loss"))
    logits_shape = (*input.shape[:-1], *shape[:-1])
    if ignore_index is not None and tuple(target.shape) == logits_shape:
        raise RuntimeError(wrong("ignore_index", ignore_index, "None where target holds probabilities"))
    flat = math.prod(shape[:-1])
    logits = torch_functional.linear(
        input, linear_weight.reshape(flat, in_features), None if linear_bias is None else linear_bias.reshape(flat)
    )
    return torch_functional.cross_entropy(
        logits.reshape(logits_shape), target, weight, ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip


_torch_linear_cross_entropy = getattr(torch_functional, "linear_cross_entropy", _as_torch_2_13)


def _to_torch(
    input: Tensor, linear_weight: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None,
    ignore_index: int | None, label_smoothing: float,
) -> str | None:  # fmt: skip
    """Why torch's own function takes this call, a wrong one included; None where the operators do."""
    if not all(isinstance(t, Tensor) for t in (input, linear_weight, target)):
        return "input, linear_weight or target is no Tensor"
    reason = unsupported_reason(input, linear_weight, target, bias, weight)
    if reason is not None:
        return reason
    if input.dim() != 2 or linear_weight.dim() != 2:
        return "input or linear_weight has not two dims; allowed are (N, in_features) and (C, in_features)"
    if target.dtype != torch.int64 or target.dim() != 1:
        return "target is not int64 (N,)"
    if not is_number(label_smoothing) or not label_smoothing <= 1.0:
        return "label_smoothing is no number up to 1"
    if ignore_index is not None and not is_index(ignore_index):
        return "ignore_index is no int"
    n_cols, in_features = linear_weight.shape
    if input.shape[1] != in_features or (bias is not None and bias.shape != (n_cols,)):
        return "in_features of input and linear_weight, or the size of linear_bias, do not agree"
    autocast = torch.is_autocast_enabled(input.device.type)
    for t in (input, linear_weight, bias):
        if t is not None and (t.dtype not in FLOATS or (t.dtype != input.dtype and not autocast)):
            return "input, linear_weight and linear_bias have not one floating dtype"
    if weight is not None:
        if weight.dim() != 1 or weight.shape[0] != n_cols or weight.dtype not in FLOATS:
            return "weight is not floating (C,)"
        if weight.requires_grad:
            return "weight requires a gradient"
        if weight.dtype != input.dtype and not autocast:
            return "weight has another dtype than input"
    if torch.compiler.is_compiling():
        return None  # sizes may be unknown; the operator itself handles empty batches and checks the others
    if input.numel() == 0 or n_cols == 0 or target.shape[0] != input.shape[0]:
        return "input or linear_weight has no element, or target another batch size"
    return None


def _labelled_rows_on_cpu(
    input: Tensor, linear_weight: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None,
    ignore_index: int, smoothing: float, reduction: str,
) -> Tensor | None:  # fmt: skip
    """The loss from torch's functions on the rows that are not ignored; None where their logits are too many to keep.

    Autograd then has the logits when it comes to backward, and one product of four less to compute.
    """
    kept = (target != ignore_index).nonzero().squeeze(1)
    n_rows, n_kept = target.shape[0], kept.numel()
    n_bytes = n_kept * linear_weight.shape[0] * input.element_size()
    if n_bytes > KEPT_ON_CPU or LOGITS.takes(input, KEPT, n_bytes) == AGAIN:
        return None
    whole = n_kept == n_rows
    loss = torch_functional.cross_entropy(
        torch_functional.linear(input if whole else input[kept], linear_weight, bias),
        target if whole else target[kept], weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=smoothing,
    )  # fmt: skip
    return loss.new_zeros(n_rows).index_copy(0, kept, loss) if reduction == "none" and not whole else loss


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    r"""Cross-entropy of linear(input, linear_weight, linear_bias) without the matrix of logits; torch 2.13's function.

    .. math::
        x = W h + b, \quad
        \ell = (1 - \epsilon) w_y (\mathrm{lse} - x_y) + \frac{\epsilon}{C} \sum_j w_j (\mathrm{lse} - x_j), \quad
        \mathrm{lse} = \log \sum_j \exp(x_j)

    Args:
        input: h, (N, in_features). The kernels take float32, float16 and bfloat16.
        linear_weight: W, (C, in_features), in input's dtype (under autocast in any).
        target: int64 (N,), class indices.
        linear_bias: b, (C,), in input's dtype.
        weight: w, (C,), the weight of each class, in input's dtype (under autocast in any).
        reduction: "none", "mean" or "sum".
        ignore_index: targets with this value have loss 0 and gradient 0, and do not count in the mean; None is -100.
        label_smoothing: epsilon, in [0, 1].
        options: torch's LinearCrossEntropyOptions, handed on where torch's function runs. fasttx bounds its memory by
            itself and does not read them.

    Returns:
        Tensor () or (N,), in input's dtype; float32 under autocast.

    Raises:
        IndexError: an index that is not ignored lies outside [0, C). Checked on a CPU, and on a GPU with
            FASTTX_CHECK=1. Without that a GPU does not wait, and the loss is NaN.
        BackendError: a forced backend cannot run the call.
        Every other wrong call raises torch's own error.

    Saved for backward: the arguments themselves and one float32 a row. Logits exist for a bounded number of rows at a
    time, and backward computes them again. On a CPU that costs more than it saves, so up to 256 MiB of the labelled
    rows' logits are kept there. The gradient of a frozen weight is not computed.

    Numerics: logits are rounded to input's dtype, as torch's are. Losses are float32, and so are the sums of
    linear_weight's gradient over chunks of rows. If all targets are ignored, the mean is NaN and the gradients 0.
    Deterministic. Torch's own function runs for inputs of one dimension, K-dimensional losses, probabilities, float64,
    torch.func transforms, forward-mode AD, subclasses of Tensor, and a weight that requires a gradient. Double backward
    differentiates torch's function.

    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, for computing logits again.
    """
    return _linear_cross_entropy(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, options
    )


def _linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """linear_cross_entropy, forced to `backend`; None stands for what is in force in the process."""
    backend = backend or forced_backend()
    reason = _to_torch(input, linear_weight, target, linear_bias, weight, ignore_index, label_smoothing)
    if reason is None and exported_as_torch(LINEAR_CROSS_ENTROPY, backend, input, linear_weight):
        reason = EXPORTED
    if reason is not None:
        loss = _torch_linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction,
            ignore_index=ignore_index, label_smoothing=label_smoothing, options=options,
        )  # fmt: skip
        refuse_if_forced("linear_cross_entropy", reason, input, backend)
        return loss
    number = _reduction.get_enum(reduction)
    ignored = -100 if ignore_index is None else ignore_index
    smoothing = max(float(label_smoothing), 0.0)  # torch, too, takes a negative one for 0
    x, w, b, device = input, linear_weight, linear_bias, input.device.type
    with_grad = records_gradients(x, w, b)
    if backend == "auto" and device == "cpu" and with_grad and values_are_known(target):
        kept = _labelled_rows_on_cpu(x, w, target, b, weight, ignored, smoothing, reduction)
        if kept is not None:
            return kept
    autocast = torch.is_autocast_enabled(device)
    if autocast:  # torch's function takes the product in this dtype and the loss in float32
        dtype = torch.get_autocast_dtype(device)
        x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
    if with_grad:
        loss = _record(x, w, b, target, weight, ignored, smoothing, number, backend)
    else:
        loss = _fwd(x, w, b, target, weight, ignored, smoothing, number, backend)[0]
    return loss if autocast or input.dtype is torch.float32 else loss.to(input.dtype)
