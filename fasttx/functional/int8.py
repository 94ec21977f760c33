"""Int8: quantising by token and by channel, and the linear layer of what comes out of it. Inference only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..ops.arguments import FLOATS, is_number
from ..ops.int8_linear import ACTIVATIONS
from ..ops.quantize_per_token import QUANTIZE_PER_TOKEN as QUANTIZE_PER_TOKEN  # registers the operators
from ..ops.registry import forced_backend
from .eligibility import uncovered

_quantize = torch.ops.fasttx.quantize_per_token_fwd.default
_linear = torch.ops.fasttx.int8_linear_fwd.default

NO_GRADIENT = (
    "int8_linear: has no gradient, it is for inference; call it under torch.no_grad() or torch.inference_mode(), and "
    "train before fasttx.quantize(model) or after fasttx.dequantize(model)"
)


def _check_float(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: must be a Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise ValueError(f"{name}: must be float32, float16 or bfloat16, got {t.dtype} {tuple(t.shape)}")


def _check_covered(function: str, *tensors: Tensor | None) -> None:
    reason = uncovered(*tensors)
    if reason is not None:
        raise ValueError(f"{function}: {reason}; allowed are plain tensors on one device, outside of transforms")


def quantize_per_token(input: Tensor) -> tuple[Tensor, Tensor]:
    r"""Symmetric int8 of each row over the last dimension.

    .. math:: scale = \max_k |x_k| / 127, \quad q_k = \mathrm{round}(x_k / scale)

    Args:
        input: (..., n); float32, float16 or bfloat16.

    Returns:
        (int8 of input's shape with values from -127 to 127, float32 scale of input's shape without n): q scale is
        about x, off by at most half a scale. Neither carries a gradient.

    Raises:
        TypeError, ValueError: input is no plain Tensor of such a dtype and at least one dimension.
        BackendError: a backend is forced that cannot run the call.

    Saved for backward: nothing, there is no backward.

    Numerics: rounded half to even, after a float32 product with float32's 127 / max; the same integers on every backend
    and device. A row of zeros gets zeros and the scale 2**-118 / 127; a row that holds a NaN or an infinity gets zeros
    and the scale NaN.

    Source: Dettmers et al., "LLM.int8(): 8-bit matrix multiplication for transformers at scale", 2022, section 2
    (absmax quantisation, by rows).
    """
    _check_float("input", input)
    if input.dim() == 0:
        raise ValueError("input: must have at least one dimension, got a scalar")
    _check_covered("quantize_per_token", input)
    return _quantize(input.detach(), None, forced_backend())


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Symmetric int8 of the weight of a linear layer, each output channel by itself.

    .. math:: scale_n = \max_k |w_{nk}| / 127, \quad q_{nk} = \mathrm{round}(w_{nk} / scale_n)

    Args:
        weight: (out_features, in_features), as torch.nn.Linear has it; float32, float16 or bfloat16.

    Returns:
        (int8 (out_features, in_features), float32 scale (out_features,)). Neither carries a gradient.

    Raises:
        TypeError, ValueError: weight is no plain matrix of such a dtype.

    Saved for backward: nothing, there is no backward.

    Numerics: those of :func:`quantize_per_token`, of which this is the case of rows that are channels.

    Source: as of :func:`quantize_per_token`.
    """
    _check_float("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: must be (out_features, in_features), got {tuple(weight.shape)}")
    _check_covered("quantize_per_channel", weight)
    return _quantize(weight.detach(), None, forced_backend())


class Int8LinearFunction(torch.autograd.Function):
    """The forward of int8_linear; its backward says that there is none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, residual: Tensor | None, *rest: Any) -> Tensor:
        return _forward(input, bias, residual, *rest)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(NO_GRADIENT)


def _forward(
    input: Tensor, bias: Tensor | None, residual: Tensor | None, weight_int8: Tensor, weight_scale: Tensor,
    activation: str, act_scale: Tensor | None, out_dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    n_out = weight_int8.shape[0]
    x_q, x_scale = _quantize(input.reshape(-1, input.shape[-1]), act_scale, backend)
    residual = None if residual is None else residual.reshape(-1, n_out)
    return _linear(x_q, weight_int8, x_scale, weight_scale, bias, residual, activation, out_dtype, backend)


def _scale_tensor(act_scale: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(act_scale, Tensor):
        if act_scale.shape != () or act_scale.dtype != torch.float32:
            raise ValueError(f"act_scale: must be float32 (), got {act_scale.dtype} {tuple(act_scale.shape)}")
        return act_scale
    if isinstance(act_scale, bool) or not is_number(act_scale):
        raise TypeError(f"act_scale: must be a number, a Tensor or None, got {act_scale!r}")
    if not 0.0 < act_scale < math.inf:
        raise ValueError(f"act_scale: must be positive and finite, got {act_scale}")
    return torch.full((), float(act_scale), dtype=torch.float32, device=device)


def int8_linear(
    input: Tensor,
    weight_int8: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    act_scale: Tensor | float | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""A linear layer on int8: input is quantised by token, multiplied exactly, dequantised.

    .. math::
        out_{mn} = act\Big(x\_scale_m \, w\_scale_n \sum_k x\_q_{mk} \, w\_q_{nk} + bias_n\Big) + residual_{mn}

    Args:
        input: (..., in_features); float32, float16 or bfloat16.
        weight_int8: int8 (out_features, in_features), from :func:`quantize_per_channel`.
        weight_scale: float32 (out_features,), likewise.
        bias: (out_features,), float32, float16 or bfloat16, or None.
        activation: ``"none"``, ``"gelu"`` (the form with erf) or ``"gelu_tanh"``.
        act_scale: one scale for all of input, a positive number or float32 (); values beyond 127 of it saturate. None
            finds a scale for each token.
        residual: (..., out_features), added after the activation; float32, float16 or bfloat16, or None.

    Returns:
        Tensor (..., out_features) of input's dtype; under autocast of autocast's dtype.

    Raises:
        TypeError, ValueError: an argument of a wrong type, dtype, shape or range; it is named.
        BackendError: a backend is forced that cannot run the call.
        RuntimeError: in backward, as there is no gradient; under torch.compile where a graph with a backward is made.

    Saved for backward: nothing.

    Numerics: the product is exact in int32, what follows float32, rounded once; the error is that of the two
    quantisations, at most half a scale an element. A token that holds a NaN or an infinity gives NaN, and no other
    does. Under autocast input is quantised as it is, not rounded to autocast's dtype first.

    Source: as of :func:`quantize_per_token`.
    """
    for name, t, optional in (("input", input, False), ("bias", bias, True), ("residual", residual, True)):
        if t is not None or not optional:
            _check_float(name, t)
    for name, t, dtype in (("weight_int8", weight_int8, torch.int8), ("weight_scale", weight_scale, torch.float32)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: must be a Tensor, got {type(t).__name__}")
        if t.dtype != dtype:
            raise ValueError(f"{name}: must be {dtype}, got {t.dtype} {tuple(t.shape)}")
    if weight_int8.dim() != 2:
        raise ValueError(f"weight_int8: must be (out_features, in_features), got {tuple(weight_int8.shape)}")
    n_out, n_in = weight_int8.shape
    if input.dim() == 0 or input.shape[-1] != n_in:
        raise ValueError(f"input: must be (..., {n_in}), as weight_int8 is {(n_out, n_in)}, got {tuple(input.shape)}")
    full = (*input.shape[:-1], n_out)
    for name, t, shape in (
        ("weight_scale", weight_scale, (n_out,)), ("bias", bias, (n_out,)), ("residual", residual, full),
    ):  # fmt: skip
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(f"{name}: must be {shape}, got {tuple(t.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: allowed are {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    scale = None if act_scale is None else _scale_tensor(act_scale, input.device)
    _check_covered("int8_linear", input, weight_int8, weight_scale, bias, residual, scale)
    device = input.device.type
    out_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    rest = (weight_int8, weight_scale, activation, scale, out_dtype, forced_backend())
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, bias, residual)):
        out = Int8LinearFunction.apply(input, bias, residual, *rest)
    else:
        out = _forward(input, bias, residual, *rest)
    return out.view(full)  # here, as what a Function returns as a view must not be written to
