// Symmetric int8 by rows.
//
// Mathematics
//   absmax_m = max(max_k |x_mk|, 2^-118),  x_scale_m = absmax_m / 127,  x_q_mk = round(x_mk (127 / absmax_m)), half to
//   even. With a scale given: x_q = round(x (1 / scale)) clamped to [-127, 127]. Operations are float32, rounded once.
//   How that is computed: ../common/row_scale.cuh.
//
// Contract
//   A group of kGroup threads holds a row of at most kGroup kItems columns in registers, reads it once and is its only
//   writer. A group is a warp, four of them a block, or a whole block. A row with a NaN or infinity, and every row of a
//   scale that is not positive and finite with a finite inverse, gets integers 0 and the scale NaN. 16-byte loads and
//   8-byte stores in rows at such multiples that have a multiple of 8 columns.
//
// Cost
//   4 flop an element; x once, a byte an element and 4 bytes a row. Shared memory: 128 bytes.
#pragma once
#include "../common/row_scale.cuh"
#include "quantize_per_token.h"

namespace fasttx {

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup)) quantize_per_token_kernel(QuantizePerTokenParams p) {
  FTX_SHARED(float, partials, kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float x[kItems];
  part.template load<T>({p.x, p.dtype}, row * p.stride_xm, x);
  store_quantised(part, p.x_q, p.x_scale, p.scale, row, partials, x);
}

}  // namespace fasttx
