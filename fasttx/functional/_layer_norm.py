"""layer_norm with torch.nn.functional's name and semantics, and the autograd of the op under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS
from ..ops.dropout_add_layer_norm.composed import differentiable
from ..ops.dropout_add_layer_norm.op import DROPOUT_ADD_LAYER_NORM, keep_of
from ..ops.exporting import called, called_backward
from ._routing import aliases, applied, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(DROPOUT_ADD_LAYER_NORM)
_bwd = called_backward(DROPOUT_ADD_LAYER_NORM)


class DropoutAddLayerNormFunction(torch.autograd.Function):
    """Autograd over fasttx::dropout_add_layer_norm_fwd / _bwd; saves its tensors and two float32 a row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        row_index: Tensor | None,
        rng_state: Tensor | None,
        dropout_p: float,
        eps: float,
        out_dtype: torch.dtype,
        backend: str,
    ) -> Tensor:
        out, mean, rstd = _fwd(x, residual, weight, bias, row_index, rng_state, dropout_p, eps, out_dtype, backend)
        ctx.save_for_backward(x, residual, weight, bias, mean, rstd, row_index, rng_state)
        ctx.options = (dropout_p, eps, out_dtype, backend)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, weight, bias, mean, rstd, row_index, rng_state = ctx.saved_tensors
        dropout_p, eps, out_dtype, backend = ctx.options
        needs_dx, needs_dresidual, needs_dweight, needs_dbias = needs = ctx.needs_input_grad[:4]
        rest = (None,) * 6
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            keep = None if rng_state is None else keep_of(x, row_index, rng_state, dropout_p, backend)
            x, residual, weight, bias = aliases(x, residual, weight, bias)
            out = differentiable(x, residual, weight, bias, keep, dropout_p, eps, out_dtype)
            inputs = [t for t, need in zip((x, residual, weight, bias), needs) if need]
            found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True))
            return (*(next(found) if need else None for need in needs), *rest)
        # without dropout x and residual have one gradient: written once where they have one dtype
        one = needs_dx and needs_dresidual and rng_state is None and x.dtype == residual.dtype
        dx, dresidual, dweight, dbias = _bwd(
            dout,
            x,
            residual,
            weight,
            bias,
            mean,
            rstd,
            row_index,
            rng_state,
            dropout_p,
            needs_dx,
            needs_dresidual and not one,
            needs_dweight,
            needs_dbias,
            backend,
        )
        dresidual = dx if one else dresidual
        return (
            dx if needs_dx else None,
            dresidual if needs_dresidual else None,
            dweight if needs_dweight else None,
            dbias if needs_dbias else None,
            *rest,
        )


_record = applied(DropoutAddLayerNormFunction)


def result_is_float32(x: Tensor) -> bool:
    """Whether autocast gives layer norm's result in float32: on every device but the CPU, where it leaves the dtype."""
    return x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)


def apply(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    arguments = (x, residual, weight, bias, row_index, rng_state, dropout_p, eps, out_dtype, backend)
    if records_gradients(*arguments[:4]):
        return _record(*arguments)
    return _fwd(*arguments)[0]


# --------------------------------------------------------------------------------------------------------- layer_norm


def _layer_norm_to_torch(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    backend: str,
) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where the operator does."""
    if not isinstance(input, Tensor):
        return "input is no Tensor"
    if backend == "torch" or (backend == "auto" and input.device.type != "cuda"):
        return "the operator is torch's function here"
    reason = unsupported_reason(input, weight, bias)
    if reason is not None:
        return reason
    dtype = input.dtype
    if dtype not in FLOATS:
        return "input is not floating"
    sized = isinstance(normalized_shape, (tuple, list)) and len(normalized_shape) > 0
    if not sized or any(isinstance(size, float) for size in normalized_shape):
        return "normalized_shape is no sequence of sizes"
    shape = tuple(normalized_shape)
    n = len(shape)
    if tuple(input.shape[input.dim() - n :]) != shape or n > input.dim():
        return "normalized_shape is not the end of input's shape"
    mixed = result_is_float32(input)
    for t in (weight, bias):
        if t is not None and (tuple(t.shape) != shape or t.dtype not in FLOATS):
            return "weight or bias is not floating of normalized_shape"
        if t is not None and t.dtype != dtype and not mixed:
            return "weight or bias has another dtype than input"
    if not isinstance(eps, (int, float)) or not 0.0 <= eps < math.inf:
        return "eps is no number, or negative"
    if not torch.compiler.is_compiling() and input.numel() == 0:  # sizes may be unknown there
        return "input has no element"
    return None


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer norm over the last dimensions; torch.nn.functional.layer_norm.

    .. math:: out = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + eps}} \cdot weight + bias

    Args:
        input: x, any shape that ends in normalized_shape. The kernels take float32, float16 and bfloat16.
        normalized_shape: the sizes of the dimensions that are normalised together.
        weight, bias: of normalized_shape, in input's dtype (under autocast in any).
        eps: added to the variance, which divides by the number of elements.

    Returns:
        Tensor of input's shape and dtype; as in torch, float32 under autocast, except on a CPU.

    Raises:
        BackendError: a forced backend cannot run the call.
        Every wrong call raises torch's own error.

    Saved for backward: input, weight and bias themselves and two float32 a row. Autocast adds no float32 copy.

    Numerics: computes in float32. The mean is corrected for its own rounding, so a mean far above the deviations costs
    no more accuracy than that rounding. Sums are deterministic. Torch's own function runs for float64, torch.func
    transforms, forward-mode AD, subclasses of Tensor, mixed dtypes outside autocast, and every call on a CPU. Double
    backward differentiates torch's operators.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016; Chan, Golub and LeVeque, "Algorithms for computing the
    sample variance", 1983, for the correction.
    """
    backend = forced_backend()
    reason = _layer_norm_to_torch(input, normalized_shape, weight, bias, eps, backend)
    if reason is not None:
        out = torch_functional.layer_norm(input, normalized_shape, weight, bias, eps)
        refuse_if_forced("layer_norm", reason, input, backend)
        return out
    out_dtype = torch.float32 if result_is_float32(input) else input.dtype
    x = input
    n = len(normalized_shape)
    if n > 1:
        x = x.flatten(-n)
        weight, bias = (None if t is None else t.flatten() for t in (weight, bias))
    out = apply(x, None, weight, bias, None, None, 0.0, float(eps), out_dtype, backend)
    return out.view(input.shape) if n > 1 else out
