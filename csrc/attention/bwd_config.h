// Tiles of the attention backward, as a pure function of head_dim. docs/kernels/attention.md has their registers and
// shared memory.
#pragma once
#include <cstddef>

#include "attention_config.h"

namespace fasttx {

// A warp has 16 keys (in the kernel of dq: 16 queries) from a block's beginning to its end; the other side, queries (or
// keys), comes in tiles of `streamed` rows.
struct BwdTile {
  int warps, streamed;
};

constexpr int kBwdStages = 2;

constexpr BwdTile bwd_tile(int head_dim) {
  return head_dim <= 64 ? BwdTile{8, 64} : head_dim <= 128 ? BwdTile{4, 32} : BwdTile{4, 16};
}

// Blocks of a multiprocessor: with them a thread may have 255 registers, and ptxas spills none for a third block.
constexpr int bwd_blocks(int head_dim) {
  return 8 / bwd_tile(head_dim).warps;
}

// Columns of dk and dv that a block adds up: 16 keys x 128 columns of both are 128 registers a lane.
constexpr int bwd_columns(int head_dim) {
  return head_dim <= 128 ? head_dim : 128;
}

// Whether a block can have dq, too: where it has all columns, and room for dS.
constexpr bool bwd_has_dq(int head_dim) {
  return head_dim <= 128;
}

// K and V; stages of Q, dO and two floats a query; dS.
constexpr size_t bwd_keys_shared_bytes(int head_dim) {
  const BwdTile tile = bwd_tile(head_dim);
  const size_t keys = 16 * tile.warps, queries = tile.streamed;
  return 4 * keys * head_dim + kBwdStages * (4 * queries * head_dim + 8 * queries) +
         (bwd_has_dq(head_dim) ? 2 * keys * queries : 0);
}

// Q and dO; stages of K and V.
constexpr size_t bwd_queries_shared_bytes(int head_dim) {
  const BwdTile tile = bwd_tile(head_dim);
  return static_cast<size_t>(16 * tile.warps + kBwdStages * tile.streamed) * 4 * head_dim;
}

// dq of all queries of a group of heads, in float and whole tiles.
constexpr size_t bwd_dq_bytes(int head_dim, size_t group, size_t max_seqlen_q) {
  const size_t queries = bwd_tile(head_dim).streamed;
  return group * ((max_seqlen_q + queries - 1) / queries * queries) * head_dim * 4;
}

static_assert(bwd_keys_shared_bytes(64) <= kLeastSharedBytes && bwd_keys_shared_bytes(128) <= kLeastSharedBytes &&
              bwd_keys_shared_bytes(256) <= kLeastSharedBytes && bwd_queries_shared_bytes(64) <= kLeastSharedBytes &&
              bwd_queries_shared_bytes(128) <= kLeastSharedBytes && bwd_queries_shared_bytes(256) <= kLeastSharedBytes);

}  // namespace fasttx
