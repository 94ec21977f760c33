// Attention forward by mma.sync, for compute capability 8.0 and later.
//
// Mathematics
//   S = softmax_scale Q K^T (+ mask), -inf where masked;  P = softmax(S);  out = dropout(P) V,  lse = m + ln l
//   online over tiles of keys (online_softmax.cuh; Dao, "FlashAttention-2", 2023).
//
// Contract
//   A block computes kQueries rows of out and lse of one head and is the only one that writes them: no atomics, bitwise
//   deterministic. q, k, v by strides, the last dim at stride 1; rows at multiples of 16 bytes are copied past the
//   registers, others by single elements. A row that no key is left to (no score above -1e30) gives 0 and lse -inf.
//   Keys from seqused_k on are never read; a key mask ends the loop after its last visible key. Packed: tokens after
//   the last sequence belong to none, out 0 and lse -inf; what wrong bounds leave out becomes NaN (work.cuh).
//
// Cost
//   2 Sq Sk (head_dim + head_dim_v) flop a head. q once; k and v once a block, mostly from L2. Shared memory: Q and two
//   stages of K and V.
#pragma once
#include "attention_config.h"
#include "dropout.cuh"
#include "fragments_sm80.cuh"
#include "online_softmax.cuh"

namespace fasttx {

template <int kDim>
struct Fwd {
  static constexpr FwdTile kTile = fwd_tile(kDim);
  static constexpr int kM = kTile.row_blocks, kN = kTile.keys / 8, kKeys = kTile.keys;
  static constexpr int kWarpQueries = 16 * kM, kQueries = fwd_queries(kDim), kThreads = 32 * kFwdWarps;
  static constexpr int kStage = 2 * Tile<kKeys, kDim>::kBytes;
};

// S = Q K^T for the warp's queries and a tile of keys.
template <class T, int kDim, class F = Fwd<kDim>>
FTX_DEVICE void scores(float (&s)[F::kM][F::kN][4], const Tile<F::kQueries, kDim>& q, const Tile<F::kKeys, kDim>& k,
                       int warp_row) {
#pragma unroll
  for (int i = 0; i < F::kM; i++) {
#pragma unroll
    for (int j = 0; j < F::kN; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[i][j][e] = 0.0f;
    }
  }
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t a[F::kM][4];
#pragma unroll
    for (int i = 0; i < F::kM; i++) q.load_a(a[i], warp_row + 16 * i, d);
#pragma unroll
    for (int j = 0; j < F::kN; j += 2) {
      uint32_t b[4];
      k.load_b(b, 8 * j, d);
#pragma unroll
      for (int i = 0; i < F::kM; i++) {
        mma<T>(s[i][j], a[i], b[0], b[1]);
        mma<T>(s[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// acc += P V.
template <class T, int kDim, class F = Fwd<kDim>>
FTX_DEVICE void weighted_values(float (&acc)[F::kM][kDim / 8][4], const uint32_t (&p)[F::kM][F::kN / 2][4],
                                const Tile<F::kKeys, kDim>& v) {
#pragma unroll
  for (int k = 0; k < F::kN / 2; k++) {
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t b[4];
      v.load_b_transposed(b, 16 * k, d);
#pragma unroll
      for (int i = 0; i < F::kM; i++) {
        mma<T>(acc[i][d / 8], p[i][k], b[0], b[1]);
        mma<T>(acc[i][d / 8 + 1], p[i][k], b[2], b[3]);
      }
    }
  }
}

// Stores the warp's rows by way of its own rows of the tile of Q, which it alone has read: 16 bytes a thread where the
// rows of out begin at multiples of that.
template <class T, int kDim, class F = Fwd<kDim>>
FTX_DEVICE void store_rows(const Tile<F::kQueries, kDim>& tile, const float (&acc)[F::kM][kDim / 8][4], int warp_row,
                           T* out, int64_t stride, int rows, int columns) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // the other lanes' ldmatrix of Q
#pragma unroll
  for (int i = 0; i < F::kM; i++) {
#pragma unroll
    for (int j = 0; j < kDim / 8; j++) {
      const int row = warp_row + 16 * i + lane / 4, column = 8 * j + lane % 4 * 2;
      tile.pair(row, column) = pack<T>(acc[i][j][0], acc[i][j][1]);
      tile.pair(row + 8, column) = pack<T>(acc[i][j][2], acc[i][j][3]);
    }
  }
  __syncwarp();  // the pairs that other lanes stored
  const bool aligned = is_vector_aligned(out) && stride % kVectorWidth<T> == 0;
  constexpr int kChunks = kDim / 8;
#pragma unroll 4
  for (int i = lane; i < F::kWarpQueries * kChunks; i += 32) {
    const int row = warp_row + i / kChunks, column = i % kChunks * 8;
    if (row >= rows || column >= columns) continue;
    T* to = out + row * stride + column;
    const uint4 words = tile.chunk(row, column / 8);
    if (aligned && column + 8 <= columns) {
      store_vector(to, words);
    } else {
      T elements[8];
      memcpy(static_cast<void*>(elements), &words, sizeof elements);
#pragma unroll
      for (int e = 0; e < 8; e++) {
        if (column + e < columns) to[e] = elements[e];
      }
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(Fwd<kDim>::kThreads, kFwdBlocks)
    attention_fwd_sm80_kernel(const __grid_constant__ AttentionFwdParams p) {
  using F = Fwd<kDim>;
  FTX_DYNAMIC_SHARED(shared, 128);
  const AttentionShape& shape = p.shape;
  const int blocks = (shape.max_seqlen_q + F::kQueries - 1) / F::kQueries,
            warp_row = threadIdx.x / 32 * F::kWarpQueries;
  const HeadWork work(shape, blockIdx.x / blocks);
  // under a causal mask the last rows have most keys: they start first
  const bool window = shape.window_left < kNoWindow || shape.window_right < kNoWindow;
  const int block = blockIdx.x % blocks, m0 = (window ? blocks - 1 - block : block) * F::kQueries;
  const int64_t out_stride = static_cast<int64_t>(shape.num_heads) * shape.head_dim_v;
  T* out = static_cast<T*>(p.out) + work.h * shape.head_dim_v;
  if (shape.cu_seqlens_q != nullptr && m0 == 0) {
    fill_uncovered_results(out, out_stride, p.softmax_lse, shape, work, Team::of_block());
  }
  if (m0 >= work.n_q) return;

  HeadMask mask(shape, work);
  if (mask.is_key_mask()) {
    mask.n_k = mask.last_key(&aligned_at<int>(shared));
    __syncthreads();  // read by all; tiles take this memory next
  }
  // the keys that some query of the block may see
  const int last_query = m0 + F::kQueries < work.n_q ? m0 + F::kQueries : work.n_q;
  const int first = m0 + work.shift - shape.window_left, last = last_query + work.shift + shape.window_right;
  const int first_key = first > 0 ? first / F::kKeys * F::kKeys : 0;
  mask.n_k = last < mask.n_k ? last : mask.n_k;

  const Tile<F::kQueries, kDim> q_tile(shared);
  auto k_tile = [&](int n0) { return Tile<F::kKeys, kDim>(shared + q_tile.kBytes + n0 / F::kKeys % 2 * F::kStage); };
  auto v_tile = [&](int n0) { return Tile<F::kKeys, kDim>(k_tile(n0).data + F::kStage / 2); };
  const Matrix<T> q(work.tokens<T>(p.q, p.q_strides, work.q, work.h), p.q_strides[1], work.n_q, shape.head_dim);
  const Matrix<T> k(work.tokens<T>(p.k, p.k_strides, work.k, work.h_k), p.k_strides[1], mask.n_k, shape.head_dim);
  const Matrix<T> v(work.tokens<T>(p.v, p.v_strides, work.k, work.h_k), p.v_strides[1], mask.n_k, shape.head_dim_v);
  auto load = [&](int n0) {
    if (n0 < mask.n_k) {
      k.template load<F::kThreads>(k_tile(n0), n0);
      v.template load<F::kThreads>(v_tile(n0), n0);
    }
    cp_async_commit();
  };

  const ScoreUnits units(shape);
  q.template load<F::kThreads>(q_tile, m0);
  load(first_key);
  OnlineSoftmax<F::kM> softmax;
  float acc[F::kM][kDim / 8][4] = {};
  for (int n0 = first_key; n0 < mask.n_k; n0 += F::kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // this stage, of all threads, is there; and all have left the other one
    load(n0 + F::kKeys);

    float s[F::kM][F::kN][4], alpha[2 * F::kM];
    scores<T, kDim>(s, q_tile, k_tile(n0), warp_row);
    if (!units.folds) {
#pragma unroll
      for (int i = 0; i < F::kM * F::kN * 4; i++) s[i / 4 / F::kN][i / 4 % F::kN][i % 4] *= units.scale;
    }
    mask.template apply<false>(s, m0 + warp_row, n0);
    units.folds ? softmax.template add<true>(s, units, alpha) : softmax.template add<false>(s, units, alpha);
#pragma unroll
    for (int i = 0; i < F::kM * kDim / 2; i++) {
      const int block16 = i / (kDim / 2), e = i % 4;
      acc[block16][i % (kDim / 2) / 4][e] *= alpha[2 * block16 + e / 2];
    }
    uint32_t probabilities[F::kM][F::kN / 2][4];
#pragma unroll
    for (int i = 0; i < F::kM; i++) {
#pragma unroll
      for (int j = 0; j < F::kN; j += 2) as_a_operand<T>(probabilities[i][j / 2], s[i][j], s[i][j + 1]);
    }
    if (shape.rng_state != nullptr) {
      const AttentionDropout dropout(shape.rng_state, shape.threshold, work.head);
#pragma unroll
      for (int i = 0; i < F::kM; i++) {
#pragma unroll
        for (int j = 0; j < F::kN / 2; j += 2) {
          dropout.apply(m0 + warp_row + 16 * i, n0 + 16 * j, probabilities[i][j], probabilities[i][j + 1]);
        }
      }
    }
    weighted_values<T, kDim>(acc, probabilities, v_tile(n0));
  }
  cp_async_wait<0>();  // of a block that saw no key: its rows of Q are written below
  softmax.finish();

  const float keep_scale = 256.0f / static_cast<float>(256 - shape.threshold);
  float* lse = p.softmax_lse + work.lse_row(shape);
#pragma unroll
  for (int r = 0; r < 2 * F::kM; r++) {
    const float factor = keep_scale * softmax.normaliser(r);
#pragma unroll
    for (int j = 0; j < kDim / 8; j++) {
      acc[r / 2][j][r % 2 * 2] *= factor;
      acc[r / 2][j][r % 2 * 2 + 1] *= factor;
    }
    const int row = m0 + warp_row + 8 * r + threadIdx.x % 32 / 4;
    if (threadIdx.x % 4 == 0 && row < work.n_q) lse[row] = softmax.lse(r, units);
  }
  if (first_key >= mask.n_k) __syncthreads();  // ... by other threads' copies, too
  store_rows<T, kDim>(q_tile, acc, warp_row, out + (work.out_row(shape) + m0) * out_stride, out_stride, work.n_q - m0,
                      shape.head_dim_v);
}

}  // namespace fasttx
