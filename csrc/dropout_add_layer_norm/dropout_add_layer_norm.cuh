// Layer norm of dropout(x) + residual, row by row: forward and backward.
//
// Mathematics
//   z = keep x / (1 - p_hat) + residual,  mean and rstd = 1 / sqrt(var + eps) of the row,  xhat = (z - mean) rstd,
//   out = xhat weight + bias
//   backward, with g = dout weight:  dz = rstd (g - sum_j g_j / n - xhat sum_j g_j xhat_j / n)
//   dresidual = dz,  dx = keep dz / (1 - p_hat),  dweight = sum over rows of dout xhat,  dbias = sum over rows of dout
//
// Contract
//   A group of kGroup threads holds a row of at most kGroup kItems columns in registers, reads it once and is its only
//   writer. A group is a warp, four of them a block, or a whole block. Backward: blocks take rows in turn, and each
//   thread keeps the sums of its columns; a block writes one row of partial sums, and column_sum adds these. No
//   atomics: bitwise deterministic for a given number of blocks. z is never written: backward computes it again,
//   unrounded. 16-byte accesses in rows that begin at a multiple of 16 bytes and have a multiple of 8 columns.
//   T is the element type of x, residual and out (of dout, x, residual and their gradients), Any where they differ.
//
// Cost
//   Forward about 10 flop an element, backward 14; every tensor once; the partial sums 8 bytes a column and block,
//   twice. Two Philox calls for 16 elements, each of which two threads make. Shared memory: 128 bytes a reduction and,
//   backward, 4 bytes a column where a warp has a row.
#pragma once
#include "../common/layer_norm.cuh"
#include "dropout_add_layer_norm.h"

namespace fasttx {

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup), layer_norm_blocks(kGroup, kItems, false))
    dropout_add_layer_norm_fwd_kernel(DropoutAddLayerNormFwdParams p) {
  FTX_SHARED(float, partials, 3 * kMaxWarps);
  const int64_t row = RowPlace<kGroup>().row;
  if (row >= p.n_rows) return;  // a whole warp: a block of several warps has one row, which exists
  const RowPart<kGroup, kItems> part(p.n_cols);
  float z[kItems];
  part.template load<T>(p.x, row * p.stride_xm, z);
  apply_kept(kept(part, p.dropout, kLayerNormTag, row), p.dropout, z);
  add_residual<T>(part, p.residual, row * p.stride_rm, z);
  float mean, rstd;
  normalise(part, p.eps, partials, z, &mean, &rstd);
  scale_and_shift(part, p.weight, p.bias, z);
  part.template store<T>(p.out, row * p.n_cols, z);
  if (part.thread == 0) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
}

template <class T, int kGroup, int kItems>
__global__ void __launch_bounds__(block_threads(kGroup), layer_norm_blocks(kGroup, kItems, true))
    dropout_add_layer_norm_bwd_kernel(DropoutAddLayerNormBwdParams p) {
  FTX_SHARED(float, partials, 2 * kMaxWarps);
  FTX_SHARED(float, sums, (kPartialFloats<kGroup, kItems>));
  const RowPlace<kGroup> at;
  const RowPart<kGroup, kItems> part(p.n_cols);
  const bool with_dz = p.dx.data != nullptr || p.dresidual.data != nullptr;
  const bool with_z = with_dz || p.dweight.data != nullptr;
  const int64_t step = static_cast<int64_t>(gridDim.x) * at.kRowsPerBlock;
  float dweight[kItems] = {}, dbias[kItems] = {};
  for (int64_t row = at.row; row < p.n_rows; row += step) {
    float xhat[kItems], dy[kItems];  // dy last: it would hold registers while x and residual are read
    uint32_t bits = 0;
    if (with_z) {
      part.template load<T>(p.x, row * p.stride_xm, xhat);
      bits = kept(part, p.dropout, kLayerNormTag, row);
      apply_kept(bits, p.dropout, xhat);
      add_residual<T>(part, p.residual, row * p.stride_rm, xhat);
    }
    part.template load<T>(p.dout, row * p.stride_dm, dy);
#pragma unroll
    for (int i = 0; i < kItems; i++) dbias[i] += dy[i];
    if (!with_z) continue;

    const float mean = p.mean[row], rstd = p.rstd[row];
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      xhat[i] = (xhat[i] - mean) * rstd;  // not 0 beyond the end of the row, but dy is
      dweight[i] += dy[i] * xhat[i];
    }
    if (!with_dz) continue;

    scale_and_shift(part, p.weight, {}, dy);
    gradient_of_z(part, rstd, partials, xhat, dy);
    if (p.dresidual.data != nullptr) part.template store<T>(p.dresidual, row * p.n_cols, dy);
    if (p.dx.data == nullptr) continue;
    apply_kept(bits, p.dropout, dy);
    part.template store<T>(p.dx, row * p.n_cols, dy);
  }
  float* partial = p.partial + blockIdx.x * p.n_cols;
  if (p.dweight.data != nullptr) {
    store_partial(part, partial, sums, dweight);
    partial += p.programs * p.n_cols;
  }
  if (p.dbias.data != nullptr) store_partial(part, partial, sums, dbias);
}

}  // namespace fasttx
