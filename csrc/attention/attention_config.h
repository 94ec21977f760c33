// Tiles of the attention kernels, as a pure function of the shape. docs/kernels/attention_cuda.md has their registers
// and shared memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fasttx {

constexpr int kMaxHeadDim = 256;

// Shared memory that a block may have on 8.6, 8.9 and 12.x, the least of all archs from 8.0 on (8.0: 163 KB; 9.0: 227).
constexpr size_t kLeastSharedBytes = 99 << 10;

// Forward by mma.sync: a warp has 16 row_blocks queries, so that each operand of K and V is used row_blocks times; a
// tile of K and V has `keys` keys, in two stages.
struct FwdTile {
  int row_blocks, keys;
};

constexpr int kFwdWarps = 4, kFwdStages = 2;
constexpr int kFwdBlocks = 2;  // that a multiprocessor has registers for: up to 255 a thread

constexpr FwdTile fwd_tile(int head_dim) {
  return head_dim <= 64 ? FwdTile{2, 64} : head_dim <= 128 ? FwdTile{2, 32} : FwdTile{1, 32};
}

constexpr int fwd_queries(int head_dim) {
  return kFwdWarps * 16 * fwd_tile(head_dim).row_blocks;
}

// Q, and K and V of each stage.
constexpr size_t fwd_shared_bytes(int head_dim) {
  return static_cast<size_t>(fwd_queries(head_dim) + 2 * kFwdStages * fwd_tile(head_dim).keys) * head_dim * 2;
}

static_assert(fwd_shared_bytes(128) <= kLeastSharedBytes && fwd_shared_bytes(kMaxHeadDim) <= kLeastSharedBytes);

// Forward by wgmma and TMA, on 9.0: a block has one warpgroup that loads, and `consumers` that compute tiles of 64
// queries. Keys come in blocks of 128, of which `stages` are in shared memory, and two tiles of Q for each consumer.
struct FwdSm90Tile {
  int consumers, stages, registers, registers_of_producer;
};

constexpr int kSm90MaxHeadDim = 128, kSm90Queries = 64, kSm90Keys = 128, kSm90QSlots = 2;
constexpr size_t kSm90SharedBytes = 227 << 10;

// masks: tensors that hide keys, which take registers.
constexpr FwdSm90Tile fwd_sm90_tile(int head_dim, bool masks) {
  if (masks) return FwdSm90Tile{2, head_dim <= 64 ? 5 : 2, 216, 72};
  return head_dim <= 64 ? FwdSm90Tile{3, 5, 160, 32} : FwdSm90Tile{2, 2, 232, 40};
}

// Rows of 128 bytes, one or two for a token; an mbarrier has 8.
constexpr size_t fwd_sm90_shared_bytes(int head_dim, bool masks) {
  const FwdSm90Tile tile = fwd_sm90_tile(head_dim, masks);
  const int slots = kSm90QSlots * tile.consumers;
  const int rows = (2 * tile.stages * kSm90Keys + slots * kSm90Queries) * (head_dim <= 64 ? 1 : 2);
  return static_cast<size_t>(rows) * 128 + 8 * (4 * tile.stages + 2 * slots + 1);
}

static_assert(fwd_sm90_shared_bytes(64, false) <= kSm90SharedBytes &&
              fwd_sm90_shared_bytes(128, false) <= kSm90SharedBytes);

// Tiles of queries of one head that a block takes at a time: as many as it has consumers, or all of a head whose keys
// stay in shared memory meanwhile. The latter loads them once, and may leave more multiprocessors without work: at the
// end by up to an eighth.
constexpr int64_t fwd_sm90_tiles(int head_dim, bool masks, int64_t heads, int max_seqlen_q, int max_seqlen_k,
                                 int multiprocessors) {
  const FwdSm90Tile tile = fwd_sm90_tile(head_dim, masks);
  const int64_t all = (static_cast<int64_t>(max_seqlen_q) + kSm90Queries - 1) / kSm90Queries;
  const int64_t rounds = (all + tile.consumers - 1) / tile.consumers,
                at_once = multiprocessors > 0 ? multiprocessors : 1;
  const bool stay = max_seqlen_k <= tile.stages * kSm90Keys;
  const int64_t whole = (heads + at_once - 1) / at_once * rounds, parts = (heads * rounds + at_once - 1) / at_once;
  return stay && 8 * whole <= 9 * parts ? all : tile.consumers;
}

}  // namespace fasttx
