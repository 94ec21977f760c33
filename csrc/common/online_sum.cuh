// The maximum and the sum of exponentials of a row, in one pass.
//
// Each thread keeps (m, l) of the scores that it sees and multiplies l by exp(m_old - m_new) where its maximum moves
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018); its group's follow by the same rule.
#pragma once
#include "../arch/math.cuh"
#include "reductions.cuh"

namespace fasttx {

// 0 for the -inf of a row without a score, so that differences from it are no NaN.
FTX_DEVICE float finite_max(float m) {
  return m == -INFINITY ? 0.0f : m;
}

struct OnlineSum {
  float m = -INFINITY, l = 0.0f;

  // Adds kItems scores. For sums of exponentials that the caller keeps: rescale(alpha), what they are to be multiplied
  // by, then each(i, exp(s[i] - m)).
  template <int kItems, class Rescale, class Each>
  FTX_DEVICE void add(const float* s, Rescale rescale, Each each) {
    add_scaled<kItems>(s, 1.0f, rescale, each);
  }

  // Likewise the scores factor * s[i], which are rounded once with the difference from m; factor is positive.
  template <int kItems, class Rescale, class Each>
  FTX_DEVICE void add_scaled(const float* s, float factor, Rescale rescale, Each each) {
    float largest = s[0];
#pragma unroll
    for (int i = 1; i < kItems; i++) largest = fmaxf(largest, s[i]);
    const float m_new = fmaxf(m, factor * largest);
    const float m_safe = finite_max(m_new), alpha = exp_ftz(m - m_safe);
    m = m_new;
    l *= alpha;
    rescale(alpha);
#pragma unroll
    for (int i = 0; i < kItems; i++) {
      const float e = exp_ftz(fmaf(s[i], factor, -m_safe));
      l += e;
      each(i, e);
    }
  }

  // Makes (m, l) those of all scores that the group has seen, in every thread. Returns what the thread's own sums are
  // to be multiplied by. `partials` holds 2 kMaxWarps floats.
  template <int kGroup>
  FTX_DEVICE float reduce_part(float* partials) {
    const float own = m;
    m = group_reduce<Max, kGroup>(own, partials);
    const float alpha = exp_ftz(own - finite_max(m));
    l = group_reduce<Sum, kGroup>(l * alpha, partials + kMaxWarps);
    return alpha;
  }

  // Likewise where that is the whole row; m is then finite.
  template <int kGroup>
  FTX_DEVICE float reduce(float* partials) {
    const float alpha = reduce_part<kGroup>(partials);
    m = finite_max(m);
    return alpha;
  }
};

}  // namespace fasttx
