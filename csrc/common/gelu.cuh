// GELU and its derivative of a run of columns, in either form; formulas stand in ../bias_gelu/bias_gelu.cuh.
#pragma once
#include "row_parts.cuh"

namespace fasttx {

struct TanhParts {
  float s, slope, du;  // sigmoid(2 u), s (1 - s), u'

  FTX_DEVICE explicit TanhParts(float z) {
    constexpr float kSqrt2OverPi = 0.7978845608028654f, kCubic = 0.044715f;
    const float u = kSqrt2OverPi * (z + kCubic * z * z * z), e = __expf(-2.0f * fabsf(u));
    const float r = __fdividef(1.0f, 1.0f + e);
    s = u < 0.0f ? e * r : r;
    slope = e * r * r;
    const float near = fminf(fmaxf(z, -1e9f), 1e9f);  // beyond it u' meets a factor of 0, and its square would overflow
    du = kSqrt2OverPi * (1.0f + 3.0f * kCubic * near * near);
  }
};

// Phi(z) by its tail Q(a) = exp2(P(a)), a = |z|: nothing cancels on the left. P falls to -inf, and a NaN stays one.
FTX_DEVICE float normal_cdf(float z) {
  // P from a^0; kernels/gelu.py has the same numbers, and tests/scripts/gelu_polynomial.py finds them
  constexpr float kLog2Tail[] = {-1.0f,           -1.1511061f,     -0.45920318f,   -0.05249278f,     0.0070127617f,
                                 -3.9052178e-05f, -0.00027228284f, 7.9723526e-05f, -1.31851475e-05f, 1.4013885e-06f,
                                 -9.452149e-08f,  3.6855528e-09f,  -6.326141e-11f};
  constexpr int kDegree = sizeof(kLog2Tail) / sizeof(float) - 1;
  const float a = fabsf(z);
  float p = kLog2Tail[kDegree];
#pragma unroll
  for (int i = kDegree - 1; i >= 0; i--) p = fmaf(p, a, kLog2Tail[i]);
  const float tail = exp2f(p);
  return z < 0.0f ? tail : 1.0f - tail;
}

FTX_DEVICE void gelu(bool tanh, float (&z)[kRowRun]) {
  if (tanh) {
#pragma unroll
    for (int i = 0; i < kRowRun; i++) z[i] *= TanhParts(z[i]).s;
  } else {
#pragma unroll
    for (int i = 0; i < kRowRun; i++) z[i] *= normal_cdf(z[i]);
  }
}

FTX_DEVICE void gelu_derivative(bool tanh, float (&z)[kRowRun]) {
  if (tanh) {
#pragma unroll
    for (int i = 0; i < kRowRun; i++) {
      const TanhParts parts(z[i]);
      z[i] = parts.s + z[i] * (2.0f * parts.slope) * parts.du;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRowRun; i++) {
      z[i] = normal_cdf(z[i]) + z[i] * exp2f(fmaf(z[i] * z[i], -0.7213475204444817f, -1.3257480647361592f));
    }
  }
}

}  // namespace fasttx
