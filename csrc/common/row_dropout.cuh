// Row-wise dropout: which elements of a row are kept, as a function of (seed, offset, tag, row, column) alone.
//
// word_0..word_3 = Philox-4x32, 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with
// the seed as key and the counter (col / 16, row, tag, offset mod 2^32); byte(col) is byte col % 4, lowest first, of
// word_{col % 16 / 4}; an element is kept where its byte >= threshold. kernels/row_dropout.py draws the same bits.
#pragma once
#include <cstdint>

#include "../arch/launch.cuh"
#include "philox.cuh"

namespace fasttx {

constexpr int kDropoutRun = 16;  // columns of one call
constexpr uint32_t kSoftmaxTag = 0, kLayerNormTag = 1, kEmbeddingTag = 2, kGeluTag = 3;

struct RowDropout {
  uint64_t seed;
  uint32_t offset, tag, threshold;
  float keep_scale;

  FTX_DEVICE RowDropout(const int64_t* rng_state, uint32_t tag, int threshold, float keep_scale)
      : seed(static_cast<uint64_t>(rng_state[0])),
        offset(static_cast<uint32_t>(rng_state[1])),
        tag(tag),
        threshold(threshold),
        keep_scale(keep_scale) {}

  // The four words of the call that column `col` is in.
  FTX_DEVICE void draw(uint32_t row, uint32_t col, uint32_t (&c)[4]) const {
    c[0] = col / kDropoutRun;
    c[1] = row;
    c[2] = tag;
    c[3] = offset;
    philox(seed, c);
  }

  // Drops or scales values[0 .. 16), the columns from `col` on; col is a multiple of 16.
  FTX_DEVICE void apply(uint32_t row, uint32_t col, float* values) const {
    uint32_t c[4];
    draw(row, col, c);
#pragma unroll
    for (int i = 0; i < kDropoutRun; i++) {
      const uint32_t byte = c[i / 4] >> (8 * (i % 4)) & 255u;
      values[i] = byte >= threshold ? values[i] * keep_scale : 0.0f;
    }
  }

  // Bit i tells whether column col + i is kept; col is a multiple of kRun = 8: half of a call.
  template <int kRun>
  FTX_DEVICE uint32_t keep(uint32_t row, uint32_t col) const {
    static_assert(kRun == kDropoutRun / 2, "the words of either half are chosen below");
    uint32_t c[4], bits = 0;
    draw(row, col, c);
    const bool second = col % kDropoutRun != 0;
    const uint32_t words[2] = {second ? c[2] : c[0], second ? c[3] : c[1]};
#pragma unroll
    for (int i = 0; i < kRun; i++) {
      bits |= static_cast<uint32_t>((words[i / 4] >> (8 * (i % 4)) & 255u) >= threshold) << i;
    }
    return bits;
  }
};

}  // namespace fasttx
