"""GELU and its derivative, in float32. The formulas stand in bias_gelu.py; csrc/common/gelu.cuh has the same.

The erf form needs Phi(z) = (1 + erf(z / sqrt 2)) / 2, the normal distribution. With a = |z| its tail is
Q(a) = erfc(a / sqrt 2) / 2 = exp2(P(a)), P a polynomial: Phi is Q(a) to the left and 1 - Q(a) to the right. So nothing
cancels in the left tail, and no evaluation has a branch or a division. tests/scripts/gelu_polynomial.py finds P;
docs/kernels/bias_gelu.md has its errors and what lost.
"""

from __future__ import annotations

import triton
import triton.language as tl

MINUS_2_LOG2_E = tl.constexpr(-2.8853900817779268)
MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)
LOG2_SQRT_2PI = tl.constexpr(1.3257480647361592)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)
HUGE = tl.constexpr(1e9)
"""Beyond it u' meets a factor of 0, and its square would overflow."""


@triton.jit
def _log2_tail(a):
    """P(a) = log2 Q(a) for a >= 0. It falls to -inf, and a NaN stays one."""
    p = a * -6.326141e-11 + 3.6855528e-09
    p = p * a + -9.452149e-08
    p = p * a + 1.4013885e-06
    p = p * a + -1.31851475e-05
    p = p * a + 7.9723526e-05
    p = p * a + -0.00027228284
    p = p * a + -3.9052178e-05
    p = p * a + 0.0070127617
    p = p * a + -0.05249278
    p = p * a + -0.45920318
    p = p * a + -1.1511061
    return p * a + -1.0


@triton.jit
def _normal_cdf(z):
    """Phi(z)."""
    tail = tl.exp2(_log2_tail(tl.abs(z)))
    return tl.where(z < 0.0, tail, 1.0 - tail)


@triton.jit
def _tanh_parts(z):
    """s = sigmoid(2 u), s (1 - s) and u'; a NaN stays in s."""
    u = (z + z * z * z * CUBIC) * SQRT_2_OVER_PI
    e = tl.exp2(tl.abs(u) * MINUS_2_LOG2_E)
    root = tl.rsqrt(1.0 + e)  # its square is 1 / (1 + e) in two instructions, where a division takes seven
    r = root * root
    s = tl.where(u < 0.0, e * r, r)
    near = tl.minimum(tl.maximum(z, -HUGE), HUGE)
    return s, e * r * r, (near * near * (3.0 * CUBIC) + 1.0) * SQRT_2_OVER_PI


@triton.jit
def gelu(z, TANH: tl.constexpr):
    if TANH:
        s, _, _ = _tanh_parts(z)
        out = z * s
    else:
        out = z * _normal_cdf(z)
    return out


@triton.jit
def gelu_derivative(z, TANH: tl.constexpr):
    if TANH:
        s, slope, du = _tanh_parts(z)
        out = s + z * (2.0 * slope) * du
    else:
        out = _normal_cdf(z) + z * tl.exp2(z * z * MINUS_HALF_LOG2_E - LOG2_SQRT_2PI)
    return out


@triton.jit
def shifted(x_ptr, bias_ptr, at, cols, ok, col_ok, BIAS: tl.constexpr):
    """x + bias as float32; 0 beyond the tensor."""
    z = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    return z
