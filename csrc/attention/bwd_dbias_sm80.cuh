// The gradient of attention's additive bias by mma.sync.
//
// Mathematics
//   dbias[i, j] = sum of dS[i, j] over the sequences, heads and queries that read that element, with dS as in
//   bwd_dkdv_sm80.cuh, computed again: two products.
//
// Contract
//   A block owns a tile of dbias, kBlockM queries (all of them where the bias has one row) x kBlockN keys. It adds up
//   the tiles of dS of all that read it, in registers and one after the other: no atomics, the same bits every time.
//   dbias is contiguous and wholly written, with zeros where no query saw a key. Of a bias of one column it is 0: not
//   for here.
//
// Cost
//   4 Sq Sk head_dim flop a head; q, k, v and dout of every sequence once for each tile of the bias, mostly from L2. A
//   bias of few tiles has few blocks.
#pragma once
#include "../common/elements.cuh"
#include "bwd_rows_sm80.cuh"

namespace fasttx {

// dbias of a warp: 16 rows of the tile, whose first is `row`, from key n0 on.
template <int kN8>
FTX_DEVICE void store_dbias(const AttentionBwdParams& p, int64_t first, int row, int n0, const float (&sum)[kN8][4]) {
  const int lane = threadIdx.x % 32, rows = p.dbias_sizes[2], columns = p.dbias_sizes[3];
  with_element<Any>(p.dbias.dtype, [&](auto type) {
    auto* to = static_cast<typename decltype(type)::type*>(p.dbias.data) + first * rows * columns;
#pragma unroll
    for (int x = 0; x < 4 * kN8; x++) {
      const int at_row = row + lane / 4 + x % 4 / 2 * 8, column = n0 + x / 4 * 8 + lane % 4 * 2 + x % 2;
      if (at_row < rows && column < columns) {
        from_float(sum[x / 4][x % 4], to + static_cast<int64_t>(at_row) * columns + column);
      }
    }
  });
}

// The same of a bias of one row: the sum over all rows of the block, in the order of its warps.
template <int kWarps, int kN8>
FTX_DEVICE void store_column_sums(const AttentionBwdParams& p, int64_t first, int n0, const float (&sum)[kN8][4],
                                  float* partials) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, columns = p.dbias_sizes[3];
#pragma unroll
  for (int x = 0; x < 2 * kN8; x++) {
    float of_column = sum[x / 2][x % 2] + sum[x / 2][x % 2 + 2];
#pragma unroll
    for (int lanes = 16; lanes >= 4; lanes /= 2) of_column += __shfl_xor_sync(0xffffffffu, of_column, lanes);
    if (lane < 4) partials[warp * 8 * kN8 + x / 2 * 8 + lane * 2 + x % 2] = of_column;
  }
  __syncthreads();  // partials: written by each warp, read by the first threads
  const int column = threadIdx.x;
  if (column >= 8 * kN8 || n0 + column >= columns) return;
  float total = 0.0f;
  for (int w = 0; w < kWarps; w++) total += partials[w * 8 * kN8 + column];
  with_element<Any>(p.dbias.dtype, [&](auto type) {
    from_float(total, static_cast<typename decltype(type)::type*>(p.dbias.data) + first * columns + n0 + column);
  });
}

template <class T, int kD>
__global__ void __launch_bounds__(QueryBlock<kD>::kThreads, bwd_blocks(kD))
    attention_bwd_dbias_kernel(const __grid_constant__ BwdLaunch a) {
  using Of = QueryBlock<kD>;
  constexpr int kBlockM = Of::kBlockM, kBlockN = Of::kBlockN, kN8 = kBlockN / 8;
  FTX_DYNAMIC_SHARED(shared, 128);
  const AttentionShape& shape = a.p.shape;
  const bool one_row = a.p.dbias_sizes[2] == 1;
  const int warp_row = threadIdx.x / 32 * 16, tiles_n = (a.p.dbias_sizes[3] + kBlockN - 1) / kBlockN;
  const int tile = blockIdx.x % a.blocks, n0 = tile % tiles_n * kBlockN, own_m0 = tile / tiles_n * kBlockM;
  const int own = blockIdx.x / a.blocks, own_b = own / a.p.dbias_sizes[1], own_h = own % a.p.dbias_sizes[1];
  const typename Of::Queries q_tile(shared), dout_tile(shared + Of::Queries::kBytes);
  const typename Of::Keys k_tile(shared + 2 * Of::Queries::kBytes), v_tile(k_tile.data + Of::Keys::kBytes);
  const ScoreUnits units(shape);
  const bool every_b = a.p.dbias_sizes[0] == 1, every_h = a.p.dbias_sizes[1] == 1;
  const int heads = every_h ? shape.num_heads : 1, readers = (every_b ? shape.batch : 1) * heads;
  float sum[kN8][4] = {};
  for (int reader = 0; reader < readers; reader++) {
    const int b = every_b ? reader / heads : own_b, h = every_h ? reader % heads : own_h;
    const HeadWork work(shape, b * shape.num_heads + h);
    HeadMask mask(shape, work);
    if (mask.is_key_mask()) {
      __syncthreads();  // the tiles before: read by all
      mask.n_k = mask.last_key(&aligned_at<int>(shared));
    }
    if (n0 >= mask.n_k) continue;
    const Matrix<T> q(work.tokens<T>(a.p.q, a.p.q_strides, work.q, work.h), a.p.q_strides[1], work.n_q, shape.head_dim);
    const Matrix<T> dout(work.tokens<T>(a.p.dout, a.p.dout_strides, work.q, work.h), a.p.dout_strides[1], work.n_q,
                         shape.head_dim_v);
    const Matrix<T> k(work.tokens<T>(a.p.k, a.p.k_strides, work.k, work.h_k), a.p.k_strides[1], mask.n_k,
                      shape.head_dim);
    const Matrix<T> v(work.tokens<T>(a.p.v, a.p.v_strides, work.k, work.h_k), a.p.v_strides[1], mask.n_k,
                      shape.head_dim_v);
    const int end = one_row ? work.n_q : own_m0 + 1 < work.n_q ? own_m0 + 1 : work.n_q;
    for (int m0 = own_m0; m0 < end; m0 += kBlockM) {
      const int row0 = m0 + work.shift;
      if (n0 > row0 + kBlockM - 1 + shape.window_right || n0 + kBlockN - 1 < row0 - shape.window_left) continue;
      __syncthreads();  // the tiles before, or the ends of masks: read by all
      q.template load<Of::kThreads>(q_tile, m0);
      dout.template load<Of::kThreads>(dout_tile, m0);
      k.template load<Of::kThreads>(k_tile, n0);
      v.template load<Of::kThreads>(v_tile, n0);
      cp_async_commit();
      const RowStats stats(a, work, m0 + warp_row);
      cp_async_wait<0>();
      __syncthreads();  // the tiles, of all threads, are there
      float s[1][kN8][4] = {}, dp[kN8][4] = {};
      const LeftOperand<kD, false> rows{};
      add_product_transposed<T>(s[0], rows.of(q_tile, warp_row), k_tile);
      add_product_transposed<T>(dp, rows.of(dout_tile, warp_row), v_tile);
      units_of_scores(s, units);
      mask.template apply<false>(s, m0 + warp_row, n0);
      row_gradients<true>(s[0], dp, stats, units, shape, work.head, m0 + warp_row, n0);
#pragma unroll
      for (int x = 0; x < 4 * kN8; x++) sum[x / 4][x % 4] += dp[x / 4][x % 4];
    }
  }
  if (one_row) {
    __syncthreads();  // the tiles: read by all
    store_column_sums<Of::kWarps>(a.p, own, n0, sum, &aligned_at<float>(shared));
  } else {
    store_dbias(a.p, own, own_m0 + warp_row, n0, sum);
  }
}

}  // namespace fasttx
