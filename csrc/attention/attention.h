// The attention op's launchers; formulas and contract stand in fwd_sm80.cuh, fwd_sm90.cuh,
// bwd_sm80.cuh and fasttx/ops/attention/op.py.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace fasttx {

constexpr int kNoWindow = 1 << 29;  // farther than any key, and sums with it stay within 32 bits

// What forward and backward are both asked, beside their tensors. These have strides (batch, token, head), and stride 1
// in the last dim; a packed one has batch stride 0.
struct AttentionShape {
  int batch, num_heads, num_heads_k, head_dim, head_dim_v;
  int max_seqlen_q, max_seqlen_k;
  int64_t total_q, total_k;  // tokens of q and of k in all
  const int* seqused_k;      // (batch,), or nullptr
  const int* cu_seqlens_q;   // (batch + 1,), or nullptr: padded
  const int* cu_seqlens_k;
  const void* attn_bias;          // nullptr: none
  DType bias_dtype;               // kBool keeps where true; a float type is added
  int64_t bias_strides[4];        // batch, head, query, key; 0 where the mask has size 1
  int window_left, window_right;  // keys before and after the one opposite of a query; kNoWindow: all
  float softmax_scale;
  const int64_t* rng_state;  // (seed, offset) on the device; nullptr: no dropout
  int threshold;             // 256 p_hat
};

struct AttentionFwdParams {
  void* out;           // contiguous
  float* softmax_lse;  // contiguous, (batch, num_heads, max_seqlen_q) or (num_heads, total_q)
  const void* q;
  const void* k;
  const void* v;
  int64_t q_strides[3], k_strides[3], v_strides[3];
  DType dtype;
  int form;  // 80 or 90: that kernel; 0: the one that attention_choice.h takes
  AttentionShape shape;
};

struct AttentionBwdParams {
  void* dq;  // contiguous, as are dk and dv
  void* dk;
  void* dv;
  Out dbias;  // contiguous, of the sizes of attn_bias, which has several columns; data is nullptr: not wanted
  int dbias_sizes[4];
  float* workspace;  // two floats for each row of each head, in blocks of 64 rows that begin with a sequence
  const void* dout;
  const void* q;
  const void* k;
  const void* v;
  const void* out;           // what attention_fwd wrote
  const float* softmax_lse;  // likewise
  int64_t dout_strides[3], q_strides[3], k_strides[3], v_strides[3];
  DType dtype;
  AttentionShape shape;
};

void attention_fwd(const AttentionFwdParams& params, Stream stream);
void attention_fwd_sm90(const AttentionFwdParams& params, Stream stream);  // of what attention_choice.h lets through
bool has_attention_fwd_sm90();                                             // whether it was compiled
void attention_bwd(const AttentionBwdParams& params, Stream stream);

}  // namespace fasttx
