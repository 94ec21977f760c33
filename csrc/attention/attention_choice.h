// Which of attention's forward kernels a call takes: a pure function of its arguments and the arch.
//
// The one for 9.0 loads by TMA, whose maps ask for bases and strides at multiples of 16 bytes, and knows no dropout
// under a mask that is a tensor. Whatever it does not take the one for 8.0 and later does.
#pragma once
#include "attention.h"
#include "attention_config.h"

namespace fasttx {

// Whether a tensor map can describe it; `sizes`: batches, tokens, heads. Strides of sizes 1 are not asked for.
inline bool fits_tensor_map(const void* x, const int64_t (&strides)[3], const int64_t (&sizes)[3]) {
  constexpr int64_t kWidth = 8, kMost = int64_t{1} << 39;  // elements of 2 bytes
  if (reinterpret_cast<uintptr_t>(x) % 16 != 0) return false;
  for (int i = 0; i < 3; i++) {
    if (sizes[i] < 1) return false;
    if (sizes[i] > 1 && (strides[i] < kWidth || strides[i] % kWidth != 0 || strides[i] >= kMost)) return false;
  }
  return true;
}

// Sizes of q (or, keys: of k and v) as its tensor map has them.
inline void sizes_of(const AttentionShape& shape, bool keys, int64_t (&sizes)[3]) {
  const bool packed = shape.cu_seqlens_q != nullptr;
  sizes[0] = packed ? 1 : shape.batch;
  sizes[1] = packed ? (keys ? shape.total_k : shape.total_q) : (keys ? shape.max_seqlen_k : shape.max_seqlen_q);
  sizes[2] = keys ? shape.num_heads_k : shape.num_heads;
}

// Whether scores have to be changed one by one: by a mask, or before they are compared (ScoreUnits).
inline bool needs_masks_sm90(const AttentionShape& shape) {
  return shape.attn_bias != nullptr || !(shape.softmax_scale > 0.0f);
}

// Why the kernel for 9.0 cannot run a call on a device of compute capability arch / 10, or nullptr. compiled:
// has_attention_fwd_sm90().
inline const char* why_not_fwd_sm90(const AttentionFwdParams& p, int arch, bool compiled) {
  const AttentionShape& shape = p.shape;
  if (!compiled) return "it was not compiled: FASTTX_CUDA_ARCHS lacks 90a";
  if (arch != 90) return "the device is no sm_90";
  if (needs_masks_sm90(shape) && shape.rng_state != nullptr) return "it has no dropout under masks or scales up to 0";
  if (shape.head_dim > kSm90MaxHeadDim || shape.head_dim_v > kSm90MaxHeadDim) return "head_dim is above 128";
  if (shape.head_dim % 8 != 0 || shape.head_dim_v % 8 != 0) return "head_dim is no multiple of 8";
  int64_t queries[3], keys[3];
  sizes_of(shape, false, queries);
  sizes_of(shape, true, keys);
  if (!fits_tensor_map(p.q, p.q_strides, queries) || !fits_tensor_map(p.k, p.k_strides, keys) ||
      !fits_tensor_map(p.v, p.v_strides, keys)) {
    return "q, k or v has no elements, or rows that are not multiples of 16 bytes apart";
  }
  if (reinterpret_cast<uintptr_t>(p.out) % 16 != 0) return "out is not at a multiple of 16 bytes";
  return nullptr;
}

}  // namespace fasttx
