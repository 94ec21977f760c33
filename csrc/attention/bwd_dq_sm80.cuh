// Attention backward by mma.sync: dq by tiles of queries, where no block of bwd_dkdv_sm80.cuh walks over all keys.
//
// Mathematics
//   dQ = softmax_scale dS K, with P, dP and dS as there, computed again: three products, two of them for the second
//   time. That is the price of dq without atomics, the same bits every time.
//
// Contract
//   A block is the only one that writes its kBlockM queries of one head. It walks over the keys as the forward does;
//   queries are rows, 16 a warp, so that dS is the left operand of dQ in the registers where it is computed. No warp
//   waits for another but for the tiles that all of them load.
#pragma once
#include "bwd_rows_sm80.cuh"

namespace fasttx {

template <class T, int kD, bool kDropout>
__global__ void __launch_bounds__(QueryBlock<kD>::kThreads, bwd_blocks(kD))
    attention_bwd_dq_kernel(const __grid_constant__ BwdLaunch a) {
  using Of = QueryBlock<kD>;
  constexpr int kBlockM = Of::kBlockM, kBlockN = Of::kBlockN, kN8 = kBlockN / 8;
  FTX_DYNAMIC_SHARED(shared, 128);
  const AttentionShape& shape = a.p.shape;
  const int warp = threadIdx.x / 32;
  const HeadWork work(shape, blockIdx.x / a.blocks);
  // under a causal mask the last rows have most keys: they start first
  const int m0 = (a.blocks - 1 - static_cast<int>(blockIdx.x % a.blocks)) * kBlockM, warp_row = m0 + 16 * warp;
  const GradientRows<T> dq(a.p.dq, shape.num_heads, shape.head_dim, work.h);
  if (shape.cu_seqlens_q != nullptr && m0 == 0) {
    dq.zero_uncovered(work.b, shape.batch, work.q, shape.total_q);
  }
  if (m0 >= work.n_q) return;

  HeadMask mask(shape, work);
  if (mask.is_key_mask()) {
    mask.n_k = mask.last_key(&aligned_at<int>(shared));
    __syncthreads();  // read by all; tiles take this memory next
  }
  const int last_query = m0 + kBlockM < work.n_q ? m0 + kBlockM : work.n_q;
  const int first = m0 + work.shift - shape.window_left, last = last_query + work.shift + shape.window_right;
  const int first_key = first > 0 ? first / kBlockN * kBlockN : 0;
  mask.n_k = last < mask.n_k ? last : mask.n_k;

  const Matrix<T> q(work.tokens<T>(a.p.q, a.p.q_strides, work.q, work.h), a.p.q_strides[1], work.n_q, shape.head_dim);
  const Matrix<T> dout(work.tokens<T>(a.p.dout, a.p.dout_strides, work.q, work.h), a.p.dout_strides[1], work.n_q,
                       shape.head_dim_v);
  const Matrix<T> k(work.tokens<T>(a.p.k, a.p.k_strides, work.k, work.h_k), a.p.k_strides[1], mask.n_k, shape.head_dim);
  const Matrix<T> v(work.tokens<T>(a.p.v, a.p.v_strides, work.k, work.h_k), a.p.v_strides[1], mask.n_k,
                    shape.head_dim_v);
  const typename Of::Queries q_tile(shared), dout_tile(shared + Of::Queries::kBytes);
  auto k_tile = [&](int n0) {
    const int stage = n0 / kBlockN % kBwdStages;
    return typename Of::Keys(shared + 2 * Of::Queries::kBytes + 2 * stage * Of::Keys::kBytes);
  };
  auto v_tile = [&](int n0) { return typename Of::Keys(k_tile(n0).data + Of::Keys::kBytes); };
  auto load = [&](int n0) {
    if (n0 < mask.n_k) {
      k.template load<Of::kThreads>(k_tile(n0), n0);
      v.template load<Of::kThreads>(v_tile(n0), n0);
    }
    cp_async_commit();
  };
  q.template load<Of::kThreads>(q_tile, m0);
  dout.template load<Of::kThreads>(dout_tile, m0);
  load(first_key);

  const RowStats stats(a, work, warp_row);
  const ScoreUnits units(shape);
  LeftOperand<kD, Of::kHeld> q_operand, dout_operand;
  float sum[kD / 8][4] = {};
  for (int n0 = first_key; n0 < mask.n_k; n0 += kBlockN) {
    cp_async_wait<0>();
    __syncthreads();  // this stage, of all threads, is there; and all have left the other one
    load(n0 + kBlockN);
    if (n0 == first_key) {
      q_operand.hold(q_tile, 16 * warp);
      dout_operand.hold(dout_tile, 16 * warp);
    }
    float s[1][kN8][4] = {}, dp[kN8][4] = {};
    add_product_transposed<T>(s[0], q_operand.of(q_tile, 16 * warp), k_tile(n0));
    add_product_transposed<T>(dp, dout_operand.of(dout_tile, 16 * warp), v_tile(n0));
    units_of_scores(s, units);
    mask.template apply<false>(s, warp_row, n0);
    row_gradients<kDropout>(s[0], dp, stats, units, shape, work.head, warp_row, n0);
    uint32_t ds_operand[kN8 / 2][4];
#pragma unroll
    for (int j = 0; j < kN8; j += 2) as_a_operand<T>(ds_operand[j / 2], dp[j], dp[j + 1]);
    add_product<T>(sum, from_registers(ds_operand), k_tile(n0), 0);
  }
  cp_async_wait<0>();
  dq.store(static_cast<int>(work.out_row(shape)), work.n_q, warp_row, 0, sum, shape.softmax_scale);
}

}  // namespace fasttx
