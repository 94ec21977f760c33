"""The linear layer on int8. Inference only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS, described, wrong
from ..ops.exporting import called
from ..ops.int8_linear.op import ACTIVATIONS, INT8_LINEAR, MAX_IN_FEATURES
from ..ops.quantize_per_token.op import QUANTIZE_PER_TOKEN
from ._quantize import NO_GRADIENT, check_covered, check_float, scale_tensor
from ._routing import records_gradients

_quantize = called(QUANTIZE_PER_TOKEN)
_linear = called(INT8_LINEAR)


class Int8LinearFunction(torch.autograd.Function):
    """The forward of int8_linear; its backward says that there is none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, residual: Tensor | None, *rest: Any) -> Tensor:
        return _forward(input, bias, residual, *rest)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(NO_GRADIENT.format("int8_linear"))


class StraightThroughFunction(torch.autograd.Function):
    """int8_linear with the gradients of the float layer that the integers stand for, as if inputs were not rounded."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight_int8: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        act_scale: Tensor | None,
        factor: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight_int8, weight_scale, factor)
        ctx.dtypes = input.dtype, None if bias is None else bias.dtype
        x = input if factor is None else input * factor.to(input.dtype)
        return int8_linear(x, weight_int8, weight_scale, bias, act_scale=act_scale)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        (dout,) = douts
        weight_int8, weight_scale, factor = ctx.saved_tensors
        dtype, bias_dtype = ctx.dtypes
        dinput = dbias = None
        if ctx.needs_input_grad[0]:
            weight = weight_int8.float() * weight_scale[:, None]  # exists here alone
            weight = weight if factor is None else weight * factor
            dinput = (dout @ weight.to(dout.dtype)).to(dtype)
        if ctx.needs_input_grad[3]:
            dbias = dout.reshape(-1, dout.shape[-1]).float().sum(0).to(bias_dtype)
        return dinput, None, None, dbias, None, None


def _forward(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight_int8: Tensor,
    weight_scale: Tensor,
    activation: str,
    act_scale: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    n_out = weight_int8.shape[0]
    rows = input.reshape(-1, input.shape[-1])
    if act_scale is None or input.dtype != torch.int8:
        x_q, x_scale = _quantize(rows, act_scale, backend)
    else:
        x_q, x_scale = rows, act_scale.reshape(-1).expand(rows.shape[0])
    residual = None if residual is None else residual.reshape(-1, n_out)
    return _linear(x_q, weight_int8, x_scale, weight_scale, bias, residual, activation, out_dtype, backend)


def _scale_of(input: Tensor, act_scale: Tensor | float | None) -> Tensor | None:
    """act_scale as a tensor; None where the scale of each token is yet to be found."""
    if input.dtype != torch.int8:
        return None if act_scale is None else scale_tensor("act_scale", act_scale, input.device)
    if act_scale is None:
        raise ValueError(wrong("act_scale", None, "the scales of an int8 input, which has none itself"))
    rows = input.shape[:-1]
    if isinstance(act_scale, Tensor) and act_scale.dtype == torch.float32 and act_scale.shape == rows:
        return act_scale
    if isinstance(act_scale, Tensor) and (act_scale.dtype != torch.float32 or act_scale.shape != ()):
        raise ValueError(wrong("act_scale", described(act_scale), f"float32 {tuple(rows)} or ()"))
    return scale_tensor("act_scale", act_scale, input.device)


def _result_dtype(input: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    if out_dtype is not None:
        if out_dtype not in FLOATS:
            raise ValueError(wrong("out_dtype", repr(out_dtype), "float32, float16 or bfloat16"))
        return out_dtype
    device = input.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if input.dtype == torch.int8:
        allowed = "float32, float16 or bfloat16 for an int8 input outside of autocast"
        raise ValueError(wrong("out_dtype", None, allowed))
    return input.dtype


def int8_linear(
    input: Tensor,
    weight_int8: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    act_scale: Tensor | float | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""A linear layer on int8 for inference: quantises input by token, multiplies exactly, dequantises.

    .. math::
        out_{mn} = act\Big(x\_scale_m \, w\_scale_n \sum_k x\_q_{mk} \, w\_q_{nk} + bias_n\Big) + residual_{mn}

    Args:
        input: (..., in_features), in float32, float16 or bfloat16; or int8 from :func:`quantize_per_token`,
            :func:`quantize_static`, :func:`add_layer_norm_quantize` or :func:`gelu_quantize`.
        weight_int8: int8 (out_features, in_features), from :func:`quantize_per_channel`.
        weight_scale: float32 (out_features,), from the same call.
        bias: (out_features,), in float32, float16 or bfloat16; or None.
        activation: ``"none"``, ``"gelu"`` (the exact form) or ``"gelu_tanh"``.
        act_scale: one scale for all of input, a positive number or float32 (); values beyond 127 times it saturate.
            None finds a scale for each token. An int8 input needs the scales that came with it, float32 of its shape
            without in_features, or one number or float32 () for all of it.
        residual: (..., out_features), added after the activation, in float32, float16 or bfloat16; or None.
        out_dtype: dtype of the result, float32, float16 or bfloat16. None takes autocast's under autocast, else
            input's. An int8 input does not tell one, so outside of autocast it has to be given.

    Returns:
        Tensor (..., out_features) of out_dtype.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or range. The message names it.
        BackendError: a forced backend cannot run the call.
        RuntimeError: backward is called, as there is no gradient. torch.compile raises it where it traces a backward.

    Saved for backward: nothing.

    Numerics: the product is exact in int32. The rest is float32, rounded once. So the error is that of the two
    quantisations, at most half a scale an element. A token that holds a NaN or an infinity gives NaN, and no other
    does. Under autocast input is quantised as it is, and not rounded to autocast's dtype first.

    Source: as for :func:`quantize_per_token`.
    """
    if not (isinstance(input, Tensor) and input.dtype == torch.int8):
        check_float("input", input)
    for name, t in (("bias", bias), ("residual", residual)):
        if t is not None:
            check_float(name, t)
    for name, t, dtype in (("weight_int8", weight_int8, torch.int8), ("weight_scale", weight_scale, torch.float32)):
        if not isinstance(t, Tensor):
            raise TypeError(wrong(name, described(t), "a Tensor"))
        if t.dtype != dtype:
            raise ValueError(wrong(name, described(t), f"{dtype}"))
    if weight_int8.dim() != 2:
        raise ValueError(wrong("weight_int8", tuple(weight_int8.shape), "(out_features, in_features)"))
    n_out, n_in = weight_int8.shape
    if n_out == 0 or not 1 <= n_in <= MAX_IN_FEATURES:  # beyond it sums leave int32
        allowed = f"(out_features, in_features) from 1, and in_features to {MAX_IN_FEATURES}"
        raise ValueError(wrong("weight_int8", (n_out, n_in), allowed))
    if input.dim() == 0 or input.shape[-1] != n_in:
        raise ValueError(wrong("input", tuple(input.shape), f"(..., {n_in}), as weight_int8 is {(n_out, n_in)}"))
    full = (*input.shape[:-1], n_out)
    for name, t, shape in (
        ("weight_scale", weight_scale, (n_out,)),
        ("bias", bias, (n_out,)),
        ("residual", residual, full),
    ):
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(wrong(name, tuple(t.shape), f"{shape}"))
    if activation not in ACTIVATIONS:
        raise ValueError(wrong("activation", repr(activation), f"one of {', '.join(map(repr, ACTIVATIONS))}"))
    scale = _scale_of(input, act_scale)
    covered = {"input": input, "weight_int8": weight_int8, "weight_scale": weight_scale, "bias": bias}
    check_covered("int8_linear", **covered, residual=residual, act_scale=scale)
    rest = (weight_int8, weight_scale, activation, scale, _result_dtype(input, out_dtype), forced_backend())
    tensors = (input, bias, residual, weight_scale, scale)
    if records_gradients(*tensors):
        out = Int8LinearFunction.apply(input, bias, residual, *rest)
    else:
        out = _forward(input, bias, residual, *rest)
    return out.view(full)  # here, as what a Function returns as a view must not be written to
