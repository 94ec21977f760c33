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

FTX_DEVICE float normal_cdf(float z) {
  return 0.5f + 0.5f * erff(z * 0.7071067811865476f);
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
      z[i] = normal_cdf(z[i]) + z[i] * (0.3989422804014327f * __expf(-0.5f * z[i] * z[i]));
    }
  }
}

}  // namespace fasttx
