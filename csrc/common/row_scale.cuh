// Symmetric int8 of rows that a group of threads holds in registers: the scale of a row, and its integers.
//
// absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
// even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
// round(v) is the lowest byte of v + 1.5 2^23 for |v| < 2^7: between 2^23 and 2^24 float32 holds the integers alone.
#pragma once
#include "../arch/aligned.cuh"
#include "checks.h"
#include "dispatch.h"
#include "reductions.cuh"
#include "row_parts.cuh"

namespace fasttx {

// start(threads of a row, columns of a thread): a warp for rows of up to 1,024 columns, which then cost no barrier.
template <class Start>
void with_quantised_group(const char* name, int64_t n_cols, Start&& start) {
  const bool found = dispatch_at_least<512, 1024, 4096, 16384>(n_cols, [&](auto columns) {
    constexpr int kItems = columns == 512 ? 16 : 32;
    start(std::integral_constant<int, columns / kItems>{}, std::integral_constant<int, kItems>{});
  });
  require(found, name, "rows of at most 16384 columns fit the registers of a block");
}

// Products and sums are functions that no compiler contracts: fma(x, inverse, 1.5 2^23) would round other integers than
// the definition.
struct RowScale {
  float scale, inverse;
  bool good;  // else the row has integers 0 and the scale NaN

  // absmax: of the row, infinity where it holds a NaN.
  FTX_DEVICE RowScale(const float* given, float absmax) : good(absmax < INFINITY) {
    if (given != nullptr) {
      scale = *given;
      inverse = __fdiv_rn(1.0f, scale);
      good = good && scale > 0.0f && scale < INFINITY && inverse < INFINITY;
    } else {
      absmax = fmaxf(absmax, 0x1p-118f);
      scale = __fdiv_rn(absmax, 127.0f);
      inverse = __fdiv_rn(127.0f, absmax);
    }
  }

  FTX_DEVICE int8_t integer(float x) const {
    const float v = good ? fminf(fmaxf(__fmul_rn(x, inverse), -127.0f), 127.0f) : 0.0f;
    return static_cast<int8_t>(__float_as_int(__fadd_rn(v, 0x1.8p23f)));
  }
};

// Writes the integers and the scale of row `row`, whose values x are 0 beyond its end. `given`: one scale for all rows,
// or nullptr. `partials` holds kMaxWarps floats. 8-byte stores in rows at such multiples that have a multiple of 8
// columns.
template <int kGroup, int kItems>
FTX_DEVICE void store_quantised(const RowPart<kGroup, kItems>& part, int8_t* x_q, float* x_scale, const float* given,
                                int64_t row, float* partials, const float (&x)[kItems]) {
  float absmax = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    const float size = fabsf(x[i]);
    absmax = fmaxf(absmax, size < INFINITY ? size : INFINITY);  // a maximum would lose a NaN
  }
  const RowScale scale(given, group_reduce<Max, kGroup>(absmax, partials));
  x_q += row * part.n_cols;
  const bool whole = reinterpret_cast<uintptr_t>(x_q) % kRowRun == 0 && part.n_cols % kRowRun == 0;
#pragma unroll
  for (int item = 0; item < kItems; item += kRowRun) {
    const uint32_t col = part.column(item), valid = left_of(part.n_cols, col);
    Vector<int8_t, kRowRun> run;
#pragma unroll
    for (int i = 0; i < kRowRun; i++) run.values[i] = scale.integer(x[item + i]);
    if (whole) {
      if (valid > 0) aligned_at<Vector<int8_t, kRowRun>>(x_q + col) = run;
    } else {
#pragma unroll
      for (int i = 0; i < kRowRun; i++) {
        if (static_cast<uint32_t>(i) < valid) x_q[col + i] = run.values[i];
      }
    }
  }
  if (part.thread == 0) x_scale[row] = scale.good ? scale.scale : NAN;
}

}  // namespace fasttx
