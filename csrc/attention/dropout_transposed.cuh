// Attention's dropout in the accumulator of K Q^T.
//
// A call of Philox is a pair of rows, r and r + 8, and columns c, c + 1, c + 8, c + 9 with the same 16 further on
// (dropout.cuh). Where queries are rows all of them are one lane's. Here keys are: lane 4 g + t has keys g and g + 8 of
// the 16 of its warp, and of each eight queries 2 t and 2 t + 1. So lanes g and g ^ 1 need bytes of the same two calls,
// one a query. Each draws one of them, and they exchange one word:
//
//                      even g                       g + 1
//   query 2 t          draws, keeps its half        gets the half of odd keys
//   query 2 t + 1      gets the half of even keys   draws, keeps its half
//
// A call and a shuffle for 8 elements of a lane. The other half of its 16 bytes belongs to 16 keys of another warp.
#pragma once
#include "dropout.cuh"

namespace fasttx {

// Which of 16 keys x kQueries elements of P^T are kept.
template <int kQueries>
struct TransposedKeep {
  // keep[2 i + q], of queries 16 i + 2 t + q and + 8: the highest bits of its bytes tell of
  // (query, key g), (query, key g + 8), (query + 8, key g), (query + 8, key g + 8)
  uint32_t keep[kQueries / 8];

  // The queries from m0 on and the keys from key0 on, multiples of 16. All lanes of the warp call it.
  FTX_DEVICE void draw(const AttentionDropout& dropout, int m0, int key0) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bool odd = g % 2 != 0, upper = key0 / 16 % 2 != 0;
#pragma unroll
    for (int i = 0; i < kQueries / 16; i++) {
      uint32_t kept[4];
      dropout.draw(m0 + 16 * i + 2 * t + g % 2, key0 + g, kept);
      const uint32_t of_query = upper ? kept[1] : kept[0], of_query_8 = upper ? kept[3] : kept[2];
      const uint32_t even_keys = permute_bytes(of_query, of_query_8, 0x6420);
      const uint32_t odd_keys = permute_bytes(of_query, of_query_8, 0x7531);
      const uint32_t own = odd ? odd_keys : even_keys;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? even_keys : odd_keys, 4);
      keep[2 * i] = odd ? got : own;
      keep[2 * i + 1] = odd ? own : got;
    }
  }

  FTX_DEVICE void all() {
#pragma unroll
    for (uint32_t& word : keep) word = 0xffffffffu;
  }

  // Of register e of the accumulator of queries 8 j .. + 8.
  FTX_DEVICE bool kept(int j, int e) const {
    return (keep[j / 2 * 2 + e % 2] >> (8 * (j % 2 * 2 + e / 2) + 7) & 1) != 0;
  }
};

}  // namespace fasttx
