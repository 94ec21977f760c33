// Attention's dropout in the accumulator of Q K^T: one call of Philox is 16 elements of one lane.
//
// Element (row, col) of sequence b and head h, both counted within the sequence, is kept where its byte >= threshold:
//   counter = (row / 16 * 8 + row % 8, col / 32 * 4 + col % 8 / 2, b * num_heads + h, offset mod 2^32),  key = seed
//   word = row / 8 % 2 * 2 + col / 16 % 2,  byte = col / 8 % 2 * 2 + col % 2
// (kernels/dropout.py).  A lane of m16n8 accumulators has of 16 x 32 elements just those of one counter:
//
//   columns   0-7   8-15  16-23  24-31      each cell: the two elements of the lane, which are two bytes of the word,
//   row g      word 0       word 1          the lower ones where the columns are 0-7 or 16-23
//   row g + 8  word 2       word 3
#pragma once
#include <cstdint>

#include "../arch/launch.cuh"
#include "../arch/math.cuh"
#include "../common/philox.cuh"
#include "attention.h"

namespace fasttx {

struct AttentionDropout {
  uint64_t seed;
  uint32_t offset, head;
  uint32_t addend, either;

  // p_hat = threshold / 256, between 1 / 256 and 255 / 256.
  FTX_DEVICE AttentionDropout(const int64_t* rng_state, int threshold, int head)
      : seed(static_cast<uint64_t>(rng_state[0])),
        offset(static_cast<uint32_t>(rng_state[1])),
        head(static_cast<uint32_t>(head)),
        addend(((threshold <= 128 ? 128u : 256u) - static_cast<uint32_t>(threshold)) * 0x01010101u),
        either(threshold <= 128 ? 0xffffffffu : 0u) {}

  // The highest bit of each byte of the word becomes whether that byte is at least the threshold. The sum below has
  // that bit set where the lower 7 bits reach the threshold's; of the byte's own bit and this one, either is enough up
  // to a threshold of 128, and both are needed beyond.
  FTX_DEVICE uint32_t kept_bytes(uint32_t word) const {
    const uint32_t sum = (word & 0x7f7f7f7fu) + addend;
    return (sum & word) | ((sum | word) & either);
  }

  // The bytes of the call that element (row, col) is in; the highest bit of each tells whether its element is kept.
  FTX_DEVICE void draw(int row, int col, uint32_t (&kept)[4]) const {
    kept[0] = static_cast<uint32_t>(row / 16 * 8 + row % 8);
    kept[1] = static_cast<uint32_t>(col / 32 * 4 + col % 8 / 2);
    kept[2] = head;
    kept[3] = offset;
    philox(seed, kept);
#pragma unroll
    for (int i = 0; i < 4; i++) kept[i] = kept_bytes(kept[i]);
  }

  // All bits of the halves of a word whose element is kept; second: of the columns 8-15 or 24-31, not those before.
  FTX_DEVICE static uint32_t pair(uint32_t kept, bool second) {
    return permute_bytes(kept, kept, second ? 0xbbaau : 0x9988u);
  }

  // Drops elements of P, 16 rows x 32 columns, packed as the A operands of two steps; kept: as drawn at the lane's
  // first element.
  FTX_DEVICE static void drop(const uint32_t (&kept)[4], uint32_t (&first)[4], uint32_t (&second)[4]) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      first[r] &= pair(kept[r % 2 * 2], r / 2 != 0);
      second[r] &= pair(kept[r % 2 * 2 + 1], r / 2 != 0);
    }
  }

  // Likewise, and draws for them: from (row, col) on.
  FTX_DEVICE void apply(int row, int col, uint32_t (&first)[4], uint32_t (&second)[4]) const {
    const int lane = threadIdx.x % 32;
    uint32_t kept[4];
    draw(row + lane / 4, col + lane % 4 * 2, kept);
    drop(kept, first, second);
  }
};

}  // namespace fasttx
