// Attention backward by mma.sync: dk and dv by tiles of keys, and dq where one block walks over all keys of a head.
//
// Mathematics
//   P = exp(S - lse);  Z = keep / (1 - p_hat);  dP = dout V^T;  delta = rowsum(dout * out)
//   dV = (Z * P)^T dout;  dS = Z * P * dP - P * delta;  dK = softmax_scale dS^T Q;  dQ = softmax_scale dS K
//   (Dao, "FlashAttention-2", 2023, section 3.1.2), all of it transposed: S^T = K Q^T and dP^T = V dout^T, with 16 keys
//   a warp. Then P^T and dS^T are, packed to 16 bits, the left operands of dV and dK in the registers where they were
//   computed. Only dS goes through shared memory, for dQ, whose rows are queries.
//
// Contract
//   A block writes kBlockN keys of dk and dv of one head of keys (kColumns columns of them: grid.y), in which it adds
//   up the heads of queries of its group. With computes_dq it does so for all keys of the head, one tile after the
//   other; dq of all its queries is added up in shared memory in float (`dq_sum`), each element by one lane. No
//   atomics, and the same bits every time. A single tile of keys needs no dq_sum: dq goes straight to global memory.
//   Keys from seqused_k on, and those after the last visible one of a key mask, are not read and get zeros.
//
// Cost
//   5 products of 2 Sq Sk head_dim flop a head. k and v once; q and dout once a tile of keys, from L2.
//
//   stage i:      Q, dO, lse, delta  --cp.async-->   S^T, dP^T  ->  P^T, dS^T in registers  ->  dV, dK in registers
//   stage i + 1:  on its way                                        dS^T to shared memory   ->  barrier  ->  dQ
#pragma once
#include "bwd_sm80.cuh"
#include "dropout_transposed.cuh"

namespace fasttx {

template <int kD>
struct KeyBlock {
  static constexpr BwdTile kTile = bwd_tile(kD);
  static constexpr int kWarps = kTile.warps, kThreads = 32 * kWarps, kBlockN = 16 * kWarps, kBlockM = kTile.streamed;
  static constexpr int kColumns = bwd_columns(kD);
  static constexpr bool kHasDq = bwd_has_dq(kD), kHeld = kD <= 64;  // the operands K and V, in registers
  // dQ of a tile: kWarpsM x kWarpsD warps of 16 queries and kDqColumns columns
  static constexpr int kWarpsM = kBlockM / 16, kWarpsD = kWarps / kWarpsM, kDqColumns = kD / kWarpsD;
  using Keys = Tile<kBlockN, kD>;
  using Queries = Tile<kBlockM, kD>;
  using Scores = Tile<kBlockN, kHasDq ? kBlockM : 32>;
  // shared memory, in bytes from its beginning
  static constexpr int kStats = 2 * Queries::kBytes, kStageBytes = kStats + 8 * kBlockM;
  static constexpr int kStage = 2 * Keys::kBytes, kScores = kStage + kBwdStages * kStageBytes;
  static constexpr int kDqSum = kScores + (kHasDq ? Scores::kBytes : 0);
  static_assert(kDqSum == static_cast<int>(bwd_keys_shared_bytes(kD)));
};

// Queries m0 .. m0 + kBlockM of a head, which counts from the group's first.
struct QueryTile {
  int head, m0;
};

// Sums of dq in shared memory: a lane's four registers side by side, those of the block's other lanes around them.
template <int kD, class Of = KeyBlock<kD>>
FTX_DEVICE float4& dq_sum(unsigned char* shared, int tile, int j) {
  const int at = (tile * (Of::kDqColumns / 8) + j) * Of::kThreads + static_cast<int>(threadIdx.x);
  return aligned_at<float4>(shared + Of::kDqSum + 16 * at);
}

// From a warp's scores and dP^T to the operands of dV and dK. lse and delta: of the 8 kM8 queries.
template <class T, bool kDropout, int kM8>
FTX_DEVICE void score_gradients(uint32_t (&p_operand)[kM8 / 2][4], uint32_t (&ds_operand)[kM8 / 2][4],
                                float (&s)[kM8][4], float (&dp)[kM8][4], const ScoreUnits& units, const float* lse,
                                const float* delta, [[maybe_unused]] const TransposedKeep<8 * kM8>& keep) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kM8; j++) {
    const float2 of_lse = aligned_at<float2>(lse + 8 * j + 2 * t), of_delta = aligned_at<float2>(delta + 8 * j + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float lowered = e % 2 == 0 ? of_lse.x : of_lse.y, mean = e % 2 == 0 ? of_delta.x : of_delta.y;
      const float p = probability(s[j][e], lowered, units);
      if constexpr (kDropout) {
        s[j][e] = keep.kept(j, e) ? p : 0.0f;
        dp[j][e] = s[j][e] * dp[j][e] - p * mean;
      } else {
        s[j][e] = p;
        dp[j][e] = p * (dp[j][e] - mean);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kM8; j += 2) {
    as_a_operand<T>(p_operand[j / 2], s[j], s[j + 1]);
    as_a_operand<T>(ds_operand[j / 2], dp[j], dp[j + 1]);
  }
}

template <class T, int kD, bool kDropout>
__global__ void __launch_bounds__(KeyBlock<kD>::kThreads, bwd_blocks(kD))
    attention_bwd_dkdv_kernel(const __grid_constant__ BwdLaunch a) {
  using Of = KeyBlock<kD>;
  constexpr int kBlockM = Of::kBlockM, kBlockN = Of::kBlockN, kM8 = kBlockM / 8;
  FTX_DYNAMIC_SHARED(shared, 128);
  const AttentionShape& shape = a.p.shape;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_m = warp % Of::kWarpsM;
  const int group = shape.num_heads / shape.num_heads_k, column0 = Of::kColumns == kD ? 0 : blockIdx.y * Of::kColumns;
  const HeadWork work(shape, static_cast<int>(blockIdx.x / a.blocks) * group);  // the first head of the group
  const int len_k = work.k.length, n_q = work.n_q;
  auto of_dq = [&](int h) { return GradientRows<T>(a.p.dq, shape.num_heads, shape.head_dim, h); };
  auto of_dk = [&](int h) { return GradientRows<T>(a.p.dk, shape.num_heads_k, shape.head_dim, h); };
  auto of_dv = [&](int h) { return GradientRows<T>(a.p.dv, shape.num_heads_k, shape.head_dim_v, h); };
  const int first_tile = blockIdx.x % a.blocks;
  if (shape.cu_seqlens_q != nullptr && first_tile == 0 && blockIdx.y == 0) {
    of_dk(work.h_k).zero_uncovered(work.b, shape.batch, work.k, shape.total_k);
    of_dv(work.h_k).zero_uncovered(work.b, shape.batch, work.k, shape.total_k);
    for (int i = 0; i < (a.computes_dq ? group : 0); i++) {
      of_dq(work.h + i).zero_uncovered(work.b, shape.batch, work.q, shape.total_q);
    }
  }
  if (!a.computes_dq && first_tile * kBlockN >= len_k) return;
  const int tiles_k = len_k > kBlockN ? (len_k + kBlockN - 1) / kBlockN : 1;  // one that is empty writes zeros of dq
  const int end_tile = a.computes_dq ? tiles_k : first_tile + 1;
  const bool sums_dq = a.computes_dq && tiles_k > 1;
  const int q_row = static_cast<int>(work.out_row(shape));

  HeadMask mask(shape, work);
  if (mask.is_key_mask()) {  // what padding holds is not read: 0 * NaN would reach dq and dk
    int used = 0;
    for (int i = 0; i < group; i++) {
      mask.offset = work.b * shape.bias_strides[0] + (work.h + i) * shape.bias_strides[1];
      const int last = mask.last_key(&aligned_at<int>(shared));
      used = last > used ? last : used;
      __syncthreads();  // read by all; the next head's, and tiles, take this memory
    }
    mask.n_k = used;
  }
  const ScoreUnits units(shape);
  const typename Of::Keys k_tile(shared), v_tile(shared + Of::Keys::kBytes);

  const int tiles_q = n_q > 0 ? (n_q + kBlockM - 1) / kBlockM : 0;
  if constexpr (Of::kHasDq) {
    for (int tile = 0; sums_dq && tile < tiles_q * group; tile++) {
      for (int j = 0; j < Of::kDqColumns / 8; j++) dq_sum<kD>(shared, tile, j) = float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
  }

  for (int tile = first_tile; tile < end_tile; tile++) {
    const int n0 = tile * kBlockN, warp_key = n0 + 16 * warp;
    // tiles lo .. hi of queries, of each head, see some of these keys; where dq has no sums each of them writes some
    int lo = 0, hi = tiles_q;
    if (!a.computes_dq || sums_dq) {
      const int first = n0 - work.shift - shape.window_right, last = n0 + kBlockN - 1 - work.shift + shape.window_left;
      lo = first > 0 ? first / kBlockM : 0;
      hi = n0 >= mask.n_k || last < 0 ? 0 : last / kBlockM + 1 < hi ? last / kBlockM + 1 : hi;
    }
    const int count = hi > lo ? (hi - lo) * group : 0;
    QueryTile at = {0, lo * kBlockM};
    auto after = [&](QueryTile x) {
      const bool last_of_head = x.m0 + kBlockM >= hi * kBlockM;
      return QueryTile{last_of_head ? x.head + 1 : x.head, last_of_head ? lo * kBlockM : x.m0 + kBlockM};
    };
    auto load_queries = [&](int i, QueryTile x) {
      HeadWork of_head = work;
      of_head.h += x.head;
      of_head.head += x.head;
      unsigned char* stage = shared + Of::kStage + i % kBwdStages * Of::kStageBytes;
      const Matrix<T> q(work.tokens<T>(a.p.q, a.p.q_strides, work.q, of_head.h), a.p.q_strides[1], n_q, shape.head_dim);
      const Matrix<T> dout(work.tokens<T>(a.p.dout, a.p.dout_strides, work.q, of_head.h), a.p.dout_strides[1], n_q,
                           shape.head_dim_v);
      q.template load<Of::kThreads>(typename Of::Queries(stage), x.m0);
      dout.template load<Of::kThreads>(typename Of::Queries(stage + Of::Queries::kBytes), x.m0);
      constexpr int kChunks = kBlockM / 4;  // of 16 bytes
      if (threadIdx.x < 2 * kChunks) {
        const float* from = (threadIdx.x < kChunks ? a.lse : a.delta) + stat_row(a, of_head) + x.m0;
        cp_async(shared_address(stage + Of::kStats) + 16 * threadIdx.x, from + threadIdx.x % kChunks * 4, 16);
      }
    };
    {
      const int h_k = computed_here(work.h_k);
      const Matrix<T> k(work.tokens<T>(a.p.k, a.p.k_strides, work.k, h_k), a.p.k_strides[1], mask.n_k, shape.head_dim);
      const Matrix<T> v(work.tokens<T>(a.p.v, a.p.v_strides, work.k, h_k), a.p.v_strides[1], mask.n_k,
                        shape.head_dim_v);
      k.template load<Of::kThreads>(k_tile, n0);
      v.template load<Of::kThreads>(v_tile, n0);
    }
    if (count > 0) load_queries(0, at);
    cp_async_commit();

    LeftOperand<kD, Of::kHeld> k_operand, v_operand;
    float dk_sum[Of::kColumns / 8][4] = {}, dv_sum[Of::kColumns / 8][4] = {};
    for (int i = 0; i < count; i++, at = after(at)) {
      const int head = at.head, m0 = at.m0;
      cp_async_wait<0>();
      __syncthreads();  // this stage, of all threads, is there; and all have left the other one, and dS
      if (i + 1 < count) load_queries(i + 1, after(at));
      cp_async_commit();
      unsigned char* stage = shared + Of::kStage + i % kBwdStages * Of::kStageBytes;
      const typename Of::Queries q_tile(stage), dout_tile(stage + Of::Queries::kBytes);
      const float* lse = &aligned_at<float>(stage + Of::kStats);
      if (i == 0) {
        k_operand.hold(k_tile, 16 * warp);
        v_operand.hold(v_tile, 16 * warp);
      }
      float s[1][kM8][4] = {}, dp[kM8][4] = {};
      add_product_transposed<T>(s[0], k_operand.of(k_tile, 16 * warp), q_tile);
      add_product_transposed<T>(dp, v_operand.of(v_tile, 16 * warp), dout_tile);
      TransposedKeep<kBlockM> keep;
      if constexpr (kDropout) {
        if (shape.rng_state != nullptr) {
          keep.draw(AttentionDropout(shape.rng_state, shape.threshold, work.head + head), m0, warp_key);
        } else {
          keep.all();
        }
      }
      units_of_scores(s, units);
      mask.offset = computed_here(work.b) * shape.bias_strides[0] + (work.h + head) * shape.bias_strides[1];
      mask.template apply<true>(s, m0, warp_key);
      uint32_t p_operand[kM8 / 2][4], ds_operand[kM8 / 2][4];
      score_gradients<T, kDropout>(p_operand, ds_operand, s[0], dp, units, lse, lse + kBlockM, keep);
      if constexpr (Of::kHasDq) {
        if (a.computes_dq) {
          const typename Of::Scores ds_tile(shared + Of::kScores);
#pragma unroll
          for (int x = 0; x < 2 * kM8; x++) {  // rows x % 2 * 8 + g, columns x / 2 * 8 + 2 t
            ds_tile.pair(16 * warp + x % 2 * 8 + lane / 4, x / 2 * 8 + lane % 4 * 2) = ds_operand[x / 4][x % 4];
          }
        }
      }
      add_product<T>(dv_sum, from_registers(p_operand), dout_tile, column0);
      add_product<T>(dk_sum, from_registers(ds_operand), q_tile, column0);
      if constexpr (Of::kHasDq) {
        if (a.computes_dq) {
          __syncthreads();  // dS: written by each warp, read by all
          const typename Of::Scores ds_tile(shared + Of::kScores);
          const int column = warp / Of::kWarpsM * Of::kDqColumns;
          float sum[Of::kDqColumns / 8][4] = {};
          add_product<T>(
              sum, [&](int key, uint32_t (&r)[4]) { ds_tile.load_a_transposed(r, key, 16 * warp_m); }, k_tile, column);
          if (sums_dq) {
#pragma unroll
            for (int j = 0; j < Of::kDqColumns / 8; j++) {
              float4& total = dq_sum<kD>(shared, head * tiles_q + m0 / kBlockM, j);
              total = float4{total.x + sum[j][0], total.y + sum[j][1], total.z + sum[j][2], total.w + sum[j][3]};
            }
          } else {
            of_dq(work.h + head).store(q_row, n_q, m0 + 16 * warp_m, column, sum, shape.softmax_scale);
          }
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // K, V and both stages: read by all before the next tile's take their place
    const int h_k = computed_here(work.h_k), b = computed_here(work.b);
    const int k_row = shape.cu_seqlens_k != nullptr ? work.k.first : b * len_k;
    of_dk(h_k).store(k_row, len_k, warp_key, column0, dk_sum, shape.softmax_scale);
    of_dv(h_k).store(k_row, len_k, warp_key, column0, dv_sum, 1.0f);
  }
  if constexpr (Of::kHasDq) {
    for (int tile = 0; sums_dq && tile < tiles_q * group; tile++) {
      float sum[Of::kDqColumns / 8][4];
#pragma unroll
      for (int j = 0; j < Of::kDqColumns / 8; j++) {
        const float4 total = dq_sum<kD>(shared, tile, j);
        sum[j][0] = total.x, sum[j][1] = total.y, sum[j][2] = total.z, sum[j][3] = total.w;
      }
      of_dq(work.h + tile / tiles_q)
          .store(q_row, n_q, tile % tiles_q * kBlockM + 16 * warp_m, warp / Of::kWarpsM * Of::kDqColumns, sum,
                 shape.softmax_scale);
    }
  }
}

}  // namespace fasttx
