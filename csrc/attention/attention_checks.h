// What would lead attention's kernels out of their tensors is refused here, and how an error names a call.
#pragma once
#include <string>

#include "../common/checks.h"
#include "attention.h"
#include "attention_config.h"

namespace fasttx {

inline void check_attention(const char* kernel, const AttentionShape& shape, DType dtype) {
  require(shape.num_heads_k >= 1 && shape.num_heads >= 1 && shape.num_heads % shape.num_heads_k == 0, kernel,
          "num_heads_k must lie in 1 .. num_heads, and divide it");
  require(dtype == DType::kFloat16 || dtype == DType::kBFloat16, kernel, "tensors must be float16 or bfloat16");
  require(
      shape.head_dim >= 1 && shape.head_dim <= kMaxHeadDim && shape.head_dim_v >= 1 && shape.head_dim_v <= kMaxHeadDim,
      kernel, "head_dim and head_dim_v must lie in 1 .. 256");
  require(shape.batch >= 1 && shape.max_seqlen_q >= 1 && shape.max_seqlen_k >= 0 && shape.max_seqlen_q < kNoWindow &&
              shape.max_seqlen_k < kNoWindow,
          kernel, "batch and max_seqlen_q must be at least 1, max_seqlen_k at least 0, lengths below 2^29");
  require(shape.total_q >= 0 && shape.total_q <= INT32_MAX && shape.total_k >= 0 && shape.total_k <= INT32_MAX, kernel,
          "total_q and total_k must lie below 2^31");
  require((shape.cu_seqlens_q == nullptr) == (shape.cu_seqlens_k == nullptr), kernel,
          "cu_seqlens_q and cu_seqlens_k must be given together");
  require(shape.attn_bias == nullptr || shape.bias_dtype == DType::kBool || shape.bias_dtype == DType::kFloat32 ||
              shape.bias_dtype == DType::kFloat16 || shape.bias_dtype == DType::kBFloat16,
          kernel, "attn_bias must be bool or of a float type");
  require(shape.window_left >= 0 && shape.window_left <= kNoWindow && shape.window_right >= 0 &&
              shape.window_right <= kNoWindow,
          kernel, "window_left and window_right must lie in 0 .. 2^29");
  require(shape.rng_state == nullptr ? shape.threshold == 0 : shape.threshold >= 1 && shape.threshold <= 255, kernel,
          "threshold must lie in 1 .. 255 with rng_state, and be 0 without");
}

inline std::string shape_of(const AttentionShape& shape) {
  return std::to_string(shape.batch) + " x " + std::to_string(shape.num_heads) + " x " +
         std::to_string(shape.max_seqlen_q) + " x " + std::to_string(shape.max_seqlen_k) + ", head_dim " +
         std::to_string(shape.head_dim);
}

}  // namespace fasttx
