"""GELU and its derivative, in float32. The formulas stand in bias_gelu.py; csrc/common/gelu.cuh has the same."""

from __future__ import annotations

import triton
import triton.language as tl

RSQRT2 = tl.constexpr(0.7071067811865476)
RSQRT_2PI = tl.constexpr(0.3989422804014327)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)
HUGE = tl.constexpr(1e9)
"""Beyond it u' meets a factor of 0, and its square would overflow."""


@triton.jit
def _tanh_parts(z):
    """s = sigmoid(2 u), s (1 - s) and u'; a NaN stays in s."""
    u = SQRT_2_OVER_PI * (z + CUBIC * z * z * z)
    e = tl.exp(-2.0 * tl.abs(u))
    r = 1.0 / (1.0 + e)
    s = tl.where(u < 0.0, e * r, r)
    near = tl.minimum(tl.maximum(z, -HUGE), HUGE)
    return s, e * r * r, SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * near * near)


@triton.jit
def gelu(z, TANH: tl.constexpr):
    if TANH:
        s, _, _ = _tanh_parts(z)
        out = z * s
    else:
        out = z * (0.5 + 0.5 * tl.erf(z * RSQRT2))
    return out


@triton.jit
def gelu_derivative(z, TANH: tl.constexpr):
    if TANH:
        s, slope, du = _tanh_parts(z)
        out = s + z * (2.0 * slope) * du
    else:
        out = 0.5 + 0.5 * tl.erf(z * RSQRT2) + z * (RSQRT_2PI * tl.exp(-0.5 * z * z))
    return out


@triton.jit
def shifted(x_ptr, bias_ptr, at, cols, ok, col_ok, BIAS: tl.constexpr):
    """x + bias as float32; 0 beyond the tensor."""
    z = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    return z
