"""The row of add_layer_norm_quantize: layer norm of x + residual, and symmetric int8 of its rows.

    out = layer_norm(x + residual) weight + bias, rounded to out_dtype
    (x_q, x_scale) = what quantize_per_token gives for that rounded out, with `scale` given or not

Formulas: dropout_add_layer_norm, without dropout, and quantize_per_token; on each backend out has the bits of the one
(on sm_100 but for the last bit), and x_q and x_scale are those that the other makes of out.  So a chain may be fused or
not, and one float result serves the next residual and the next product alike.  `cpu` has no dropout_add_layer_norm of
its own: there out keeps the accuracy rule, and x_q and x_scale are those of that out.

The reference gives x_q as the real number that is rounded: which integer it becomes hangs on a rounding of out.

It has no backward: rounding has no useful gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu.launch import any_call
from ..dropout_add_layer_norm.op import DROPOUT_ADD_LAYER_NORM, supports
from ..quantize_per_token.op import QUANTIZE_PER_TOKEN, check_scale
from ..registry import Direction, Impl, Op
from . import composed, reference

_norm, _quantise = DROPOUT_ADD_LAYER_NORM.fwd, QUANTIZE_PER_TOKEN.fwd
NO_DROPOUT = (None, None, 0.0)


def _check(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> None:
    _norm.check(x, residual, weight, bias, *NO_DROPOUT, eps, out_dtype)
    check_scale(scale, x)


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return (x.new_empty(x.shape, dtype=out_dtype), *_quantise.fake(x, scale))


def _cost(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[float, float]:
    """The norm's 10 an element and 4 of quantising; every tensor once, of which out is written and not read again."""
    flop, moved = _norm.cost(x, residual, weight, bias, *NO_DROPOUT, eps, out_dtype)
    statistics = 8.0 * x.shape[:-1].numel()  # which this op does not write
    return flop + 4.0 * x.numel(), moved - statistics + x.numel() + 4.0 * x.shape[:-1].numel()


ADD_LAYER_NORM_QUANTIZE = Op(
    "add_layer_norm_quantize",
    about="layer norm of x + residual, and its rows as int8 in the same pass; rows of up to 8,192; forward only",
    fwd=Direction(
        "(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, float eps, ScalarType out_dtype, "
        "str backend) -> (Tensor out, Tensor x_q, Tensor x_scale)",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
    ),
    bwd=None,
    impls=(
        Impl("triton", "fasttx.kernels.add_layer_norm_quantize:add_layer_norm_quantize_fwd", "", supports),
        Impl("cuda", "fasttx.ops.add_layer_norm_quantize.cuda:add_layer_norm_quantize_fwd", "", supports),
        Impl("cpu", "fasttx.ops.add_layer_norm_quantize.cpu:add_layer_norm_quantize_fwd", "", any_call, 0, ("cpu",)),
    ),
)
