"""The row of bias_gelu_quantize: GELU of x + bias, and symmetric int8 of its rows.

    a = gelu(x + bias), rounded to the dtype of x
    (x_q, x_scale) = what quantize_per_token gives for that rounded a, with `scale` given or not

Formulas: bias_gelu, without dropout, and quantize_per_token; on each backend x_q and x_scale are those that the two
give one after the other (on `cpu`, which has no bias_gelu, GELU is that of int8_linear).  a itself is not written: the
product that follows reads the integers alone.

The reference gives x_q as the real number that is rounded: which integer it becomes hangs on a rounding of a.

It has no backward: rounding has no useful gradient.
"""

from __future__ import annotations

from torch import Tensor

from ..bias_gelu.op import BIAS_GELU
from ..cpu.launch import any_call
from ..quantize_per_token.op import QUANTIZE_PER_TOKEN, check_scale, supports
from ..registry import Direction, Impl, Op
from . import composed, reference

_gelu, _quantise = BIAS_GELU.fwd, QUANTIZE_PER_TOKEN.fwd
NO_DROPOUT = (None, None, 0.0)


def _check(x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool) -> None:
    _gelu.check(x, bias, *NO_DROPOUT, tanh)
    check_scale(scale, x)


def _fake(x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool) -> tuple[Tensor, Tensor]:
    return _quantise.fake(x, scale)


def _cost(x: Tensor, bias: Tensor | None, scale: Tensor | None, tanh: bool) -> tuple[float, float]:
    """GELU's 20 an element and 4 of quantising; x and bias once, a byte an element and a scale a row."""
    bias_bytes = 0 if bias is None else bias.numel() * bias.element_size()
    _, moved = _quantise.cost(x, scale)
    return 24.0 * x.numel(), moved + bias_bytes


BIAS_GELU_QUANTIZE = Op(
    "bias_gelu_quantize",
    about="rows of GELU (erf or tanh) of x + bias, written as int8 only; rows of up to 16,384; forward only",
    fwd=Direction(
        "(Tensor x, Tensor? bias, Tensor? scale, bool tanh, str backend) -> (Tensor x_q, Tensor x_scale)",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
    ),
    bwd=None,
    impls=(
        Impl("triton", "fasttx.kernels.bias_gelu_quantize:bias_gelu_quantize_fwd", "", supports),
        Impl("cuda", "fasttx.ops.bias_gelu_quantize.cuda:bias_gelu_quantize_fwd", "", supports),
        Impl("cpu", "fasttx.ops.bias_gelu_quantize.cpu:bias_gelu_quantize_fwd", "", any_call, 0, ("cpu",)),
    ),
)
