"""layer_norm with torch.nn.functional's name and semantics, and dropout_add_layer_norm: dropout, sum, norm in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops._dropout_add_layer_norm_composition import differentiable, exact_keep
from ..ops._row_dropout import keep_scale
from ..ops.arguments import FLOATS, is_number
from ..ops.dropout_add_layer_norm import keep_of
from ..ops.registry import forced_backend, new_rng_state
from .eligibility import overrides_functions, refuse_if_forced, uncovered

_fwd = torch.ops.fasttx.dropout_add_layer_norm_fwd.default
_bwd = torch.ops.fasttx.dropout_add_layer_norm_bwd.default


class DropoutAddLayerNormFunction(torch.autograd.Function):
    """Autograd over fasttx::dropout_add_layer_norm_fwd / _bwd; saves its tensors and two float32 a row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
        row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
        backend: str,
    ) -> Tensor:  # fmt: skip
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
            out = differentiable(x, residual, weight, bias, keep, dropout_p, eps, out_dtype)
            inputs = [t for t, need in zip((x, residual, weight, bias), needs) if need]
            found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True))
            return (*(next(found) if need else None for need in needs), *rest)
        # without dropout x and residual have one gradient: written once where they have one dtype
        one = needs_dx and needs_dresidual and rng_state is None and x.dtype == residual.dtype
        dx, dresidual, dweight, dbias = _bwd(
            dout, x, residual, weight, bias, mean, rstd, row_index, rng_state, dropout_p,
            needs_dx, needs_dresidual and not one, needs_dweight, needs_dbias, backend,
        )  # fmt: skip
        grads = (dx, dx if one else dresidual, dweight, dbias)
        return (*(grad if need else None for grad, need in zip(grads, needs)), *rest)


def _under_autocast(x: Tensor) -> bool:
    """Whether autocast gives layer norm's result in float32: on every device but the CPU, where it leaves the dtype."""
    return x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)


def _apply(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    arguments = (x, residual, weight, bias, row_index, rng_state, dropout_p, eps, out_dtype, backend)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[:4]):
        return DropoutAddLayerNormFunction.apply(*arguments)
    return _fwd(*arguments)[0]


# --------------------------------------------------------------------------------------------------------- layer_norm


def _layer_norm_to_torch(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float,
    backend: str,
) -> str | None:  # fmt: skip
    """Why torch's own function takes this call, a wrong one included; None where the operator does."""
    if not isinstance(input, Tensor):
        return "input is no Tensor"
    if backend == "torch" or (backend == "auto" and input.device.type != "cuda"):
        return "the operator is torch's function here"
    reason = uncovered(input, weight, bias)
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
    mixed = _under_autocast(input)
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
        input: x, any shape that ends in normalized_shape; float32, float16 or bfloat16 run on our kernels.
        normalized_shape: the sizes of the dimensions that are normalised together.
        weight, bias: of normalized_shape and of input's dtype (any, under autocast).
        eps: added to the variance, which divides by the number of elements.

    Returns:
        Tensor of input's shape and dtype; float32 under autocast, except on a CPU, as torch's.

    Raises:
        Torch's errors, by torch's function. BackendError where a backend is forced that cannot run the call.

    Saved for backward: input, weight and bias themselves and two float32 a row; no float32 copy under autocast.

    Numerics: float32 inside; the mean is corrected by what its own rounding leaves over, so that a mean far above the
    deviations costs no more than that rounding. Sums are deterministic. float64, torch.func transforms, forward-mode
    AD, subclasses of Tensor, mixed dtypes outside autocast and every call on a CPU run on torch's function; double
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
    out_dtype = torch.float32 if _under_autocast(input) else input.dtype
    x = input
    n = len(normalized_shape)
    if n > 1:
        x = x.flatten(-n)
        weight, bias = (None if t is None else t.flatten() for t in (weight, bias))
    out = _apply(x, None, weight, bias, None, None, 0.0, float(eps), out_dtype, backend)
    return out.view(input.shape) if n > 1 else out


# ----------------------------------------------------------------------------------------------- dropout_add_layer_norm


def _check_tensors(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None,
) -> None:  # fmt: skip
    if not isinstance(input, Tensor):
        raise TypeError(f"input: must be a Tensor, got {type(input).__name__}")
    if input.dim() < 1 or not input.is_floating_point():
        raise ValueError(f"input: must be floating (..., n), got {input.dtype} {tuple(input.shape)}")
    names = ("residual", "weight", "bias", "row_index", "rng_state")
    for name, t in zip(names, (residual, weight, bias, row_index, rng_state)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: must be a Tensor or None, got {type(t).__name__}")
        if t.device != input.device:
            raise ValueError(f"{name}: must be on the device of input, {input.device}, got {t.device}")
    row = input.shape[-1:]
    for name, t, shape in (("residual", residual, input.shape), ("weight", weight, row), ("bias", bias, row)):
        if t is not None and (t.shape != shape or not t.is_floating_point()):
            raise ValueError(f"{name}: must be floating {tuple(shape)}, got {t.dtype} {tuple(t.shape)}")
    if row_index is not None and (
        row_index.dtype not in (torch.int32, torch.int64) or row_index.shape != input.shape[:-1]
    ):
        raise ValueError(
            f"row_index: must be int32 or int64 {tuple(input.shape[:-1])}, got {row_index.dtype} "
            f"{tuple(row_index.shape)}"
        )
    if rng_state is not None and (rng_state.dtype != torch.int64 or rng_state.shape != (2,)):
        raise ValueError(f"rng_state: must be int64 (2,), got {rng_state.dtype} {tuple(rng_state.shape)}")


def _check_numbers(dropout_p: float, eps: float) -> None:
    for name, number in (("dropout_p", dropout_p), ("eps", eps)):
        if not is_number(number):
            raise TypeError(f"{name}: must be a number, got {number!r}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: must lie in [0, 1), got {dropout_p}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: must be finite and not negative, got {eps}")


def _by_torch(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The same from torch's own functions: what the operators do not cover, and what a CPU runs."""
    z = input
    if dropout_p > 0.0 and rng_state is None:
        z = torch_functional.dropout(z, dropout_p)
    elif dropout_p > 0.0 and rng_state is not None:
        flat = None if row_index is None else row_index.reshape(-1)
        z = z * (exact_keep(z, flat, rng_state, dropout_p).to(z.dtype) * keep_scale(dropout_p))
    dtype = input.dtype
    for t in (residual, weight, bias):
        if t is not None and t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    if residual is not None:
        z = z + residual
    if z.dtype != dtype:
        z = z.to(dtype)
    weight, bias = (t if t is None or t.dtype == dtype else t.to(dtype) for t in (weight, bias))
    out = torch_functional.layer_norm(z, input.shape[-1:], weight, bias, eps)
    return out if out.dtype == out_dtype else out.to(out_dtype)


def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-5,
    training: bool = True,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Layer norm of dropout(input) + residual over the last dimension: what ends each half of a BERT layer.

    .. math::
        out = \frac{z - \mathrm{E}[z]}{\sqrt{\mathrm{Var}[z] + eps}} \cdot weight + bias, \quad
        z = d \cdot input + residual, \quad d = \mathrm{keep} / (1 - \hat p)

    Args:
        input: (..., n); float32, float16 or bfloat16 run on our kernels.
        residual: of input's shape, added after dropout; None for nothing.
        weight, bias: (n,), or None; of any floating dtype.
        dropout_p: probability of zeroing an element of input, in [0, 1), in steps of 1/256 on our kernels.
        eps: added to the variance, which divides by n.
        training: False stands for dropout_p = 0.
        row_index: int32 or int64 of input's shape without n, the number of each row in the dropout mask: rows of the
            same number drop the same columns, so that a packed batch can drop what the padded one does. None counts.
        rng_state: int64 (2,), (seed, offset) of the mask; None draws one from the generator of input's device.

    Returns:
        Tensor of input's shape; its dtype is what input and residual promote to, and float32 under autocast except on a
        CPU: that of the three functions called one after the other.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape, device or range; it is named.
        BackendError: a backend is forced that cannot run the call.

    Saved for backward: input, residual, weight and bias themselves, two float32 a row and two integers; neither the sum
    nor the mask. So input and residual must not be overwritten before backward (autograd raises if they are).

    Numerics: the sum is float32 and never rounded to input's dtype, before autocast's cast or after it; statistics as
    :func:`layer_norm`'s. Sums are deterministic. On a CPU a call without row_index and rng_state runs torch's three
    functions, with the mask of torch's dropout; so do float64, torch.func transforms, forward-mode AD and subclasses of
    Tensor everywhere.

    Source: as of :func:`layer_norm`; the mask: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    tensors = (input, residual, weight, bias)
    if any(t is not None and overrides_functions(t) for t in tensors) and has_torch_function(tensors):
        return handle_torch_function(
            dropout_add_layer_norm, tensors, *tensors,
            dropout_p=dropout_p, eps=eps, training=training, row_index=row_index, rng_state=rng_state,
        )  # fmt: skip
    _check_tensors(*tensors, row_index, rng_state)
    _check_numbers(dropout_p, eps)
    backend = forced_backend()
    if not training or dropout_p == 0.0:
        dropout_p, rng_state, row_index = 0.0, None, None
    out_dtype = torch.float32 if _under_autocast(input) else input.dtype
    if residual is not None and residual.dtype != out_dtype:
        out_dtype = torch.promote_types(out_dtype, residual.dtype)
    reason = uncovered(*tensors)
    if reason is None and backend == "auto" and input.device.type == "cpu" and rng_state is None and row_index is None:
        reason = "torch's own functions are as fast on a CPU"
    if reason is None and input.shape[-1] == 0:
        reason = "rows have no element"
    numbers = float(dropout_p), float(eps), out_dtype
    if reason is not None:
        out = _by_torch(*tensors, row_index, rng_state, *numbers)
        refuse_if_forced("dropout_add_layer_norm", reason, input, backend)
        return out
    if dropout_p > 0.0 and rng_state is None:
        rng_state = new_rng_state(input.device)
    return _apply(*tensors, None if row_index is None else row_index.reshape(-1), rng_state, *numbers, backend)
