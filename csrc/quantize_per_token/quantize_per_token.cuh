// Symmetric int8 by rows.
//
// Mathematics
//   absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
//   even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
//   round(v) is the lowest byte of v + 1.5 2^23 for |v| < 2^7: between 2^23 and 2^24 float32 holds the integers alone.
//
// Contract
//   A group of kGroup threads holds a row of at most kGroup kItems columns in registers, reads it once and is its only
//   writer. A group is a warp, four of them a block, or a whole block. A row with a NaN or infinity, and every row of a
//   scale that is not positive and finite with a finite inverse, gets integers 0 and the scale NaN. Products and sums
//   are written as functions that no compiler contracts: fma(x, inverse, 1.5 2^23) would round other integers than the
//   definition. 16-byte loads and 8-byte stores in rows at such multiples that have a multiple of 8 columns.
//
// Cost
//   4 flop an element; x once, a byte an element and 4 bytes a row. Shared memory: 128 bytes.
#pragma once
#include "../common/reductions.cuh"
#include "../common/row_parts.cuh"
#include "quantize_per_token.h"

namespace fasttx {

struct RowScale {
  float scale, inverse;
  bool good;

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

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup)) quantize_per_token_kernel(QuantizePerTokenParams p) {
  FTX_SHARED(float, partials, kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float x[kItems], absmax = 0.0f;
  part.template load<T>({p.x, p.dtype}, row * p.stride_xm, x);
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    const float size = fabsf(x[i]);
    absmax = fmaxf(absmax, size < INFINITY ? size : INFINITY);  // a maximum would lose a NaN
  }
  const RowScale scale(p.scale, group_reduce<Max, kGroup>(absmax, partials));
  int8_t* x_q = p.x_q + row * p.n_cols;
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
  if (part.thread == 0) p.x_scale[row] = scale.good ? scale.scale : NAN;
}

}  // namespace fasttx
