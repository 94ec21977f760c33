"""Quantising to int8: by token, by channel, and inside the functions whose result an int8 product reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.add_layer_norm_quantize.op import ADD_LAYER_NORM_QUANTIZE
from ..ops.backends import forced_backend
from ..ops.bias_gelu_quantize.op import BIAS_GELU_QUANTIZE
from ..ops.checks import FLOATS, described, is_number, wrong
from ..ops.exporting import called
from ..ops.quantize_per_token.op import QUANTIZE_PER_TOKEN
from ._checks import check_eps
from ._layer_norm import result_is_float32
from ._routing import records_gradients, unsupported_reason

_quantize = called(QUANTIZE_PER_TOKEN)
_norm = called(ADD_LAYER_NORM_QUANTIZE)
_gelu = called(BIAS_GELU_QUANTIZE)

NO_GRADIENT = (
    "{}: has no gradient, it is for inference; call it under torch.no_grad() or torch.inference_mode(), and train "
    "before fasttx.quantize(model) or after fasttx.dequantize(model)"
)


_FLOAT32 = torch.finfo(torch.float32)


def check_float(name: str, t: Any) -> None:
    """TypeError or ValueError, unless a tensor of float32, float16 or bfloat16."""
    if not isinstance(t, Tensor):
        raise TypeError(wrong(name, described(t), "a Tensor"))
    if t.dtype not in FLOATS:
        raise ValueError(wrong(name, described(t), "float32, float16 or bfloat16"))


def check_covered(function: str, **tensors: Tensor | None) -> None:
    """ValueError, unless the operators may get these tensors, by the names of their arguments; input comes first."""
    if unsupported_reason(*tensors.values()) is None:
        return
    allowed = "plain tensors on one device, outside of transforms"
    given = [t for t in tensors.values() if t is not None]
    for name, t in tensors.items():
        reason = unsupported_reason(t) if t is given[0] else unsupported_reason(t) or unsupported_reason(given[0], t)
        if reason is not None:
            raise ValueError(wrong(f"{function}: {name}", reason, allowed))


def scale_tensor(name: str, scale: Tensor | float, device: torch.device) -> Tensor:
    """One scale, a positive number or float32 (), as a tensor; TypeError or ValueError for anything else."""
    if isinstance(scale, Tensor):
        if scale.shape != () or scale.dtype != torch.float32:
            raise ValueError(wrong(name, described(scale), "a positive number or float32 ()"))
        return scale
    if isinstance(scale, bool) or not is_number(scale):
        raise TypeError(wrong(name, repr(scale), "a positive number or float32 ()"))
    if not _FLOAT32.tiny <= scale <= _FLOAT32.max:
        limits = f"{_FLOAT32.tiny:.1e} to {_FLOAT32.max:.1e}"
        raise ValueError(wrong(name, scale, f"a positive number that float32 holds, {limits}"))
    return torch.full((), float(scale), dtype=torch.float32, device=device)


def _check_rows(input: Any) -> None:
    check_float("input", input)
    if input.dim() == 0:
        raise ValueError(wrong("input", "a tensor without dims", "one of at least one dim"))


def quantize_per_token(input: Tensor) -> tuple[Tensor, Tensor]:
    r"""Quantises each row, over the last dimension, to symmetric int8.

    .. math:: scale = \max_k |x_k| / 127, \quad q_k = \mathrm{round}(x_k / scale)

    Args:
        input: x, (..., n), in float32, float16 or bfloat16.

    Returns:
        (q, int8 of input's shape with values from -127 to 127; scale, float32 of input's shape without n). q * scale is
        input, off by at most half a scale. Neither carries a gradient.

    Raises:
        TypeError, ValueError: input is not a plain Tensor of such a dtype with at least one dimension.
        BackendError: a forced backend cannot run the call.

    Saved for backward: nothing, there is no backward.

    Numerics: multiplies by float32's 127 / max and rounds half to even, so every backend and device gives the same
    integers. A row of zeros gets zeros and the scale 2**-118 / 127. A row that holds a NaN or an infinity gets zeros
    and the scale NaN.

    Source: Dettmers et al., "LLM.int8(): 8-bit matrix multiplication for transformers at scale", 2022, section 2
    (absmax quantisation, by rows).
    """
    _check_rows(input)
    check_covered("quantize_per_token", input=input)
    return _quantize(input.detach(), None, forced_backend())


def quantize_static(input: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Quantises all rows to symmetric int8 with one scale, from a calibration for instance.

    .. math:: q_k = \mathrm{clamp}(\mathrm{round}(x_k / scale), -127, 127)

    Args:
        input: x, (..., n), in float32, float16 or bfloat16.
        scale: a positive number or float32 (). Values beyond 127 times it saturate.

    Returns:
        (q, int8 of input's shape; float32 of input's shape without n, which repeats scale), in the form of
        :func:`quantize_per_token`, so that one may stand for the other. Neither carries a gradient.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype or range. The message names it.
        BackendError: a forced backend cannot run the call.

    Saved for backward: nothing, there is no backward.

    Numerics: multiplies by float32's 1 / scale and rounds half to even, so every backend and device gives the same
    integers. A row that holds a NaN or an infinity gets zeros and the scale NaN. So does every row if 1 / scale is not
    finite.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018, section 2.1, with the zero point 0.
    """
    _check_rows(input)
    one = scale_tensor("scale", scale, input.device)
    check_covered("quantize_static", input=input, scale=one)
    return _quantize(input.detach(), one.detach(), forced_backend())


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Quantises the weight of a linear layer to symmetric int8, each output channel with a scale of its own.

    .. math:: scale_n = \max_k |w_{nk}| / 127, \quad q_{nk} = \mathrm{round}(w_{nk} / scale_n)

    Args:
        weight: (out_features, in_features), as torch.nn.Linear has it, in float32, float16 or bfloat16.

    Returns:
        (int8 (out_features, in_features), float32 scale (out_features,)). Neither carries a gradient.

    Raises:
        TypeError, ValueError: weight is not a plain matrix of such a dtype.
        BackendError: a forced backend cannot run the call.

    Saved for backward: nothing, there is no backward.

    Numerics: as for :func:`quantize_per_token`, with channels as rows.

    Source: as for :func:`quantize_per_token`.
    """
    check_float("weight", weight)
    if weight.dim() != 2:
        raise ValueError(wrong("weight", tuple(weight.shape), "(out_features, in_features)"))
    check_covered("quantize_per_channel", weight=weight)
    return _quantize(weight.detach(), None, forced_backend())


# ------------------------------------------------------------------------------------ inside layer norm, inside GELU


def _check_tensors(input: Any, **others: Any) -> None:
    """TypeError or ValueError, unless floating rows, and `others` of their own shape or of that of one row."""
    _check_rows(input)
    if input.shape[-1] == 0:
        raise ValueError(wrong("input", tuple(input.shape), "rows of at least one element"))
    for name, t in others.items():
        if t is None:
            continue
        check_float(name, t)
        shape = input.shape if name == "residual" else input.shape[-1:]
        if t.shape != shape:
            raise ValueError(wrong(name, tuple(t.shape), f"{tuple(shape)}"))


class AddLayerNormQuantizeFunction(torch.autograd.Function):
    """The forward of add_layer_norm_quantize; its backward says that there is none."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, x_q, x_scale = _norm(*arguments)
        ctx.mark_non_differentiable(x_q, x_scale)
        return out, x_q, x_scale

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(NO_GRADIENT.format("add_layer_norm_quantize"))


def add_layer_norm_quantize(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Layer norm of input + residual, and the same in int8 for the next linear layer, in one pass.

    .. math:: out = \mathrm{layer\_norm}(input + residual) \cdot weight + bias, \quad q = \mathrm{round}(out / scale)

    Args:
        input: (..., n), in float32, float16 or bfloat16.
        residual: of input's shape, or None.
        weight, bias: (n,), or None. Each tensor may have a dtype of its own among these three.
        eps: added to the variance, which divides by n.
        scale: one scale for all rows, a positive number or float32 (), as in :func:`quantize_static`. None finds a
            scale for each row, as :func:`quantize_per_token` does.

    Returns:
        (out, int8 of its shape, float32 scale of its shape without n). out has the dtype that input and residual
        promote to, and float32 under autocast, except on a CPU, as in :func:`dropout_add_layer_norm`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or range. The message names it.
        BackendError: a forced backend cannot run the call.
        RuntimeError: backward is called, as there is no gradient. torch.compile raises it where it traces a backward.

    Saved for backward: nothing.

    Numerics: out has the bits of :func:`dropout_add_layer_norm` without dropout on the same backend; on sm_100 all but
    the last one, because its compiler fuses some pairs of a product and a sum. Integers and scales are those of
    :func:`quantize_per_token` of the rounded out that is returned. On a CPU without a forced backend
    dropout_add_layer_norm is torch's two functions, which round the sum to its dtype; here it is never rounded,
    and the kernels for a CPU add up in an order of their own.

    Source: as for :func:`layer_norm` and :func:`quantize_per_token`.
    """
    _check_tensors(input, residual=residual, weight=weight, bias=bias)
    check_eps(eps)
    one = None if scale is None else scale_tensor("scale", scale, input.device)
    tensors = (input, residual, weight, bias)
    check_covered("add_layer_norm_quantize", input=input, residual=residual, weight=weight, bias=bias, scale=one)
    out_dtype = torch.float32 if result_is_float32(input) else input.dtype
    if residual is not None and residual.dtype != out_dtype:
        out_dtype = torch.promote_types(out_dtype, residual.dtype)
    arguments = (*tensors, one, float(eps), out_dtype, forced_backend())
    if records_gradients(*tensors, one):
        return AddLayerNormQuantizeFunction.apply(*arguments)
    return _norm(*arguments)


def gelu_quantize(
    input: Tensor, bias: Tensor | None = None, *, approximate: str = "none", scale: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    r"""int8 of gelu(input + bias), between the two products of an MLP, without writing the activation itself.

    .. math:: q = \mathrm{round}(\mathrm{gelu}(input + bias) / scale)

    Args:
        input: (..., n), in float32, float16 or bfloat16.
        bias: (n,), in input's dtype or float32; or None.
        approximate: "none" or "tanh", as in :func:`gelu`.
        scale: as in :func:`add_layer_norm_quantize`.

    Returns:
        (int8 of input's shape, float32 scale of input's shape without n). Neither carries a gradient.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or range. The message names it.
        BackendError: a forced backend cannot run the call.

    Saved for backward: nothing, there is no backward.

    Numerics: integers and scales are those of :func:`quantize_per_token` of what gelu gives on the same backend,
    rounded to input's dtype. The kernels never round the sum with bias before that, not under autocast either.

    Source: as for :func:`gelu` and :func:`quantize_per_token`.
    """
    _check_tensors(input, bias=bias)
    if bias is not None and bias.dtype not in (input.dtype, torch.float32):
        raise ValueError(wrong("bias", bias.dtype, f"{input.dtype}, as input is, or torch.float32"))
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise ValueError(wrong("approximate", repr(approximate), "'none' or 'tanh'"))
    one = None if scale is None else scale_tensor("scale", scale, input.device)
    check_covered("gelu_quantize", input=input, bias=bias, scale=one)
    constant = [None if t is None else t.detach() for t in (input, bias, one)]
    return _gelu(*constant, approximate == "tanh", forced_backend())
