// What the producer and the consumers of attention's forward on 9.0 have in common: shared memory, its barriers, and
// the list of work, which each walks for itself.
#pragma once
#include <cstdint>

#include "../arch/mbarrier.cuh"
#include "../arch/tma.cuh"
#include "../arch/warp.cuh"
#include "../arch/wgmma.cuh"
#include "attention_config.h"
#include "masking.cuh"
#include "work.cuh"

namespace fasttx {

struct FwdSm90Params {
  AttentionFwdParams call;
  TensorMap q, k, v;
  int tiles_per_item, items_per_head, items;
};

// Of kDim columns. A tile lies as panels of 64 columns, rows of 128 bytes with TMA's swizzle; columns from head_dim on
// are zeros.
template <int kDim, bool kMasks>
struct FwdSm90 {
  static constexpr FwdSm90Tile kTile = fwd_sm90_tile(kDim, kMasks);
  static constexpr int kConsumers = kTile.consumers, kStages = kTile.stages, kThreads = 128 * (kConsumers + 1);
  static constexpr int kPanels = (kDim + 63) / 64, kKeyPanel = kSm90Keys * kTmaRowBytes,
                       kQueryPanel = kSm90Queries * kTmaRowBytes;
  static constexpr int kKeyBytes = kPanels * kKeyPanel, kQueryBytes = kPanels * kQueryPanel;  // of a tile
  static constexpr int kQSlots = kSm90QSlots * kConsumers;
};

// Addresses. K and V have a ring of stages each; tile number n of Q, counted over all of the block's work, has slot
// n % kQSlots and consumer n % kConsumers.
template <class F>
struct SharedSm90 {
  unsigned char* memory;
  uint32_t k, v, q;
  uint32_t k_full, v_full, k_empty, v_empty, q_full, q_empty;  // mbarriers of each stage or slot
  uint32_t landed;                                             // of V's last tile, before its end is zeroed

  FTX_DEVICE explicit SharedSm90(unsigned char* memory)
      : memory(memory),
        k(shared_address(memory)),
        v(k + F::kStages * F::kKeyBytes),
        q(v + F::kStages * F::kKeyBytes),
        k_full(q + F::kQSlots * F::kQueryBytes),
        v_full(k_full + 8 * F::kStages),
        k_empty(v_full + 8 * F::kStages),
        v_empty(k_empty + 8 * F::kStages),
        q_full(v_empty + 8 * F::kStages),
        q_empty(q_full + 8 * F::kQSlots),
        landed(q_empty + 8 * F::kQSlots) {}

  // By one thread. Each warp of the consumers gives a stage back, each warp of its consumer a slot of Q.
  FTX_DEVICE void init() const {
    for (int s = 0; s < F::kStages; s++) {
      mbarrier_init(k_full + 8 * s, 1);
      mbarrier_init(v_full + 8 * s, 1);
      mbarrier_init(k_empty + 8 * s, 4 * F::kConsumers);
      mbarrier_init(v_empty + 8 * s, 4 * F::kConsumers);
    }
    for (int s = 0; s < F::kQSlots; s++) {
      mbarrier_init(q_full + 8 * s, 1);
      mbarrier_init(q_empty + 8 * s, 4);
    }
    mbarrier_init(landed, 1);
    mbarrier_init_fence();
  }
};

// Where the next block of keys is in the rings: a number below 2 kStages, one register.
template <int kStages>
class RingPosition {
 public:
  FTX_DEVICE int stage() const { return at_ < kStages ? at_ : at_ - kStages; }
  // Of the phase in which it is filled; it was given back in the phase before.
  FTX_DEVICE uint32_t parity() const { return at_ < kStages ? 0 : 1; }
  FTX_DEVICE void advance() { at_ = at_ + 1 < 2 * kStages ? at_ + 1 : 0; }

 private:
  int at_ = 0;
};

// The keys that some of the queries first .. end - 1 may see: key `end` is the first behind them, blocks first_block ..
// end_block - 1 hold them. None at all: both blocks are 0, and end is not above 0.
struct KeyRange {
  int end, first_block, end_block;

  FTX_DEVICE KeyRange(const AttentionShape& shape, int n_k, int shift, int first_query, int end_query) {
    const int first = first_query + shift - shape.window_left, last = end_query + shift + shape.window_right;
    const int first_key = first > 0 ? first : 0;
    end = last < n_k ? last : n_k;
    const bool none = end <= first_key;
    if (none) end = 0;
    first_block = none ? 0 : first_key / kSm90Keys;
    end_block = none ? 0 : (end + kSm90Keys - 1) / kSm90Keys;
  }
};

// Some tiles of queries of one head, and the blocks of keys that they see. No tiles: nothing is loaded. It is little,
// because consumers hold it in registers while they compute; what else is to be known HeadWork tells. All lanes of a
// warp make it. kMasks: a key mask may hide the last keys.
template <bool kMasks>
struct FwdItem {
  int head, n_q, n_k, shift, first_tile, tiles, first_block, end_block;

  FTX_DEVICE FwdItem(const FwdSm90Params& p, int item)
      : FwdItem(p, item, HeadWork(p.call.shape, item / p.items_per_head)) {}

  FTX_DEVICE FwdItem(const FwdSm90Params& p, int item, const HeadWork& work)
      : head(work.head),
        n_q(warp_uniform(work.n_q)),
        n_k(warp_uniform(last_key(p.call.shape, work))),
        shift(warp_uniform(work.shift)) {
    const AttentionShape& shape = p.call.shape;
    // under a causal mask the last rows have most keys: they start first
    const bool window = shape.window_left < kNoWindow || shape.window_right < kNoWindow;
    const int part = item % p.items_per_head;
    first_tile = (window ? p.items_per_head - 1 - part : part) * p.tiles_per_item;
    const int left = (n_q > 0 ? (n_q + kSm90Queries - 1) / kSm90Queries : 0) - first_tile;
    tiles = left < 0 ? 0 : left < p.tiles_per_item ? left : p.tiles_per_item;
    const KeyRange keys(shape, n_k, shift, first_tile * kSm90Queries, end_query(first_tile + tiles));
    first_block = keys.first_block;
    end_block = keys.end_block;
  }

  FTX_DEVICE KeyRange keys_of(const AttentionShape& shape, int tile) const {
    return KeyRange(shape, n_k, shift, tile * kSm90Queries, end_query(tile + 1));
  }

 private:
  FTX_DEVICE static int last_key(const AttentionShape& shape, const HeadWork& work) {
    if constexpr (kMasks) {
      const HeadMask mask(shape, work);
      if (mask.is_key_mask()) return mask.last_key(Team::of_warp());
    }
    return work.n_k;
  }
  FTX_DEVICE int end_query(int tile) const { return tile * kSm90Queries < n_q ? tile * kSm90Queries : n_q; }
};

}  // namespace fasttx
