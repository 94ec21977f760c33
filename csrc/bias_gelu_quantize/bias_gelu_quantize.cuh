// GELU of x + bias, and symmetric int8 of its rows, in one pass.
//
// Mathematics
//   a = gelu(x + bias), as in ../bias_gelu/bias_gelu.cuh, rounded to the dtype of x;
//   x_q and x_scale are those of the rounded a, as in ../common/row_scale.cuh.
//
// Contract
//   A group of kGroup threads holds a row of at most kGroup kItems columns in registers, reads it once and is its only
//   writer; a is not written. A row of a with a NaN or infinity gets integers 0 and the scale NaN. 16-byte loads and
//   8-byte stores in rows at such multiples that have a multiple of 8 columns. Deterministic. T is the element type of
//   x. With a scale given no row needs to be whole, but a kernel of its own would save one maximum and no byte.
//
// Cost
//   About 34 flop an element (../common/gelu.cuh); x once, a byte an element and 4 bytes a row; bias from L1. Shared
//   memory: 128 bytes.
#pragma once
#include "../common/gelu.cuh"
#include "../common/row_scale.cuh"
#include "bias_gelu_quantize.h"

namespace fasttx {

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup)) bias_gelu_quantize_kernel(BiasGeluQuantizeParams p) {
  FTX_SHARED(float, partials, kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float z[kItems];
  part.template load<T>({p.x, p.dtype}, row * p.stride_xm, z);
  if (p.bias.data != nullptr) {
#pragma unroll
    for (int item = 0; item < kItems; item += kRowRun) {
      float bias[kRowRun];
      part.template load_run<Any>(p.bias, 0, item, bias);
#pragma unroll
      for (int i = 0; i < kRowRun; i++) z[item + i] += bias[i];
    }
  }
#pragma unroll
  for (int item = 0; item < kItems; item += kRowRun) {  // by itself: with the sum, once for each way to load a bias
    float run[kRowRun];
#pragma unroll
    for (int i = 0; i < kRowRun; i++) run[i] = z[item + i];
    gelu(p.tanh, run);  // 0 beyond the end of the row, as x and bias are
#pragma unroll
    for (int i = 0; i < kRowRun; i++) z[item + i] = run[i];
  }
  round_to<T>(p.dtype, z);
  store_quantised(part, p.x_q, p.x_scale, p.scale, row, partials, z);
}

}  // namespace fasttx
