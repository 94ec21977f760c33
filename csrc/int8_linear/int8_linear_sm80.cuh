// Linear layer of int8 rows and int8 weights on mma.sync, dequantised in the epilogue. Compute capability 8.0.
//
// Mathematics
//   acc_mn = sum_k x_q_mk w_q_nk in int32, exact.  y = (acc x_scale_m) w_scale_n + bias_n in float32, and then
//   gelu: y Phi(y), or gelu_tanh: y sigmoid(2 u), both of ../common/gelu.cuh;
//   out = act(y) + residual, rounded once to the dtype of out.
//
// Contract
//   A block of four warps computes block_m x block_n outputs, alone, over all of k: deterministic, and the sums are
//   integers, which no order changes. x_q, w_q and residual lie by rows at one stride, columns at stride 1; the other
//   tensors are contiguous. kAligned: rows of x_q and w_q begin at multiples of 16 bytes and n_in is one, and copies go
//   past the registers; else bytes are gathered. Nothing beyond the matrices is read or written.
//
// Cost
//   2 n_rows n_in n_out operations; x_q is read once a column block and w_q once a row block, from L2, which blocks of
//   kGroup row blocks share; outputs are written once. Shared memory: 48 KB. int8_linear_config.h has the tiles.
#pragma once
#include "int8_epilogue.cuh"

namespace fasttx {

constexpr int kGroup = 8;  // row blocks that run side by side, column block by column block

template <int kTile, bool kAligned>
__global__ void __launch_bounds__(kInt8Threads, kInt8Tiles[kTile].blocks)
    int8_linear_kernel(const __grid_constant__ Int8LinearParams p) {
  using Shape = Int8Shape<kTile>;
  FTX_DYNAMIC_SHARED(memory, 1024);
  const int64_t blocks_m = (p.n_rows + Shape::kBlockM - 1) / Shape::kBlockM;
  const int64_t blocks_n = (p.n_out + Shape::kBlockN - 1) / Shape::kBlockN;
  const int64_t of_group = kGroup * blocks_n, first_m = blockIdx.x / of_group * kGroup;
  const int64_t rows_of_group = blocks_m - first_m < kGroup ? blocks_m - first_m : kGroup,
                within = blockIdx.x % of_group;
  const int64_t row0 = (first_m + within % rows_of_group) * Shape::kBlockM;
  const int64_t col0 = within / rows_of_group * Shape::kBlockN;
  const Int8Scales<Shape> scales(p, row0, col0);
  int sums[Shape::kFragmentsM][Shape::kFragmentsN][4] = {};
  int8_product<Shape, kAligned>(p, memory, row0, col0, sums);
  int8_epilogue<Shape>(p, memory, row0, col0, scales, sums);
}

}  // namespace fasttx
