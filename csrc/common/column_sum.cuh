// Sums over rows, the second step: of the partial sums that each block of another kernel wrote.
//
// Mathematics
//   out_s[col] = sum_p partial[s][p][col]
//
// Contract
//   A block computes 32 columns of one sum: a warp reads 128 bytes of a row, eight warps every eighth row each, and
//   the first adds what they found in their order. No atomics: bitwise deterministic. out has a dtype of its own.
//
// Cost
//   partial once. Shared memory: 1 KiB.
#pragma once
#include "column_sum.h"
#include "row_parts.cuh"

namespace fasttx {

constexpr int kSumColumns = 32, kSumWarps = 8;

__global__ void __launch_bounds__(kSumColumns* kSumWarps) column_sum_kernel(ColumnSumParams p) {
  FTX_SHARED(float, sums, kSumColumns* kSumWarps);
  const int lane = threadIdx.x % kSumColumns, warp = threadIdx.x / kSumColumns;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kSumColumns + lane;
  float sum = 0.0f;
  if (col < p.n_cols) {
    const float* partial = p.partial + blockIdx.y * p.programs * p.n_cols + col;
    for (int64_t row = warp; row < p.programs; row += kSumWarps) sum += partial[row * p.n_cols];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();  // sums: written by each warp, read by the first
  if (warp > 0 || col >= p.n_cols) return;
#pragma unroll
  for (int w = 1; w < kSumWarps; w++) sum += sums[w * kSumColumns + lane];
  Out out = p.out[0];
#pragma unroll
  for (int i = 1; i < kMaxSums; i++) {  // an index that is known when it is compiled: else p would be copied to a stack
    if (blockIdx.y == static_cast<unsigned>(i)) out = p.out[i];
  }
  with_element<Any>(out.dtype,
                    [&](auto type) { from_float(sum, static_cast<typename decltype(type)::type*>(out.data) + col); });
}

}  // namespace fasttx
