// The softmax of rows that come by tiles, in accumulators of Q K^T (Milakov and Gimelshein, 2018; Dao,
// "FlashAttention-2", 2023, section 3.1).
//
//   m the running maximum of a row,  alpha = exp(m_old - m_new),  P = exp(S - m_new),  l = alpha l + sum P
// and what was summed under an old maximum is multiplied by alpha. Exponentials are exp2: without an additive mask
// softmax_scale * log2(e) is folded into their argument, and a score costs one fused multiply-add.
#pragma once
#include <cstdint>

#include "../arch/launch.cuh"
#include "../arch/math.cuh"
#include "masking.cuh"

namespace fasttx {

// In what units scores are. folds: raw, because a row's maximum may be taken before scaling; else already scaled.
struct ScoreUnits {
  bool folds;
  float scale, to_log2;

  FTX_DEVICE explicit ScoreUnits(const AttentionShape& shape)
      : folds(shape.softmax_scale > 0.0f && (shape.attn_bias == nullptr || shape.bias_dtype == DType::kBool)),
        scale(shape.softmax_scale),
        to_log2(folds ? shape.softmax_scale * kLog2e : kLog2e) {}
};

// Of the rows 8 r + g of a warp's kM accumulators of 16 rows: four lanes share a row, and agree on m.
template <int kM>
struct OnlineSoftmax {
  float m[2 * kM], l[2 * kM];  // l: the sum over the columns of this lane

  FTX_DEVICE OnlineSoftmax() {
#pragma unroll
    for (int r = 0; r < 2 * kM; r++) {
      m[r] = -INFINITY;
      l[r] = 0.0f;
    }
  }

  // Makes exponentials of scores; alpha: what the rows' earlier sums are to be multiplied by. kFolds: units.folds, one
  // branch for a tile: asked for each score, it would cost two instructions more.
  template <bool kFolds, int kN>
  FTX_DEVICE void add(float (&s)[kM][kN][4], const ScoreUnits& units, float (&alpha)[2 * kM]) {
#pragma unroll
    for (int r = 0; r < 2 * kM; r++) {
      float m_new = m[r];
#pragma unroll
      for (int j = 0; j < kN; j++) m_new = fmaxf(m_new, fmaxf(s[r / 2][j][r % 2 * 2], s[r / 2][j][r % 2 * 2 + 1]));
      m_new = fmaxf(m_new, __shfl_xor_sync(0xffffffffu, m_new, 1));
      m_new = fmaxf(m_new, __shfl_xor_sync(0xffffffffu, m_new, 2));
      const float m_ref = m_new <= kMasked ? 0.0f : m_new;  // -inf - -inf would be NaN
      alpha[r] = exp2_ftz((m[r] - m_ref) * units.to_log2);
      m[r] = m_new;
      float sum = 0.0f;
      const float base = m_ref * units.to_log2;
#pragma unroll
      for (int i = 0; i < 2 * kN; i++) {
        float& score = s[r / 2][i / 2][r % 2 * 2 + i % 2];
        // added masks: subtract first, as the lowest finite number times log2(e) is -inf
        score = exp2_ftz(kFolds ? score * units.to_log2 - base : (score - m_ref) * units.to_log2);
        sum += score;
      }
      l[r] = l[r] * alpha[r] + sum;
    }
  }

  // Adds up l over the four lanes of each row: afterwards it is the row's.
  FTX_DEVICE void finish() {
#pragma unroll
    for (int r = 0; r < 2 * kM; r++) {
      l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
      l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
    }
  }

  // After finish(): m + ln l, -inf of a row that saw nothing, and what its sums are to be multiplied by.
  FTX_DEVICE float lse(int r, const ScoreUnits& units) const {
    return l[r] == 0.0f ? -INFINITY : (units.folds ? m[r] * units.scale : m[r]) + logf(l[r]);
  }
  FTX_DEVICE float normaliser(int r) const { return l[r] == 0.0f ? 1.0f : 1.0f / l[r]; }
};

}  // namespace fasttx
