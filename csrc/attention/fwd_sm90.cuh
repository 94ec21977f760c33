// Attention forward by wgmma and TMA, for compute capability 9.0 (compiled for sm_90a).
//
// Mathematics
//   as in fwd_sm80.cuh: S = softmax_scale Q K^T;  P = softmax(S);  out = dropout(P) V,  lse = m + ln l, online over
//   blocks of keys (online_softmax.cuh). Specialised warps as by Shah et al., "FlashAttention-3", 2024.
//
// Contract
//   A consumer computes 64 rows of out and lse of one head and is the only one that writes them: no atomics, bitwise
//   deterministic. q, k, v by strides at multiples of 16 bytes; no mask but windows, lengths and seqused_k
//   (attention_choice.h). A row that no key is left to gives 0 and lse -inf. Keys from seqused_k on, and of other
//   sequences, may be loaded, and never count. Packed: as in fwd_sm80.cuh.
//
// Cost
//   2 Sq Sk (head_dim + head_dim_v) flop a head. q once; k and v once a head where they stay in shared memory, else
//   once for each kConsumers tiles of 64 queries, mostly from L2.
//
// Who waits for whom
//   producer                                           consumer (each of kConsumers, a warpgroup)
//   k_empty[s]: 4 kConsumers warps have left K    ->   k_full[s]: K has come  ->  S = Q K^T  ->  arrives at k_empty[s]
//   v_empty[s]: likewise V                        ->   v_full[s]: V has come, and zeros behind its end
//                                                                             ->  O += P V   ->  arrives at v_empty[s]
//   q_empty[n]: the four warps have left Q        ->   q_full[n]              ->  last S     ->  arrives at q_empty[n]
//   Consumers never wait for each other. All walk the same list of items, and of an item all pass every block of keys:
//   one that a consumer does not need it waits for, and gives back, so that phases never run past anybody.
#pragma once
#include "dropout.cuh"
#include "fragments_sm80.cuh"
#include "fwd_producer_sm90.cuh"
#include "online_softmax.cuh"

#include "../arch/registers.cuh"
#include "../arch/warp.cuh"

namespace fasttx {

// The transpose of four words in four lanes (lane % 4): word i of lane t becomes word t of lane i.
FTX_DEVICE void transpose_words(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x % 4 >= 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    (odd ? w[i] : w[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + 2], 2);
    (upper ? w[i] : w[i + 2]) = other;
  }
}

template <class T, int kDim, bool kDropout, bool kMasks, class F = FwdSm90<kDim, kMasks>>
class FwdConsumer {
 public:
  FTX_DEVICE FwdConsumer(const FwdSm90Params& p, const SharedSm90<F>& shared, int consumer, int warp)
      : p_(p),
        shared_(shared),
        consumer_(consumer),
        warp_row_(16 * warp),
        units_(p.call.shape),
        q_(wgmma_descriptor(shared.q)),
        k_(wgmma_descriptor(shared.k)),
        v_(wgmma_descriptor(shared.v, F::kPanels > 1 ? F::kKeyPanel : 16)) {}

  FTX_DEVICE void run() {
#pragma unroll 1
    for (int i = blockIdx.x; i < p_.items; i += gridDim.x) {
      // of the tiles counted over all items, those whose number is consumer_ modulo kConsumers
      int tile = (consumer_ + F::kConsumers - tiles_ % F::kConsumers) % F::kConsumers;
      const Item item(p_, i);
      const int tiles = item.tiles;
      Position end = at_;
      if (tile >= tiles && tiles > 0) pass(end, item.end_block - item.first_block, true);
#pragma unroll 1
      for (; tile < tiles; tile += F::kConsumers) {
        end = at_;
        attend(i, tile, end, tile + F::kConsumers >= tiles);
      }
      at_ = end;
      tiles_ += tiles;
    }
  }

 private:
  using Item = FwdItem<kMasks>;
  using Position = RingPosition<F::kStages>;
  using Scores = float (&)[1][kSm90Keys / 8][4];

  // Of each warp one lane, after the warp's wait for the products that read it.
  FTX_DEVICE static void give_back(uint32_t empty) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
  }

  // Blocks of keys that this tile does not need; `last`: nor any later tile of the item.
  FTX_DEVICE void pass(Position& at, int blocks, bool last) const {
#pragma unroll 1
    for (; blocks > 0; blocks--) {
      if (last) {
        mbarrier_wait(shared_.k_full + 8 * at.stage(), at.parity());
        mbarrier_wait(shared_.v_full + 8 * at.stage(), at.parity());
        __syncwarp();  // all lanes have seen these phases: the next ones have the same parity again
        give_back(shared_.k_empty + 8 * at.stage());
        give_back(shared_.v_empty + 8 * at.stage());
      }
      at.advance();
    }
  }

  // S = Q K^T.
  FTX_DEVICE static void scores(float (&s)[kSm90Keys / 2], uint64_t q, uint64_t k) {
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const int within = d % 64 * 2 / 16, panel = d / 64;
      wgmma<T>(s, q + panel * (F::kQueryPanel / 16) + within, k + panel * (F::kKeyPanel / 16) + within, d > 0);
    }
    wgmma_commit();
  }

  // O += P V.
  FTX_DEVICE static void weighted_values(float (&o)[kDim / 2], uint32_t (&p)[kSm90Keys / 4], uint64_t v) {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; k++) wgmma<T, true>(o, step(p, k), v + k * (16 * kTmaRowBytes / 16), true);
    wgmma_commit();
  }

  // The A operand of 16 keys.
  FTX_DEVICE static uint32_t (&step(uint32_t (&p)[kSm90Keys / 4], int k))[4] {
    return reinterpret_cast<uint32_t (&)[4]>(p[4 * k]);
  }

  FTX_DEVICE void draw(const AttentionDropout& dropout, uint32_t (&kept)[kSm90Keys / 32][4], int query, int key) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSm90Keys / 32; i++) {
      dropout.draw(query + warp_row_ + lane / 4, key + 32 * i + lane % 4 * 2, kept[i]);
    }
  }

  // P as operands.
  FTX_DEVICE static void pack_probabilities(uint32_t (&p)[kSm90Keys / 4], Scores s,
                                            const uint32_t (&kept)[kSm90Keys / 32][4]) {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; k++) as_a_operand<T>(step(p, k), s[0][2 * k], s[0][2 * k + 1]);
    if constexpr (kDropout) {
#pragma unroll
      for (int i = 0; i < kSm90Keys / 32; i++) AttentionDropout::drop(kept[i], step(p, 2 * i), step(p, 2 * i + 1));
    }
  }

  // A tile of queries of item i; `at`: where the item's first block of keys is, afterwards what follows its last one.
  FTX_DEVICE void attend(int i, int tile, Position& at, bool last) const {
    const AttentionShape& shape = p_.call.shape;
    const Item item(p_, i);
    const int m0 = (item.first_tile + tile) * kSm90Queries;
    const KeyRange keys = item.keys_of(shape, item.first_tile + tile);
    const auto mask = mask_of(item, keys.end);
    const uint32_t number = tiles_ + tile, slot = warp_uniform(number % F::kQSlots);
    const uint64_t q = q_ + slot * (F::kQueryBytes / 16);
    auto k = [&](const Position& of) { return k_ + warp_uniform(of.stage()) * (F::kKeyBytes / 16); };
    auto v = [&](const Position& of) { return v_ + warp_uniform(of.stage()) * (F::kKeyBytes / 16); };

    OnlineSoftmax<1> softmax;
    float o[kDim / 2], s[kSm90Keys / 2], alpha[2];
    uint32_t p[kSm90Keys / 4], kept[kSm90Keys / 32][4];
    Scores tiles = reinterpret_cast<Scores>(s);
#pragma unroll
    for (int i = 0; i < kDim / 2; i++) o[i] = 0.0f;
    mbarrier_wait(shared_.q_full + 8 * slot, number / F::kQSlots % 2);
    const int first = keys.first_block;
    if (keys.end_block > first) {
      pass(at, first - item.first_block, last);
      const AttentionDropout dropout = with_dropout(item.head);
      mbarrier_wait(shared_.k_full + 8 * at.stage(), at.parity());
      wgmma_fence(s);
      scores(s, q, k(at));
      if constexpr (kDropout) draw(dropout, kept, m0, first * kSm90Keys);
      wgmma_wait<0>(s);
      if (last) give_back(shared_.k_empty + 8 * at.stage());
      exponentials(tiles, softmax, alpha, mask, m0, first * kSm90Keys);
      pack_probabilities(p, tiles, kept);
      Position before = at;
      at.advance();
      for (int j = first + 1; j < keys.end_block; j++) {
        // S of this block and O of the one before are under way together; while the latter is, S becomes P
        mbarrier_wait(shared_.k_full + 8 * at.stage(), at.parity());
        mbarrier_wait(shared_.v_full + 8 * before.stage(), before.parity());
        wgmma_fence(s, o, p);
        scores(s, q, k(at));
        weighted_values(o, p, v(before));
        if constexpr (kDropout) draw(dropout, kept, m0, j * kSm90Keys);
        wgmma_wait<1>(s);
        if (last) give_back(shared_.k_empty + 8 * at.stage());
        if constexpr (kMasks) wgmma_wait<0>(o, p);  // else masks would find no registers
        exponentials(tiles, softmax, alpha, mask, m0, j * kSm90Keys);
        if constexpr (!kMasks) wgmma_wait<0>(o, p);
        if (last) give_back(shared_.v_empty + 8 * before.stage());
        if (__any_sync(0xffffffffu, alpha[0] != 1.0f || alpha[1] != 1.0f)) {
#pragma unroll
          for (int i = 0; i < kDim / 2; i++) o[i] *= alpha[i / 2 % 2];
        }
        pack_probabilities(p, tiles, kept);
        before = at;
        at.advance();
      }
      mbarrier_wait(shared_.v_full + 8 * before.stage(), before.parity());
      wgmma_fence(o, p);
      weighted_values(o, p, v(before));
      wgmma_wait<0>(o, p);
      if (last) give_back(shared_.v_empty + 8 * before.stage());
    }
    __syncwarp();  // likewise, where there was no key
    give_back(shared_.q_empty + 8 * slot);
    // anew, because the registers are short meanwhile
    const Item again(p_, i);
    const KeyRange seen = again.keys_of(shape, again.first_tile + tile);
    pass(at, again.end_block - (seen.end_block > seen.first_block ? seen.end_block : again.first_block), last);
    softmax.finish();
    store(HeadWork(shape, again.head), (again.first_tile + tile) * kSm90Queries, softmax, o);
  }

  FTX_DEVICE auto mask_of(const Item& item, int end) const {
    const AttentionShape& shape = p_.call.shape;
    if constexpr (kMasks) {
      HeadMask mask(shape, HeadWork(shape, item.head));
      mask.n_k = end;
      return mask;
    } else {
      return HeadBounds(shape, end, item.shift);
    }
  }

  // Of scores whose first query is `query` and first key `key`, with what hides some of them.
  template <class Mask>
  FTX_DEVICE void exponentials(Scores s, OnlineSoftmax<1>& softmax, float (&alpha)[2], const Mask& mask, int query,
                               int key) const {
    if constexpr (kMasks) {
      if (!units_.folds) {
#pragma unroll
        for (int i = 0; i < kSm90Keys / 2; i++) s[0][i / 4][i % 4] *= units_.scale;
      }
    }
    mask.template apply<false>(s, query + warp_row_, key);
    if constexpr (kMasks) {
      if (!units_.folds) return softmax.template add<false>(s, units_, alpha);
    }
    softmax.template add<true>(s, units_, alpha);
  }

  FTX_DEVICE AttentionDropout with_dropout(int head) const {
    const AttentionShape& shape = p_.call.shape;
    const int64_t none[2] = {};
    return AttentionDropout(kDropout ? shape.rng_state : none, shape.threshold, head);
  }

  // Rows of out, 16 bytes a lane, and of softmax_lse.
  FTX_DEVICE void store(const HeadWork& work, int m0, const OnlineSoftmax<1>& softmax,
                        const float (&o)[kDim / 2]) const {
    const AttentionShape& shape = p_.call.shape;
    const int lane = threadIdx.x % 32;
    const int64_t stride = static_cast<int64_t>(shape.num_heads) * shape.head_dim_v;
    const float keep_scale = 256.0f / static_cast<float>(256 - shape.threshold);
    float* lse = p_.call.softmax_lse + work.lse_row(shape);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = m0 + warp_row_ + 8 * r + lane / 4;
      const float factor = keep_scale * softmax.normaliser(r);
      if (lane % 4 == 0 && row < work.n_q) lse[row] = softmax.lse(r, units_);
      T* out = static_cast<T*>(p_.call.out) + (work.out_row(shape) + row) * stride + work.h * shape.head_dim_v;
#pragma unroll
      for (int c = 0; c < kDim; c += 32) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int at = (c / 8 + i) * 4 + 2 * r;
          w[i] = pack<T>(o[at] * factor, o[at + 1] * factor);
        }
        transpose_words(w);
        const int column = c + lane % 4 * 8;
        if (row < work.n_q && column < shape.head_dim_v) {
          store_vector(out + column, make_uint4(w[0], w[1], w[2], w[3]));
        }
      }
    }
  }

  const FwdSm90Params& p_;
  const SharedSm90<F>& shared_;
  const int consumer_, warp_row_;
  const ScoreUnits units_;
  const uint64_t q_, k_, v_;
  uint32_t tiles_ = 0;
  Position at_;
};

template <class T, int kDim, bool kDropout, bool kMasks>
__global__ void __launch_bounds__(FwdSm90<kDim, kMasks>::kThreads, 1)
    attention_fwd_sm90_kernel(const __grid_constant__ FwdSm90Params p) {
  using F = FwdSm90<kDim, kMasks>;
  FTX_DYNAMIC_SHARED(memory, 1024);
  const SharedSm90<F> shared(memory);
  const int warp = warp_uniform(threadIdx.x / 32), group = warp / 4;
  if (threadIdx.x == 0) shared.init();
  __syncthreads();  // the mbarriers: made by one thread, used by all
  if (group == F::kConsumers) {
    registers_give<F::kTile.registers_of_producer>();
    if (warp % 4 == 0) {
      FwdProducer<kDim, kMasks>(p, shared).run();
    } else if (p.call.shape.cu_seqlens_q != nullptr) {
      fill_uncovered_results<T>(p, {static_cast<int>(threadIdx.x) - 32 * (4 * F::kConsumers + 1), 96});
    }
    return;
  }
  registers_take<F::kTile.registers>();
  FwdConsumer<T, kDim, kDropout, kMasks>(p, shared, group, warp % 4).run();
}

}  // namespace fasttx
