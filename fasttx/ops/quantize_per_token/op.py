"""The row of quantize_per_token: symmetric int8 of each row of x, over the last dim, and its float32 scale.

    absmax_m = max_k |x_mk|,   x_scale_m = absmax_m / 127,   x_q_mk = round_half_even(x_mk * (127 / absmax_m))

in float32 operations, each rounded once: every implementation gives the same integers.  With `scale` given, one for
all rows: x_q = clamp(round_half_even(x * (1 / scale)), -127, 127), x_scale = scale.  A row whose absmax is below
2**-118 counts as one of that absmax: a row of zeros gets the integers 0 and the scale 2**-118 / 127.  A row that holds
a NaN or an infinity, or any row where `scale` is not positive and finite with a finite inverse, gets the integers 0 and
the scale NaN: whatever is computed from it is NaN, and other rows are as they would be without it.

It has no backward: rounding has no useful gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import FLOATS, row_too_long, values_may_be_read, wrong
from ..cpu.launch import any_call
from ..registry import Direction, Impl, Op
from . import composed, reference

MAX_COLS = 16384
"""The longest row that the kernels hold in registers."""


def _check(x: Tensor, scale: Tensor | None) -> None:
    if x.dim() < 1 or x.dtype not in FLOATS:
        raise ValueError(wrong("x", f"{x.dtype} {tuple(x.shape)}", "float32, float16 or bfloat16 (..., n_cols)"))
    check_scale(scale, x)


def check_scale(scale: Tensor | None, x: Tensor) -> None:
    """Raises ValueError unless `scale` is None or one positive, finite float32 beside x."""
    if scale is None:
        return
    if scale.shape != () or scale.dtype != torch.float32:
        raise ValueError(wrong("scale", f"{scale.dtype} {tuple(scale.shape)}", "float32 ()"))
    if scale.device != x.device:
        raise ValueError(wrong("scale", f"a tensor on {scale.device}", f"{x.device}, where x is"))
    if values_may_be_read(scale.device) and not torch.compiler.is_compiling():
        value = float(scale)
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(wrong("scale", value, "a positive, finite number"))


def _fake(x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _cost(x: Tensor, scale: Tensor | None) -> tuple[float, float]:
    """Magnitude, maximum, product, rounding: 4 an element; x read once, a byte an element and a scale a row written."""
    return 4.0 * x.numel(), float(x.numel() * (x.element_size() + 1) + 4 * x.shape[:-1].numel())


def supports(x: Tensor) -> str | None:
    return row_too_long(x, MAX_COLS)


QUANTIZE_PER_TOKEN = Op(
    "quantize_per_token",
    about="symmetric int8 of each row, with its own scale or a given one; rows of up to 16,384; forward only",
    fwd=Direction(
        "(Tensor x, Tensor? scale, str backend) -> (Tensor x_q, Tensor x_scale)",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
    ),
    bwd=None,
    impls=(
        Impl("triton", "fasttx.kernels.quantize_per_token:quantize_per_token_fwd", "", supports),
        Impl("cuda", "fasttx.ops.quantize_per_token.cuda:quantize_per_token_fwd", "", supports),
        Impl("cpu", "fasttx.ops.quantize_per_token.cpu:quantize_per_token_fwd", "", any_call, 0, ("cpu",)),
    ),
)
