"""The row of int8_linear: an exact int8 product, dequantised, with bias, activation and residual.

    acc_mn = sum_k x_q_mk w_q_nk  (int32, exact),   out = act(acc_mn x_scale_m w_scale_n + bias_n) + residual_mn

Formulas of the activations: kernels/int8_linear.py.  A row whose scale is NaN gives NaN.  Inference only: there is no
backward, because the gradient of rounded weights is not defined.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, check_one_device, wrong
from ..cpu.launch import any_call
from ..registry import Direction, Impl, Op
from . import composed, reference

ACTIVATIONS = ("none", "gelu", "gelu_tanh")
MAX_IN_FEATURES = (2**31 - 1) // 128**2
"""Beyond it a sum of products may leave int32."""


def _check(
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> None:
    if x_q.dim() != 2 or x_q.dtype != torch.int8:
        raise ValueError(wrong("x_q", f"{x_q.dtype} {tuple(x_q.shape)}", "int8 (n_rows, in_features)"))
    n_rows, n_in = x_q.shape
    if w_q.dim() != 2 or w_q.dtype != torch.int8 or w_q.shape[1] != n_in or w_q.shape[0] == 0:
        raise ValueError(
            wrong("w_q", f"{w_q.dtype} {tuple(w_q.shape)}", f"int8 (out_features, {n_in}) of at least one row")
        )
    n_out = w_q.shape[0]
    if n_in > MAX_IN_FEATURES:
        raise ValueError(
            wrong("x_q", f"{n_in} in_features", f"at most {MAX_IN_FEATURES}, whose products sum up within int32")
        )
    for name, scale, size in (("x_scale", x_scale, n_rows), ("w_scale", w_scale, n_out)):
        if scale.shape != (size,) or scale.dtype != torch.float32:
            raise ValueError(wrong(name, f"{scale.dtype} {tuple(scale.shape)}", f"float32 ({size},)"))
    for name, t, shape in (("bias", bias, (n_out,)), ("residual", residual, (n_rows, n_out))):
        if t is not None and (t.shape != shape or t.dtype not in FLOATS):
            raise ValueError(wrong(name, f"{t.dtype} {tuple(t.shape)}", f"float32, float16 or bfloat16 {shape}"))
    check_one_device("x_q", x_q.device, w_q=w_q, x_scale=x_scale, w_scale=w_scale, bias=bias, residual=residual)
    if activation not in ACTIVATIONS:
        raise ValueError(wrong("activation", repr(activation), f"one of {', '.join(map(repr, ACTIVATIONS))}"))
    if out_dtype not in FLOATS:
        raise ValueError(wrong("out_dtype", out_dtype, "float32, float16 or bfloat16"))


def _fake(
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return x_q.new_empty((x_q.shape[0], w_q.shape[0]), dtype=out_dtype)


def _cost(
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> tuple[float, float]:
    """Two operations a product, 3 an element of out and about 12 more with an activation; every tensor once."""
    outputs = x_q.shape[0] * w_q.shape[0]
    flop = (2.0 * x_q.shape[1] + 3.0 + (0.0 if activation == "none" else 12.0)) * outputs
    given = (x_q, w_q, x_scale, w_scale, bias, residual)
    moved = sum(t.numel() * t.element_size() for t in given if t is not None)
    return flop if x_q.numel() else 0.0, float(moved + outputs * out_dtype.itemsize)


def _supports(x_q: Tensor, w_q: Tensor) -> str | None:
    for name, t in (("x_q", x_q), ("w_q", w_q)):
        if t.shape[0] >= 2**31 - 2**10:
            return f"{name}: rows are counted in 32 bits, it has shape {tuple(t.shape)}"
    return None


INT8_LINEAR = Op(
    "int8_linear",
    about="exact product of int8 rows and weights, then scales, bias, GELU (erf or tanh) and residual; forward only",
    fwd=Direction(
        "(Tensor x_q, Tensor w_q, Tensor x_scale, Tensor w_scale, Tensor? bias, Tensor? residual, str activation, "
        "ScalarType out_dtype, str backend) -> Tensor out",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x_q", "w_q"),
        _cost,
    ),
    bwd=None,
    impls=(
        Impl("triton", "fasttx.kernels.int8_linear:int8_linear_fwd", "", _supports),
        Impl("cuda", "fasttx.ops.int8_linear.cuda:int8_linear_fwd", "", _supports),
        Impl("cpu", "fasttx.ops.int8_linear.cpu:int8_linear_fwd", "", any_call, 0, ("cpu",)),
    ),
)
