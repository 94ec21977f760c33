// Layer norm of x + residual, and symmetric int8 of its rows, in one pass.
//
// Mathematics
//   out = layer norm of x + residual, as in ../dropout_add_layer_norm/dropout_add_layer_norm.cuh, rounded to its dtype;
//   x_q and x_scale are those of the rounded out, as in ../common/row_scale.cuh.
//
// Contract
//   A group of kGroup threads holds a row of at most kGroup kItems columns in registers, reads it once and is its only
//   writer. Groups, columns of a thread and order of sums are those of dropout_add_layer_norm's forward, so that out
//   has the same bits. z, mean and rstd are not written. A row of out with a NaN or infinity gets integers 0 and the
//   scale NaN. 16-byte accesses, and 8-byte stores of integers, in rows at such multiples that have a multiple of 8
//   columns. Deterministic. T is the element type of x, residual and out, Any where they differ.
//
// Cost
//   About 14 flop an element; x, residual and out once, a byte an element and 4 bytes a row. Shared memory: 128 bytes
//   a reduction.
#pragma once
#include "../common/layer_norm.cuh"
#include "../common/row_scale.cuh"
#include "add_layer_norm_quantize.h"

namespace fasttx {

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup), layer_norm_blocks(kGroup, kItems, false))
    add_layer_norm_quantize_kernel(AddLayerNormQuantizeParams p) {
  FTX_SHARED(float, partials, 4 * kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float z[kItems];
  part.template load<T>(p.x, row * p.stride_xm, z);
  add_residual<T>(part, p.residual, row * p.stride_rm, z);
  float mean, rstd;
  normalise(part, p.eps, partials, z, &mean, &rstd);
  scale_and_shift(part, p.weight, p.bias, z);
  part.template store<T>(p.out, row * p.n_cols, z);
  round_to<T>(p.out.dtype, z);
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    if (part.column(i) + i % kRowRun >= part.n_cols) z[i] = 0.0f;
  }
  store_quantised(part, p.x_q, p.x_scale, p.scale, row, partials + 3 * kMaxWarps, z);
}

}  // namespace fasttx
