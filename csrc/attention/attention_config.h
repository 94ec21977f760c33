// Tiles of the attention kernels, as a pure function of the shape. docs/kernels/attention_cuda.md has their registers
// and shared memory.
#pragma once
#include <cstddef>

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

}  // namespace fasttx
