// What the attention backward wants of each query before it begins.
//
//   lse    what an exponent is lowered by so that 2^exponent = P / (1 - p_hat): softmax_lse - log(1 / (1 - p_hat)),
//   times
//          log2(e) where scores are raw (ScoreUnits); +inf of a query without keys, so that its P is 0
//   delta  rowsum(dout * out), times 1 - p_hat
//
// The rest of a sequence's last kStatRows rows gets (inf, 0): loops over tiles of queries need no mask for them.
#pragma once
#include "bwd_sm80.cuh"

namespace fasttx {

constexpr int kDeltaThreads = 256, kDeltaLanes = 8;  // of a block, and of a row

template <class T>
__global__ void __launch_bounds__(kDeltaThreads) attention_bwd_delta_kernel(const __grid_constant__ BwdLaunch a) {
  const AttentionShape& shape = a.p.shape;
  const HeadWork work(shape, blockIdx.x / a.blocks);
  const int m0 = blockIdx.x % a.blocks * kStatRows, columns = shape.head_dim_v;
  if (m0 >= work.n_q) return;
  const T* dout = work.tokens<T>(a.p.dout, a.p.dout_strides, work.q, work.h);
  const int64_t out_stride = static_cast<int64_t>(shape.num_heads) * columns;
  const T* out = static_cast<const T*>(a.p.out) + work.out_row(shape) * out_stride + work.h * columns;
  const float* softmax_lse = a.p.softmax_lse + work.lse_row(shape);
  const int64_t first = stat_row(a, work);
  const ScoreUnits units(shape);
  const bool aligned = is_vector_aligned(dout) && a.p.dout_strides[1] % kVectorWidth<T> == 0 &&
                       is_vector_aligned(out) && out_stride % kVectorWidth<T> == 0;
  for (int r = threadIdx.x / kDeltaLanes; r < kStatRows; r += kDeltaThreads / kDeltaLanes) {
    const int row = m0 + r;
    float lse = INFINITY, delta = 0.0f;
    if (row < work.n_q) {
      for (int c = threadIdx.x % kDeltaLanes * 8; c < columns; c += kDeltaLanes * 8) {
        float x[8], y[8];
        const uint32_t valid = columns - c < 8 ? columns - c : 8;
        load_run<8>(dout + row * a.p.dout_strides[1] + c, valid, aligned, x);
        load_run<8>(out + row * out_stride + c, valid, aligned, y);
#pragma unroll
        for (int e = 0; e < 8; e++) delta += x[e] * y[e];
      }
      lse = softmax_lse[row];
      lse = lse == -INFINITY ? INFINITY : lse - logf(a.keep_scale);
      if (units.folds) lse *= kLog2e;
    }
#pragma unroll
    for (int lanes = kDeltaLanes / 2; lanes > 0; lanes /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, lanes);
    if (threadIdx.x % kDeltaLanes == 0) {
      a.lse[first + row] = lse;
      a.delta[first + row] = delta / a.keep_scale;
    }
  }
}

}  // namespace fasttx
