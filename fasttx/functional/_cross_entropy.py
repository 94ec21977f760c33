"""cross_entropy, with torch.nn.functional's name, semantics and errors.

Calls that the operators do not cover, wrong ones included, go to torch's own function. It computes them, or says in its
own words what is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.nn import _reduction

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS, is_index, is_number
from ..ops.cross_entropy.op import CROSS_ENTROPY
from ..ops.exporting import called, called_backward, exported_as_torch
from ..ops.forms import OURS, TORCHS, WIDE
from ._routing import EXPORTED, applied, records_gradients, refuse_if_forced, unsupported_reason

_ce_fwd = called(CROSS_ENTROPY)
_ce_bwd = called_backward(CROSS_ENTROPY)

REDUCTIONS = ("none", "mean", "sum")  # by torch's numbers
FASTER_ON_A_CPU = "torch's own function is faster on a CPU"

WORTH_IT_ON_CPU = (1 << 23, 1024)
"""Elements and classes from which our composition beats torch's function on a CPU, measured; below, torch's temporaries
stay in the cache or are cheap to allocate (docs/kernels/cross_entropy.md)."""


class CrossEntropyFunction(torch.autograd.Function):
    """Autograd over fasttx::cross_entropy_fwd / cross_entropy_bwd.

    Saves the logits, target and weight it was given, a float32 lse a row and the divisor of the mean.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        reduction: int,
        backend: str,
    ) -> Tensor:
        loss, lse, total_weight = _ce_fwd(logits, target, weight, ignore_index, label_smoothing, reduction, backend)
        ctx.save_for_backward(logits, target, weight, lse, total_weight)
        ctx.options = (ignore_index, label_smoothing, reduction)
        ctx.backend = backend
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, lse, total_weight = ctx.saved_tensors
        ignore_index, smoothing, reduction = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            loss = torch_functional.cross_entropy(
                logits.float(),
                target.float() if target.is_floating_point() else target,
                None if weight is None else weight.float(),
                ignore_index=ignore_index,
                reduction=REDUCTIONS[reduction],
                label_smoothing=smoothing,
            )
            return (*torch.autograd.grad(loss, logits, dloss, create_graph=True), None, None, None, None, None, None)
        dlogits = _ce_bwd(
            dloss, logits, target, weight, lse, total_weight, ignore_index, smoothing, reduction, ctx.backend
        )
        return dlogits, None, None, None, None, None, None


_record = applied(CrossEntropyFunction)


def rounded(loss: Tensor, input: Tensor, *others: Tensor | None) -> Tensor:
    """The float32 loss in torch's dtype: float32 under autocast, which lists these losses among its float32 functions;
    else what torch promotes to.
    """
    if torch.is_autocast_enabled(input.device.type):
        return loss
    dtype = input.dtype
    for t in others:
        if t is not None and t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    return loss if dtype is torch.float32 else loss.to(dtype)


def composed_on_cpu(input: Tensor, backend: str) -> bool:
    """Whether auto would run a composition of torch's operators on a CPU."""
    return backend == "auto" and input.device.type == "cpu"


def _torch_is_faster(input: Tensor, backend: str) -> bool:
    """Whether the composition would lose to torch's function: on a CPU, unless the rows are many, wide and float32."""
    if not composed_on_cpu(input, backend):
        return False
    if torch.compiler.is_compiling():
        return True  # Inductor fuses torch's function, and cannot see into an operator
    elements, classes = WORTH_IT_ON_CPU
    if input.dim() < 2 or input.shape[1] < classes or input.stride(1) != 1:
        return True
    if input.dtype != torch.float32 and not torch.is_autocast_enabled("cpu"):
        return True
    default = TORCHS if input.numel() < elements else OURS
    return WIDE.takes(input, default, input.numel()) == TORCHS


def _cross_entropy_to_torch(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float, backend: str
) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where the operators do."""
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        return "input or target is no Tensor"
    if _torch_is_faster(input, backend):
        return WIDE.measured(input, input.numel()) or FASTER_ON_A_CPU
    if exported_as_torch(CROSS_ENTROPY, backend, input):
        return EXPORTED
    reason = unsupported_reason(input, target, weight)
    if reason is not None:
        return reason
    shape, dtype = input.shape, input.dtype
    n_dims = len(shape)
    if n_dims < 2:
        return "input has one dim; allowed are (N, C) and (N, C, d1, ...)"
    if dtype not in FLOATS:
        return "input is not floating"
    if not is_number(smoothing) or not smoothing <= 1.0:
        return "label_smoothing is no number up to 1"
    if not is_index(ignore_index):
        return "ignore_index is no int"
    probs = False
    if target.dtype == torch.int64:
        if target.dim() != n_dims - 1 or (n_dims > 2 and target.shape != shape[:1] + shape[2:]):
            return "target has not the shape of input without C"
    elif not target.is_floating_point():
        return "target is neither int64 nor floating"
    else:
        probs = True
        if target.shape != shape or ignore_index >= 0:
            return "target is not (N, C, ...), or ignore_index is given with it"
        if target.requires_grad and torch.is_grad_enabled():
            return "target requires a gradient"
    if weight is not None:
        if weight.dim() != 1 or weight.shape[0] != shape[1] or weight.dtype not in FLOATS:
            return "weight is not floating (C,)"
        if weight.requires_grad:
            return "weight requires a gradient"
        if weight.dtype != dtype and not probs and not torch.is_autocast_enabled(input.device.type):
            return "weight has another dtype than input"
    if torch.compiler.is_compiling():
        return None  # sizes may be unknown; the operator itself handles empty batches and checks the others
    if input.numel() == 0 or (not probs and n_dims == 2 and target.shape[0] != shape[0]):
        return "input has no element, or target another batch size"
    return None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy between logits and class indices or probabilities; torch.nn.functional.cross_entropy.

    .. math::
        \ell = (1 - \epsilon) w_y (\mathrm{lse} - x_y) + \frac{\epsilon}{C} \sum_j w_j (\mathrm{lse} - x_j), \quad
        \mathrm{lse} = \log \sum_j \exp(x_j)

    for a class index y; for probabilities q, :math:`\ell = \sum_j w_j ((1 - \epsilon) q_j + \epsilon / C) (\mathrm{lse}
    - x_j)`. The mean divides by :math:`\sum w_y` over the targets that are not ignored, or by the number of rows for
    probabilities.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, ...). The kernels take float32, float16 and bfloat16, and read logits
            in place: (N, C) with any row stride, more dimensions where C is the innermost in memory.
        target: int64 class indices of input's shape without C, or probabilities of input's shape.
        weight: (C,), the weight of each class, in input's dtype (under autocast in any).
        size_average, reduce: as in torch. They override reduction, with torch's warning.
        ignore_index: targets with this value have loss 0 and gradient 0, and do not count in the mean.
        reduction: "none", "mean" or "sum".
        label_smoothing: epsilon, in [0, 1].

    Returns:
        Tensor () or of target's shape without C, in the dtype that torch gives it: float32 under autocast.

    Raises:
        IndexError: an index that is not ignored lies outside [0, C). Checked on a CPU, and on a GPU with
            FASTTX_CHECK=1. Without that a GPU does not wait: the loss is NaN, and so are the gradients of that row.
        BackendError: a forced backend cannot run the call.
        Every other wrong call raises torch's own error.

    Saved for backward: input, target and weight themselves and one float32 a row. So do not overwrite input before
    backward; autograd raises if you do. Under autocast no float32 copy of input is made, and its gradient has its
    dtype.

    Numerics: computes in float32 and rounds each loss once. If all targets are ignored, the mean is NaN and the
    gradient 0, as in torch. Ignored rows are not read: their gradient is 0 even where their logits are NaN. Sums are
    deterministic. Torch's own function runs for float64, torch.func transforms, forward-mode AD, subclasses of Tensor,
    targets that require a gradient, and small inputs on a CPU. Double backward differentiates torch's function.

    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3; Szegedy et al.,
    "Rethinking the Inception Architecture", 2015, section 7, for label smoothing.
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return _cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """cross_entropy, forced to `backend`; None stands for what is in force in the process."""
    backend = backend or forced_backend()
    reason = _cross_entropy_to_torch(input, target, weight, ignore_index, label_smoothing, backend)
    if reason is not None:
        loss = torch_functional.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
        refuse_if_forced("cross_entropy", reason, input, backend)
        return loss
    number = _reduction.get_enum(reduction)
    smoothing = max(float(label_smoothing), 0.0)  # torch, too, takes a negative one for 0
    probs = target.is_floating_point()
    logits, labels = input, target
    if input.dim() > 2:
        n_cols = input.shape[1]
        logits = input.movedim(1, -1).reshape(-1, n_cols)
        labels = target.movedim(1, -1).reshape(-1, n_cols) if probs else target.reshape(-1)
    if records_gradients(logits):
        loss = _record(logits, labels, weight, ignore_index, smoothing, number, backend)
    else:
        loss = _ce_fwd(logits, labels, weight, ignore_index, smoothing, number, backend)[0]
    if input.dim() > 2 and number == 0:
        loss = loss.reshape(input.shape[:1] + input.shape[2:])
    return rounded(loss, input, target if probs else None, weight)
