// Masks on scores in accumulators of m16n8 products, of Q K^T (rows are queries) and of K Q^T (rows are keys).
//
// A lane (g = lane / 4, t = lane % 4) has the rows 8 r + g and the columns 8 c + 2 t and 8 c + 2 t + 1. It numbers the
// queries and the keys that it has as slots: slot s of rows is row 8 s + g, slot s of columns is s / 2 * 8 + 2 t + s
// % 2.
#pragma once
#include <cstdint>

#include "../arch/launch.cuh"
#include "../common/types.h"
#include "../common/vectors.cuh"
#include "work.cuh"

namespace fasttx {

// Additive masks often hold the lowest finite number for -inf. A score no higher than this counts as masked; float16's
// lowest number is not that low, and becomes -inf when it is read.
constexpr float kMasked = -1e30f, kLowestHalf = -65504.0f;

// Accumulators s[kM][kN][4] of 16 kM x 8 kN scores.
template <bool kTransposed, int kM, int kN>
struct Slots {
  static constexpr int kQueries = kTransposed ? 2 * kN : 2 * kM, kKeys = kTransposed ? 2 * kM : 2 * kN;

  // From the first query, and the first key, of the lane on.
  FTX_DEVICE static int query(int slot) { return kTransposed ? slot / 2 * 8 + slot % 2 : slot * 8; }
  FTX_DEVICE static int key(int slot) { return kTransposed ? slot * 8 : slot / 2 * 8 + slot % 2; }
  FTX_DEVICE static int first_query() { return kTransposed ? threadIdx.x % 4 * 2 : threadIdx.x % 32 / 4; }
  FTX_DEVICE static int first_key() { return kTransposed ? threadIdx.x % 32 / 4 : threadIdx.x % 4 * 2; }

  FTX_DEVICE static float& at(float (&s)[kM][kN][4], int query, int key) {
    const int row = kTransposed ? key : query, column = kTransposed ? query : key;
    return s[row / 2][column / 2][row % 2 * 2 + column % 2];
  }
};

// What an element of a mask makes of a score; a bool one is a byte.
FTX_DEVICE float biased(float s, uint8_t keep) {
  return keep != 0 ? s : -INFINITY;
}
FTX_DEVICE float biased(float s, float bias) {
  return s + bias;
}
FTX_DEVICE float biased(float s, __nv_bfloat16 bias) {
  return s + to_float(bias);
}
FTX_DEVICE float biased(float s, __half bias) {
  return to_float(bias) <= kLowestHalf ? -INFINITY : s + to_float(bias);
}

// Whether it leaves a key visible at all. NaN does: who has it in a mask is to see it in the result.
template <class B>
FTX_DEVICE bool shows(B bias) {
  return !(biased(0.0f, bias) <= kMasked);
}

// f(pointer) with the elements' type.
template <class F>
FTX_DEVICE void with_bias(const void* bias, DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBool:
      return f(static_cast<const uint8_t*>(bias));
    case DType::kFloat32:
      return f(static_cast<const float*>(bias));
    case DType::kFloat16:
      return f(static_cast<const __half*>(bias));
    default:
      return f(static_cast<const __nv_bfloat16*>(bias));  // launchers let no other through
  }
}

// The window, and the end of the keys.
struct HeadBounds {
  const AttentionShape& shape;
  int n_k, shift;

  FTX_DEVICE HeadBounds(const AttentionShape& shape, int n_k, int shift) : shape(shape), n_k(n_k), shift(shift) {}

  // Puts them on scores whose first query is `query`, their first key `key`. Queries from n_q on are left.
  template <bool kTransposed, int kM, int kN>
  FTX_DEVICE void apply(float (&s)[kM][kN][4], int query, int key) const {
    using S = Slots<kTransposed, kM, kN>;
    constexpr int kQueryRange = kTransposed ? 8 * kN : 16 * kM, kKeyRange = kTransposed ? 16 * kM : 8 * kN;
    const int first_query = query + S::first_query(), first_key = key + S::first_key();
    const int left = shift - shape.window_left, right = shift + shape.window_right;
    const bool whole =
        key + kKeyRange <= n_k && key >= query + kQueryRange - 1 + left && key + kKeyRange - 1 <= query + right;
    if (whole) return;
#pragma unroll
    for (int k = 0; k < S::kKeys; k++) {
      const int at_key = first_key + S::key(k);
#pragma unroll
      for (int q = 0; q < S::kQueries; q++) {
        const int at_query = first_query + S::query(q);
        const bool visible = at_key < n_k && at_key >= at_query + left && at_key <= at_query + right;
        float& score = S::at(s, q, k);
        score = visible ? score : -INFINITY;
      }
    }
  }
};

// All that hides keys from the queries of a head. A mask of strides 0 for queries is a key mask.
struct HeadMask {
  const void* bias;  // nullptr: none
  int64_t offset;    // of this head's first element
  const AttentionShape& shape;
  int n_q, n_k, shift;

  FTX_DEVICE HeadMask(const AttentionShape& shape, const HeadWork& work)
      : bias(shape.attn_bias),
        offset(work.b * shape.bias_strides[0] + work.h * shape.bias_strides[1]),
        shape(shape),
        n_q(work.n_q),
        n_k(work.n_k),
        shift(work.shift) {}

  FTX_DEVICE bool is_key_mask() const { return bias != nullptr && shape.bias_strides[2] == 0; }

  // One past the last key that a key mask leaves visible, at most n_k: of the keys that this warp looks at, as a part
  // of the team.
  FTX_DEVICE int last_key(const Team& team) const {
    int last = 0;
    with_bias(bias, shape.bias_dtype, [&](auto* all) {
      for (int key = team.thread; key < n_k; key += team.threads) {
        if (shows(all[offset + key * shape.bias_strides[3]])) last = key + 1;
      }
    });
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const int other = __shfl_xor_sync(0xffffffffu, last, lanes);
      last = other > last ? other : last;
    }
    return last;
  }

  // Of all keys. All threads of the block call it; `partials` holds an int for each of its warps, and whoever uses that
  // memory next needs a barrier before.
  FTX_DEVICE int last_key(int* partials) const {
    int last = last_key(Team::of_block());
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = last;
    __syncthreads();  // partials: written by each warp, read by all
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) last = partials[warp] > last ? partials[warp] : last;
    return last;
  }

  // Puts the mask, the window and the end of the keys on scores whose first query is `query`, their first key `key`.
  // Scores are raw where the mask is bool or there is none, scaled where it is added. Queries from n_q on are left.
  template <bool kTransposed, int kM, int kN>
  FTX_DEVICE void apply(float (&s)[kM][kN][4], int query, int key) const {
    using S = Slots<kTransposed, kM, kN>;
    if (bias != nullptr) {
      const int first_query = query + S::first_query(), first_key = key + S::first_key();
      with_bias(bias, shape.bias_dtype, [&](auto* all) { add<kTransposed>(s, first_query, first_key, all + offset); });
    }
    HeadBounds(shape, n_k, shift).template apply<kTransposed>(s, query, key);
  }

 private:
  template <bool kTransposed, class B, int kM, int kN>
  FTX_DEVICE void add(float (&s)[kM][kN][4], int first_query, int first_key, const B* head) const {
    using S = Slots<kTransposed, kM, kN>;
    const int64_t stride_q = shape.bias_strides[2], stride_k = shape.bias_strides[3];
    const B* first = head + first_query * stride_q + first_key * stride_k;
    if (stride_q == 0) {  // one element for all queries
#pragma unroll
      for (int k = 0; k < S::kKeys; k++) {
        if (first_key + S::key(k) < n_k) {
          const B element = *first;
#pragma unroll
          for (int q = 0; q < S::kQueries; q++) S::at(s, q, k) = biased(S::at(s, q, k), element);
        }
        first += (S::key(k + 1) - S::key(k)) * stride_k;
      }
      return;
    }
#pragma unroll
    for (int q = 0; q < S::kQueries; q++) {
      if (first_query + S::query(q) < n_q) {
        const B* at = first;
#pragma unroll
        for (int k = 0; k < S::kKeys; k++) {  // from one to the next: all their addresses do not fit the registers
          if (first_key + S::key(k) < n_k) S::at(s, q, k) = biased(S::at(s, q, k), *at);
          at += (S::key(k + 1) - S::key(k)) * stride_k;
        }
      }
      first += (S::query(q + 1) - S::query(q)) * stride_q;
    }
  }
};

}  // namespace fasttx
