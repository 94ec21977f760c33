// The warpgroup of attention's forward on 9.0 that loads: one warp fills the rings, the others write what no tile of
// queries covers.
//
// Who waits for whom: fwd_sm90.cuh. A box of 128 keys may reach beyond a sequence, to keys that do not count
// (seqused_k) or to the next sequence. Scores of them are masked, but their values, which may be NaN, would be
// multiplied by P = 0: the warp waits for that tile of V, and makes zeros of them before it hands the tile on.
#pragma once
#include <cstdint>

#include "tiles_sm90.cuh"

namespace fasttx {

template <int kDim, bool kMasks, class F = FwdSm90<kDim, kMasks>>
class FwdProducer {
 public:
  FTX_DEVICE FwdProducer(const FwdSm90Params& p, const SharedSm90<F>& shared)
      : p_(p), shared_(shared), leads_(threadIdx.x % 32 == 0) {}

  FTX_DEVICE void run() {
#pragma unroll 1
    for (int i = blockIdx.x; i < p_.items; i += gridDim.x) {
      const HeadWork work(p_.call.shape, i / p_.items_per_head);
      const FwdItem<kMasks> item(p_, i, work);
      if (item.tiles == 0) continue;
      const int at_once = item.tiles < F::kConsumers ? item.tiles : F::kConsumers;
      load_queries(work, item.first_tile, item.first_tile + at_once);
#pragma unroll 1
      for (int j = item.first_block; j < item.end_block; j++) load_keys(work, item.n_k, j);
      load_queries(work, item.first_tile + at_once, item.first_tile + item.tiles);
    }
  }

 private:
  FTX_DEVICE void load_queries(const HeadWork& work, int tile, int end) {
#pragma unroll 1
    for (; tile < end; tile++, tiles_++) {
      if (!leads_) continue;
      const uint32_t slot = tiles_ % F::kQSlots, full = shared_.q_full + 8 * slot;
      mbarrier_wait(shared_.q_empty + 8 * slot, (tiles_ / F::kQSlots + 1) % 2);
      mbarrier_arrive_expect_tx(full, F::kQueryBytes);
      load<F::kQueryPanel>(p_.q, shared_.q + slot * F::kQueryBytes, full, work.q.first + tile * kSm90Queries, work.h,
                           work.b);
    }
  }

  FTX_DEVICE void load_keys(const HeadWork& work, int n_k, int block) {
    const AttentionShape& shape = p_.call.shape;
    const int first = block * kSm90Keys, token = work.k.first + first;
    const int left = n_k - first;  // keys of the box that count
    const bool zeroes = left < kSm90Keys && left < stored(shape) - token;
    const int stage = at_.stage();
    if (leads_) {
      const uint32_t k_full = shared_.k_full + 8 * stage, v_full = zeroes ? shared_.landed : shared_.v_full + 8 * stage;
      mbarrier_wait(shared_.k_empty + 8 * stage, at_.parity() ^ 1);
      mbarrier_arrive_expect_tx(k_full, F::kKeyBytes);
      load<F::kKeyPanel>(p_.k, shared_.k + stage * F::kKeyBytes, k_full, token, work.h_k, work.b);
      mbarrier_wait(shared_.v_empty + 8 * stage, at_.parity() ^ 1);
      mbarrier_arrive_expect_tx(v_full, F::kKeyBytes);
      load<F::kKeyPanel>(p_.v, shared_.v + stage * F::kKeyBytes, v_full, token, work.h_k, work.b);
    }
    if (zeroes) {
      mbarrier_wait(shared_.landed, zeroed_++ % 2);
      zero_rows(F::kStages * F::kKeyBytes + stage * F::kKeyBytes, left);
      fence_proxy_async();
      __syncwarp();  // all lanes have written, and have seen this phase of `landed`
      if (leads_) mbarrier_arrive(shared_.v_full + 8 * stage);
    }
    at_.advance();
  }

  // Tokens that the tensor map of k has, packed or of one sequence; rows behind are zeros.
  FTX_DEVICE static int stored(const AttentionShape& shape) {
    return shape.cu_seqlens_q != nullptr ? static_cast<int>(shape.total_k) : shape.max_seqlen_k;
  }

  // The panels of a tile.
  template <int kPanel>
  FTX_DEVICE void load(const TensorMap& map, uint32_t to, uint32_t full, int token, int head, int b) const {
    const int batch = p_.call.shape.cu_seqlens_q != nullptr ? 0 : b;
#pragma unroll
    for (int panel = 0; panel < F::kPanels; panel++) {
      tma_load(to + panel * kPanel, map, full, token, 64 * panel, head, batch);
    }
  }

  // Rows from `row` on, of each panel: whole rows, so that their swizzle does not matter.
  FTX_DEVICE void zero_rows(int tile, int row) {
#pragma unroll 1
    for (int panel = 0; panel < F::kPanels; panel++) {
      unsigned char* data = shared_.memory + tile + panel * F::kKeyPanel;
#pragma unroll 1
      for (int i = row * kTmaRowBytes + threadIdx.x % 32 * 16; i < F::kKeyPanel; i += 32 * 16) {
        aligned_at<uint4>(data + i) = uint4{};
      }
    }
  }

  const FwdSm90Params& p_;
  const SharedSm90<F>& shared_;
  const bool leads_;
  uint32_t tiles_ = 0, zeroed_ = 0;
  RingPosition<F::kStages> at_;
};

// Packed: rows of out and softmax_lse that no tile covers, by the other warps.
template <class T>
FTX_DEVICE void fill_uncovered_results(const FwdSm90Params& p, const Team& team) {
  const AttentionShape& shape = p.call.shape;
  const int64_t stride = static_cast<int64_t>(shape.num_heads) * shape.head_dim_v;
#pragma unroll 1
  for (int i = blockIdx.x; i < p.items; i += gridDim.x) {
    if (i % p.items_per_head != 0) continue;  // once a head
    const HeadWork work(shape, i / p.items_per_head);
    fill_uncovered_results(static_cast<T*>(p.call.out) + work.h * shape.head_dim_v, stride, p.call.softmax_lse, shape,
                           work, team);
  }
}

}  // namespace fasttx
