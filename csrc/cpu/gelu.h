// GELU of sixteen numbers, in either form. The formulas and the polynomial are those of ../common/gelu.cuh.
#pragma once
#include "vectors.h"

namespace fasttx::cpu {
namespace FTX_FORM {

// Of several vectors at a time: each step of a polynomial waits for the one before, and meanwhile the others go on.
template <int kCount>
using Vectors = Vector[kCount];

#define FTX_ALL for (int j = 0; j < kCount; j++)

// 2^p for p <= 0; below 2^-126 it is 0, and a NaN stays one.
template <int kCount>
FTX_INLINE void exp2_of_negative(Vectors<kCount>& p) {
  constexpr float kPowers[] = {0.6931471805599453f,   0.2402265069591007f,    0.05550410866482158f,
                               0.009618129107628477f, 0.0013333558146428443f, 0.00015403530393381608f,
                               1.525273380405984e-05f};  // ln 2^k / k!
  Vectors<kCount> rest, value;
  Ints power[kCount];
  FTX_ALL {
    const Vector near = if_less(p[j], all(-126.0f), all(-126.0f), p[j]);
    power[j] = rounded(near);
    rest[j] = near - to_floats(power[j]);
    value[j] = all(kPowers[6]);
  }
  for (int i = 5; i >= 0; i--) FTX_ALL value[j] = value[j] * rest[j] + all(kPowers[i]);
  FTX_ALL {
    value[j] = (value[j] * rest[j] + all(1.0f)) * from_bits((power[j] + all_ints(127)) << 23);
    p[j] = if_less(p[j], all(-126.0f), all(0.0f), value[j]);
  }
}

// z Phi(z), Phi by its tail Q(a) = 2^P(a), a = |z|.
template <int kCount>
FTX_INLINE void gelu_erf(Vectors<kCount>& z) {
  constexpr float kLog2Tail[] = {-1.0f,           -1.1511061f,     -0.45920318f,   -0.05249278f,     0.0070127617f,
                                 -3.9052178e-05f, -0.00027228284f, 7.9723526e-05f, -1.31851475e-05f, 1.4013885e-06f,
                                 -9.452149e-08f,  3.6855528e-09f,  -6.326141e-11f};
  constexpr int kDegree = sizeof(kLog2Tail) / sizeof(float) - 1;
  Vectors<kCount> tail;
  FTX_ALL tail[j] = all(kLog2Tail[kDegree]);
  for (int i = kDegree - 1; i >= 0; i--) FTX_ALL tail[j] = tail[j] * magnitude(z[j]) + all(kLog2Tail[i]);
  exp2_of_negative<kCount>(tail);
  FTX_ALL z[j] = z[j] * if_less(z[j], all(0.0f), tail[j], all(1.0f) - tail[j]);
}

// z sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3).
template <int kCount>
FTX_INLINE void gelu_tanh(Vectors<kCount>& z) {
  Vectors<kCount> u, e;
  FTX_ALL {
    u[j] = (z[j] + z[j] * z[j] * z[j] * all(0.044715f)) * all(0.7978845608028654f);
    e[j] = magnitude(u[j]) * all(-2.8853900817779268f);
  }
  exp2_of_negative<kCount>(e);
  FTX_ALL {
    const Vector r = all(1.0f) / (all(1.0f) + e[j]);
    z[j] = z[j] * if_less(u[j], all(0.0f), e[j] * r, r);
  }
}

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
